//! The records of a checkpoint file.
//!
//! ```text
//! 0               stub              the ckpt executable, padded to a page
//! header.start    Header            one page
//!                 page data         page-aligned runs, in the order they were written
//!                 sections          records and bytes, each padded to 8
//!                 section table     array of Section
//!                 ELF table         names and section headers, for readelf and objcopy
//! end - 64        Trailer
//! ```
//!
//! Every byte lies under one xxh3 (64 bit, seed 0): the stub and the header's page under the
//! header's two, page data under that of its [`PageRun`], sections with their padding under that
//! of their [`Section`], the section table under the header's, the ELF table under the trailer's
//! `elf_hash`, the trailer under its own.
//! Records grow only at their end: a reader takes the bytes it knows and sees zeros for those an
//! older writer did not have. What an older reader must not ignore sets a bit of [`Header::needs`].

use crate::record;

pub use crate::state::*;

/// First bytes of the header.
pub const HEADER_MAGIC: [u8; 8] = *b"CKPTIMG\n";
/// First bytes of the trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"CKPTEND\n";
/// Version of the file format.
pub const FORMAT: u32 = 1;
/// Bits of [`Header::needs`] that this build understands.
pub const KNOWN_NEEDS: u64 = 0;
/// Page size of the only architecture there is so far.
pub const PAGE: u64 = 4096;
/// Longest page run in bytes: what one checksum covers and one thread reads at a time.
pub const RUN_MAX: u64 = 4 << 20;

record! {
    /// Head of the image; occupies one page, zero behind the record.
    Header, 96, {
        /// [`HEADER_MAGIC`].
        magic: [u8; 8],
        /// [`FORMAT`].
        format: u32,
        /// [`crate::ABI_VERSION`] of the payload in the image.
        abi_version: u32,
        /// What a reader must understand.
        needs: u64,
        /// Offset of this header in the file: the length of the stub with its padding.
        start: u64,
        /// Length of the stub without padding.
        stub_len: u64,
        /// Length of the whole file.
        file_len: u64,
        /// Offset of the array of [`Section`].
        sections: u64,
        /// Number of sections.
        section_count: u32,
        /// Bytes of one [`Section`] as written.
        section_len: u32,
        /// xxh3 of the array of sections.
        sections_hash: u64,
        /// xxh3 of the file's first `start` bytes.
        stub_hash: u64,
        /// Room to grow.
        reserved: u64,
        /// xxh3 of the header's page with this field zero.
        hash: u64,
    }
}

record! {
    /// The last bytes of the file.
    Trailer, 64, {
        /// [`TRAILER_MAGIC`].
        magic: [u8; 8],
        /// Offset of the header in the file.
        header: u64,
        /// Length of the whole file.
        file_len: u64,
        /// xxh3 of the ELF section table, from the end of the last section to this trailer.
        elf_hash: u64,
        /// Offset of the ELF section table.
        elf_table: u64,
        /// Room to grow.
        reserved: [u64; 2],
        /// xxh3 of the trailer with this field zero.
        hash: u64,
    }
}

record! {
    /// One entry of the section table.
    Section, 48, {
        /// A [`SectionKind`] as a number.
        kind: u32,
        /// Which process of the image it belongs to, from 0.
        process: u32,
        /// Offset in the file.
        offset: u64,
        /// Length in bytes, without padding.
        len: u64,
        /// Bytes of one record as written; 0 for plain bytes.
        record_len: u32,
        /// Tells sections of the same kind apart.
        index: u32,
        /// xxh3 of the section with its padding.
        hash: u64,
        /// Room to grow.
        reserved: u64,
    }
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SectionKind {
    /// Bytes that [`Text`] points into.
    Strings = 1,
    /// One [`Machine`].
    Machine = 2,
    /// One [`Process`].
    Process = 3,
    /// [`Thread`]s, the main one first.
    Threads = 4,
    /// Bytes that [`Thread::xstate`] points into.
    Xstate = 5,
    /// [`Vma`]s by address.
    Vmas = 6,
    /// [`PageRun`]s by address.
    PageRuns = 7,
    /// [`Descriptor`]s by number.
    Descriptors = 8,
    /// 64 [`SignalAction`]s, for signals 1 to 64.
    SignalActions = 9,
    /// [`PendingSignal`]s in the order of their queues.
    PendingSignals = 10,
    /// 16 [`Limit`]s by resource number.
    Limits = 11,
    /// Content of a file that has no name any more; [`Section::index`] is [`Descriptor::content`].
    Content = 12,
    /// [`Object`]s: memory that VMAs or descriptors share.
    Objects = 13,
    /// [`Loss`]es: what was left out.
    Losses = 14,
    /// Interval and POSIX timers.
    Timers = 15,
    /// The auxiliary vector as the kernel gave it.
    Auxv = 16,
    /// [`Guard`]s by address.
    Guards = 17,
    /// [`Owner`]s: the robust mutexes that threads hold.
    Owners = 18,
    /// [`CpuLeaf`]s of the machine where the image was written.
    Cpuid = 32,
}
