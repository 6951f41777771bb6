// SPDX-License-Identifier: LGPL-2.1-only
//! What the `ckpt` binary and its payload agree on.
//!
//! Five agreements live here: [`region`], the memory that the payload occupies in somebody
//! else's process; [`turn`], who may use it when; [`api`], what the C API keeps there; [`op`], the orders that the payload obeys;
//! [`image`], [`mem`], [`state`], [`files`] and [`tree`], the
//! records of a checkpoint file; [`nr`] and [`errno`] have the kernel's numbers. All records are `repr(C)`, little-endian and without hidden padding.
#![no_std]
#![forbid(unsafe_code)]

/// Declares numbers of one kind, and a macro that calls another with each name here and libc's.
macro_rules! numbers {
    ($d:tt $each:ident, $module:ident, $kind:literal, $ty:ty, { $($name:ident $libc:ident $value:literal,)* }) => {
        $(
            #[doc = concat!($kind, " (", stringify!($libc), ").")]
            pub const $name: $ty = $value;
        )*

        /// Calls a macro with the name here and libc's of each number.
        #[macro_export]
        macro_rules! $each {
            ($d check:ident) => { $($d check!($module::$name, $libc);)* };
        }
    };
}

pub mod api;
pub mod errno;
pub mod files;
pub mod image;
pub mod mem;
pub mod nr;
pub mod op;
pub mod region;
pub mod state;
pub mod tree;
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

/// Declares an enum whose variants are numbers in records, orders or words of a region: the other way, from a number
/// of any origin, goes by `TryFrom`, which gives one that nothing stands for back as the error.
#[macro_export]
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident : $ty:ty {
        $($(#[$vmeta:meta])* $variant:ident = $number:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr($ty)]
        pub enum $name { $($(#[$vmeta])* $variant = $number,)* }

        impl $name {
            /// Each of them once.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }

        impl TryFrom<$ty> for $name {
            type Error = $ty;

            fn try_from(number: $ty) -> core::result::Result<Self, $ty> {
                match number {
                    $($number => Ok(Self::$variant),)*
                    other => Err(other),
                }
            }
        }
    };
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
