// SPDX-License-Identifier: LGPL-2.1-only
//! The records of a saved process's memory.

use crate::image::Text;
use crate::{codes, record};

record! {
    /// One mapping.
    VmaRecord, 88, {
        /// First address.
        start: u64,
        /// End address.
        end: u64,
        /// PROT_ bits.
        prot: u32,
        /// A [`VmaKind`] as a number.
        kind: u32,
        /// Bits of [`vma_flag`].
        flags: u64,
        /// Offset in the file or object.
        offset: u64,
        /// Object of [`VmaKind::Shared`], counted from 0.
        object: u32,
        /// Protection key.
        pkey: u32,
        /// Name in /proc/PID/maps.
        name: Text,
        /// Size of the mapped file, in bytes.
        file_size: u64,
        /// Its time of modification, in nanoseconds.
        file_mtime: i64,
        /// Device number of the file, as stat(2) has it.
        file_device: u64,
        /// Its inode number.
        file_inode: u64,
    }
}

codes! {
    /// How a VMA is restored.
    VmaKind: u32 {
        /// Private memory, all of whose content is in the image.
        Private = 1,
        /// A private mapping of a file that must be there at the restart; the image has the pages that
        /// were written.
        PrivateFile = 2,
        /// A shared mapping of a file that must be there at the restart.
        SharedFile = 3,
        /// Memory shared through an [`Object`].
        Shared = 4,
        /// The vdso: all of its bytes are in the image.
        Vdso = 5,
        /// The ring of an io_setup(2), with the events that nobody has taken.
        Ring = 6,
    }
}

/// Bits of [`VmaRecord::flags`].
pub mod vma_flag {
    /// MAP_GROWSDOWN.
    pub const GROWSDOWN: u64 = 1;
    /// MAP_NORESERVE.
    pub const NORESERVE: u64 = 2;
    /// MADV_HUGEPAGE.
    pub const HUGEPAGE: u64 = 4;
    /// MADV_NOHUGEPAGE.
    pub const NOHUGEPAGE: u64 = 8;
    /// MADV_DONTFORK.
    pub const DONTFORK: u64 = 16;
    /// MADV_WIPEONFORK.
    pub const WIPEONFORK: u64 = 32;
    /// MADV_DONTDUMP.
    pub const DONTDUMP: u64 = 64;
    /// mlock(2).
    pub const LOCKED: u64 = 128;
    /// MADV_SEQUENTIAL.
    pub const SEQUENTIAL: u64 = 256;
    /// MADV_RANDOM.
    pub const RANDOM: u64 = 512;
    /// MADV_MERGEABLE.
    pub const MERGEABLE: u64 = 1024;
    /// A part of the payload's region.
    pub const REGION: u64 = 2048;
    /// mlock2(2) with MLOCK_ONFAULT.
    pub const LOCK_ON_FAULT: u64 = 4096;
    /// MAP_DROPPABLE.
    pub const DROPPABLE: u64 = 8192;
    /// A shared mapping of a file that was opened for writing: the process may make it writable.
    pub const MAY_WRITE: u64 = 16384;
    /// A shared mapping of a file that the process can only read: the image has its content for
    /// machines without the file.
    pub const CARRIED: u64 = 1 << 32;
    /// A private mapping of a data file: all of its content is in the image, but where the very file is
    /// still there, pages that are as they were show it.
    pub const FOLLOWS: u64 = 1 << 33;
    /// mseal(2).
    pub const SEALED: u64 = 1 << 34;
    /// Private memory without a file in huge pages of hugetlbfs, of [`super::VmaRecord::file_size`] bytes each.
    pub const HUGETLB: u64 = 1 << 35;
}

record! {
    /// Pages that cannot be touched.
    Guard, 24, {
        /// First address.
        start: u64,
        /// End address.
        end: u64,
        /// A [`GuardKind`] as a number.
        kind: u32,
        /// Room to grow.
        reserved: u32,
    }
}

codes! {
    /// Why pages cannot be touched.
    GuardKind: u32 {
        /// MADV_GUARD_INSTALL: SIGSEGV.
        Installed = 1,
        /// There is nothing to be mapped, as behind the end of a file: SIGBUS.
        Absent = 2,
    }
}
