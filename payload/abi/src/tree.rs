// SPDX-License-Identifier: LGPL-2.1-only
//! The processes of a tree and how they are related.

use crate::record;

/// [`Member::parent`] of the root and of orphans, [`Member::process`] of the dead.
pub const NOBODY: u32 = u32::MAX;

record! {
    /// A process of the tree, the root first; ids are those of the root's PID namespace.
    Member, 80, {
        /// Process id.
        pid: u32,
        /// Which member is its parent, from 0; [`NOBODY`]: the root's is outside, an orphan's is init.
        parent: u32,
        /// Process group; 0: one that began outside of the tree, as the root's unless that has begun its own.
        group: u32,
        /// Session; 0: as above.
        session: u32,
        /// The signal that its parent gets when it ends (clone(2)).
        exit_signal: u32,
        /// Bits of [`member_flag`].
        flags: u32,
        /// Status of the dead, as wait(2) has it.
        status: u32,
        /// Which process of the image it is ([`crate::image::Section::process`]); [`NOBODY`] of the dead.
        process: u32,
        /// Its name (comm), NUL-padded.
        name: [u8; 16],
        /// Of a session's leader, one more than the number of its controlling terminal, if that is a pseudo-terminal of
        /// the checkpoint; 0: it has none of these.
        terminal: u32,
        /// The foreground process group of that.
        foreground: u32,
        /// Its place among the children of its parent, as wait(2) goes through them.
        rank: u32,
        /// One more than the first member whose descriptor table it has, and which fills that (CLONE_FILES); 0: its own.
        files: u32,
        /// The same of the working directory and umask (CLONE_FS).
        directory: u32,
        /// Room to grow.
        spare: u32,
        /// Likewise.
        reserved: u64,
    }
}

/// Bits of [`Member::flags`].
pub mod member_flag {
    /// It has ended, and its parent has not waited for it.
    pub const DEAD: u32 = 1;
    /// PR_SET_CHILD_SUBREAPER was set.
    pub const REAPS: u32 = 2;
    /// It is stopped, and wait(2) would tell its parent so.
    pub const UNTOLD: u32 = 4;
    /// The root alone: it leads its process group, and gives the terminal to others, as shells with job control do.
    pub const GOVERNS: u32 = 8;
}
