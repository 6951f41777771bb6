// SPDX-License-Identifier: LGPL-2.1-only
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

/// The folder of these sources.
#[cfg(feature = "sources")]
pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Mixes a text and a number into a hash (FNV-1a).
#[must_use]
pub const fn mixed(mut hash: u64, text: &str, number: usize) -> u64 {
    const PRIME: u64 = 0x100_0000_01b3;
    let (bytes, mut i) = (text.as_bytes(), 0);
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(PRIME);
        i += 1;
    }
    (hash ^ number as u64).wrapping_mul(PRIME)
}

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
        impl $name {
            /// A hash of what the record is made of.
            pub const LAYOUT: u64 = {
                let mut hash = $crate::mixed(0, stringify!($name), $size);
                $(
                    let text = concat!(stringify!($field), ":", stringify!($ty));
                    hash = $crate::mixed(hash, text, core::mem::size_of::<$ty>());
                )*
                hash
            };
        }
    };
}
