//! What the `ckpt` binary and its payload agree on.
//!
//! Five agreements live here: [`region`], the memory that the payload occupies in somebody
//! else's process; [`turn`], who may use it when; [`api`], what the C API keeps there; [`op`], the orders that the payload obeys;
//! [`image`], [`mem`], [`state`] and [`files`], the
//! records of a checkpoint file; [`nr`] has the kernel's numbers. All records are `repr(C)`, little-endian and without hidden padding.
#![no_std]
#![forbid(unsafe_code)]

pub mod api;
pub mod files;
pub mod image;
pub mod mem;
pub mod nr;
pub mod op;
pub mod region;
pub mod state;
pub mod turn;

/// Version of everything in this crate that two different builds of ckpt could meet over. A
/// restart refuses an image of another version; a checkpoint file carries the stub that made it.
pub const ABI_VERSION: u32 = 2;

/// Declares a record: a `repr(C)` plain-data struct that the host may view as bytes, with its
/// size in bytes and the place of every field held at compile time.
#[macro_export]
macro_rules! record {
    ($(#[$meta:meta])* $name:ident, $size:expr, { $($(#[$fmeta:meta])* $field:ident : $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(
            feature = "host",
            derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
        )]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = {
            // Each field where those before it end, and nothing behind the last: no hidden padding.
            let mut end = 0;
            $(
                assert!(core::mem::offset_of!($name, $field) == end);
                end += core::mem::size_of::<$ty>();
            )*
            assert!(end == $size && core::mem::size_of::<$name>() == $size);
        };
    };
}
