// SPDX-License-Identifier: LGPL-2.1-only
//! What the C API (libckpt.so, ckpt.h) keeps in the region, and what its callers see.

use crate::region::{Control, NAME_LEN, WAITS};
use crate::{codes, record};

/// The functions of ckpt.h, which libckpt.so exports.
pub const FUNCTIONS: [&str; 18] = [
    "ckpt_ckpt",
    "ckpt_config",
    "ckpt_exclude",
    "ckpt_fds",
    "ckpt_given",
    "ckpt_hold",
    "ckpt_include",
    "ckpt_info",
    "ckpt_on_postckpt",
    "ckpt_on_preckpt",
    "ckpt_on_restart",
    "ckpt_release",
    "ckpt_restart",
    "ckpt_try_config",
    "ckpt_try_on_postckpt",
    "ckpt_try_on_preckpt",
    "ckpt_try_on_restart",
    "ckpt_try_restart",
];

/// Bytes from the base of the region to its [`Api`].
pub const API: u64 = 0x4000;

const _: () = assert!(size_of::<Control>() as u64 <= API);
const _: () = assert!(API + size_of::<Api>() as u64 <= WAITS);

/// How many callbacks of a kind can be registered.
pub const CALLBACKS: u32 = 1024;
/// How many ranges can be excluded at a time.
pub const EXCLUDED: usize = 128;
/// Bytes of the text of an error, with its final NUL.
pub const ERROR_LEN: usize = 512;

record! {
    /// The API's part of the region; zero in the beginning.
    Api, 6848, {
        /// Process whose thread is in ckpt_ckpt(), or 0.
        lock: u32,
        /// That thread.
        lock_thread: u32,
        /// ckpt_hold() without its ckpt_release().
        holds: u32,
        /// A checkpoint was asked for meanwhile.
        pending: u32,
        /// A [`Request`] as a number, for the dumper or assistant that is started.
        request: u32,
        /// An [`Answer`] as a number.
        answer: u32,
        /// Error number that goes with it.
        errno: u32,
        /// Whether this process was restarted from a checkpoint.
        restarted: u32,
        /// Restart callbacks have to run, and then descriptors to be looked after.
        restart_due: u32,
        /// A [`Visit`] as a number.
        visit: u32,
        /// How many callbacks are registered, by [`When`].
        counts: [u32; 4],
        /// Address of the callbacks: for each [`When`], [`CALLBACKS`] pairs of function and
        /// argument. 0: none yet.
        callbacks: u64,
        /// Address of the table of descriptors that ckpt_fds() has made, or 0.
        table: u64,
        /// Address of the descriptors that a restart could not open ([`Unopened`]).
        missing: u64,
        /// How many these are.
        missing_count: u64,
        /// Bytes of their mapping.
        missing_len: u64,
        /// Address of the function by which a dumper from outside has the callbacks called.
        visit_entry: u64,
        /// Process whose thread changes `excluded`, or 0.
        exclude_lock: u32,
        /// Room to grow.
        reserved0: u32,
        /// Values of ckpt_config() on the way to the assistant: flags, signal, continue, period.
        values: [u32; 4],
        /// Excluded ranges, from and to; empty ones are free.
        excluded: [[u64; 2]; EXCLUDED],
        /// The last error as text.
        error: [u8; ERROR_LEN],
        /// Name of the requested checkpoint; empty: as configured.
        name: [u8; NAME_LEN],
        /// Room to grow.
        reserved1: u64,
        /// Address behind the ppoll(2) of threads that wait for a socket ([`crate::region::SocketWait`]).
        socket_wait: u64,
        /// Address behind the system call of threads that wait with a mask of the call ([`crate::region::Suspended`]).
        suspended: u64,
        /// Address behind the system call of threads that make the rest of one ([`crate::region::Rest`]).
        rest: u64,
        /// What a restart has given the program: how many arguments, and the addresses of their list and of that of the
        /// variables, which both end with a null pointer; all 0: nothing yet.
        given: [u64; 3],
        /// Room to grow.
        reserved: u64,
    }
}

codes! {
    /// What a process of ours is started for.
    Request: u32 {
        /// A checkpoint, because a signal came.
        Signal = 0,
        /// A checkpoint, for ckpt_ckpt().
        Call = 1,
        /// The configuration of the environment.
        Environment = 2,
        /// A changed configuration, for ckpt_config().
        Configure = 3,
        /// Whether a checkpoint can be restarted, for ckpt_restart().
        Inspect = 4,
        /// That processes go on which the signal has stopped, as it went to them, too, without a checkpoint.
        Rescue = 5,
    }
}

codes! {
    /// What came of it.
    Answer: u32 {
        /// Not known yet.
        None = 0,
        /// Done: the checkpoint is sealed.
        Done = 1,
        /// This is the restarted process.
        Restarted = 2,
        /// Failed, for the reason in [`Api::errno`] and [`Api::error`].
        Failed = 3,
    }
}

codes! {
    /// A dumper from outside has the callbacks called.
    Visit: u32 {
        /// Nobody does.
        None = 0,
        /// The main thread was sent to call them.
        Sent = 1,
        /// They were called; the thread waits for the checkpoint.
        Ready = 2,
    }
}

/// When a callback is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum When {
    /// Before a checkpoint.
    Before = 0,
    /// After one, where the program goes on.
    After = 1,
    /// In the restarted process.
    Restart = 2,
}

record! {
    /// A descriptor that a restart could not open.
    Unopened, 32, {
        /// Its number.
        fd: u32,
        /// Error number.
        errno: u32,
        /// Open flags.
        flags: u32,
        /// FD_CLOEXEC.
        cloexec: u32,
        /// Offset in the file.
        position: u64,
        /// Address of its path, a C string.
        path: u64,
    }
}

/// Bits of the C struct ckptconfig's flags.
pub mod config_bit {
    /// CKPT_NAME.
    pub const NAME: u32 = 1;
    /// CKPT_ASYNCSIG.
    pub const ASYNCSIG: u32 = 2;
    /// CKPT_CONTINUE.
    pub const CONTINUE: u32 = 4;
    /// CKPT_MSPERIOD.
    pub const MSPERIOD: u32 = 8;
}
