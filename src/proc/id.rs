// SPDX-License-Identifier: LGPL-2.1-only
//! Ids of processes and of threads, which the kernel takes from one row of numbers (credentials(7), gettid(2)) and
//! which calls and files of /proc tell apart.
//!
//! A process group and a session are named by the process that began them, and compared with processes: they are a
//! [`Pid`], too. Records of an image and shared words keep plain numbers.

use std::fmt;
use std::num::{ParseIntError, TryFromIntError};
use std::str::FromStr;

/// Declares a kind of id.
macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(i32);

        impl $name {
            /// What the kernel says instead of one: there is none, or it has no id in this PID namespace.
            pub const NONE: Self = Self(0);

            /// That of this number, which the kernel or the user has given.
            pub const fn new(number: i32) -> Self {
                Self(number)
            }

            /// The number, for a system call.
            pub const fn get(self) -> i32 {
                self.0
            }

            /// That of a word in a record or in shared memory.
            pub const fn of_word(word: u32) -> Self {
                Self(word.cast_signed())
            }

            /// The word for a record or shared memory.
            pub const fn word(self) -> u32 {
                self.0.cast_unsigned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }

        impl TryFrom<i128> for $name {
            type Error = TryFromIntError;

            fn try_from(number: i128) -> Result<Self, TryFromIntError> {
                number.try_into().map(Self)
            }
        }
    };
}

id! {
    /// A process, a process group or a session.
    Pid
}

id! {
    /// A thread.
    Tid
}

impl Pid {
    /// The first process of a PID namespace.
    pub const INIT: Self = Self(1);

    /// Ours.
    pub fn own() -> Self {
        Self::of_word(std::process::id())
    }

    /// The thread that the process began with, whose id is the process's as long as it lives: execve(2) in another
    /// thread gives that one this id.
    pub const fn main_thread(self) -> Tid {
        Tid(self.0)
    }

    /// For functions of nix.
    pub const fn nix(self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.0)
    }
}

impl Tid {
    /// That of the thread that asks.
    pub fn own() -> Self {
        Self(nix::unistd::gettid().as_raw())
    }

    /// For what the kernel answers of a thread's id as of a process's: /proc/TID, waitpid(2), sched_getaffinity(2).
    pub const fn as_pid(self) -> Pid {
        Pid(self.0)
    }
}
