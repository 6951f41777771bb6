// SPDX-License-Identifier: LGPL-2.1-only
//! The records of a checkpoint file.
//!
//! ```text
//! 0               stub              a page that looks whether the file is whole, and the ckpt executable, padded
//! header.start    Header            one page
//!                 chunks            content, as the array of [`Chunk`] tells
//!                 sections          records and bytes, each padded to 8
//!                 section table     array of Section
//!                 ELF table         names and section headers, for readelf and objcopy
//! end - 64        Trailer
//! ```
//!
//! Of an image that was written front to back ([`needs::STREAMED`]) content follows the stub at once, and the header's page
//! lies behind the ELF table, at a multiple of the page size; [`Trailer::header`] says where. Its stub knows neither the
//! file's length nor the ELF table.
//!
//! Every byte that means something lies under one xxh3 (64 bit, seed 0): the stub and the header's page under the
//! header's two, content under that of its [`Chunk`], sections with their padding under that
//! of their [`Section`], the section table under the header's, the ELF table under the trailer's
//! `elf_hash`, the trailer under its own. Gaps between chunks, where content was once, are in files that were brought up
//! to date in place alone ([`header_flag::RENEWED`]). Of a chunk of [`Codec::Plain`] it is a sum over its pages: for page
//! i, from 0, x = xxh3 ^ (i + 1) * K, y = (x ^ x >> 32) * K, and y ^ y >> 29 is added, with K = 0x9e3779b97f4a7c15. A hash is that of the bytes as they lie in the file, so
//! that no decompressor gets what was not checked.
//!
//! In an encrypted image content and sections are sealed: each piece by itself, under its own number, with a key that no other
//! image has. A block of content has the number {0u32, its number as u64}, a section {1u32, its offset as u64} (little-endian)
//! and seals its [`Section`] with `hash` zero, too, with its tag behind it; [`Header::seal_proof`] has {2u32, 0u64}. Stub, header
//! ([`EXECUTABLE`]), the section table and the ELF table are readable.
//!
//! Records grow only at their end: a reader takes the bytes it knows and sees zeros for those an
//! older writer did not have. What an older reader must not ignore sets a bit of [`Header::needs`].

use crate::{codes, record};

pub use crate::files::*;
pub use crate::mem::*;
pub use crate::state::*;
pub use crate::tree::*;

/// First bytes of the header.
pub const HEADER_MAGIC: [u8; 8] = *b"CKPTIMG\n";
/// First bytes of the trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"CKPTEND\n";
/// Version of the file format.
pub const FORMAT: u32 = 3;
/// Bits of [`Header::needs`] that this build understands.
pub const KNOWN_NEEDS: u64 = needs::PROCESSES | needs::CODEC | needs::STREAMED | needs::SEALED;
/// Page size of the only architecture there is so far.
pub const PAGE: u64 = 4096;
/// Longest chunk in bytes: what one checksum covers, and one thread reads at a time.
pub const CHUNK_MAX: u64 = 256 << 10;
/// From here to a null byte the header's page of an encrypted image has the path of the first process's executable, unless
/// that is too long: the restarted program has no key, and may execute /proc/self/exe.
pub const EXECUTABLE: usize = 1024;
const _: () = assert!(size_of::<Header>() <= EXECUTABLE);

/// Bytes by which a sealed section is longer: its tag.
pub const SEAL: u64 = 16;
/// [`Section::process`] and [`Chunk::process`] of what belongs to no process but to the image.
pub const WHOLE_IMAGE: u32 = u32::MAX;
/// [`Chunk::object`] of a process's memory, and [`VmaRecord::object`] of what has no object.
pub const NO_OBJECT: u32 = u32::MAX;

/// Bits of [`Header::needs`].
pub mod needs {
    /// Several processes.
    pub const PROCESSES: u64 = 1;
    /// Chunks whose content is in another image ([`super::Header::parent`]).
    pub const PARENT: u64 = 2;
    /// Chunks of another codec than [`super::Codec::Plain`].
    pub const CODEC: u64 = 4;
    /// Chunks and sections that are encrypted. (8 was so, too: with the tag behind each chunk.)
    pub const SEALED: u64 = 32;
    /// A header behind the content.
    pub const STREAMED: u64 = 16;
}

record! {
    /// Head of the image; occupies one page, zero behind the record.
    Header, 224, {
        /// [`HEADER_MAGIC`].
        magic: [u8; 8],
        /// [`FORMAT`].
        format: u32,
        /// [`crate::ABI_VERSION`] of the payload in the image.
        abi_version: u32,
        /// What a reader must understand.
        needs: u64,
        /// The length of the stub with its padding; the offset of this header in the file, unless that lies at the end
        /// ([`needs::STREAMED`]).
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
        /// The image that has the chunks which are not in this one, by its [`Trailer::hash`] and its length;
        /// zero: none.
        parent: [u64; 2],
        /// Whose it is: [`crate::region::Config::run`], and the checkpoint's number in that life of a process. Zero: not known.
        run: [u64; 2],
        /// The same of the image that this life began with.
        before: [u64; 2],
        /// Bits of [`header_flag`].
        flags: u64,
        /// xxh3 of the header's page with this field zero.
        hash: u64,
        /// Of an encrypted image ([`needs::SEALED`]), what its key is made of, with the user's.
        seal_salt: [u8; 32],
        /// Of one whose user's key is made of a passphrase: the salt, and the memory (KiB) and passes of Argon2id; zero: the
        /// user's key is in a file.
        passphrase_salt: [u8; 16],
        /// See there.
        passphrase_cost: [u64; 2],
        /// The tag over the header's page, with this field and `hash` zero, the BLAKE2s digest of the stub, and the array of
        /// sections.
        seal_proof: [u8; 16],
    }
}

/// Bits of [`Header::flags`].
pub mod header_flag {
    /// Whoever wrote the image has ended its processes: that run did not come to an end of its own.
    pub const ENDED: u64 = 1;
    /// The file was an older checkpoint once, and was brought up to date in place.
    pub const RENEWED: u64 = 2;
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
        /// xxh3 of the ELF section table, and the header behind it if that lies there: from the end of the section table to
        /// this trailer.
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
        /// Which process of the image it belongs to, from 0; [`WHOLE_IMAGE`].
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

record! {
    /// A piece of content: memory of a process, or a part of a file that is an [`Object`]. Pages of zeros
    /// and holes are in none. The array is sorted by process, object and address, and no two chunks
    /// overlap.
    Chunk, 72, {
        /// Whose memory; [`WHOLE_IMAGE`] of a part of an object.
        process: u32,
        /// The object, counted from 0; [`NO_OBJECT`] of memory.
        object: u32,
        /// Address, or offset in the object; a multiple of the page size.
        address: u64,
        /// Offset of the first byte in the file.
        offset: u64,
        /// Checksum of the bytes in the file; of a sealed one, the first half of its tag.
        hash: u64,
        /// Bytes of content, at most [`CHUNK_MAX`]: of memory, whole pages.
        len: u32,
        /// Bytes in the file, at most [`CHUNK_MAX`]. Of [`Codec::Plain`], `len` rounded up to whole pages with zeros.
        stored: u32,
        /// A [`Codec`] as a number.
        codec: u32,
        /// How many of the [`Owner`]s lie in it.
        locks: u32,
        /// The first of these.
        first_lock: u32,
        /// Of a sealed one: which of the image's blocks it is in, from 0.
        block: u32,
        /// Of another codec: bytes of content that were encoded as one, of which this is a part; 0: `len`.
        whole: u32,
        /// Where in these it begins.
        skip: u32,
        /// Of a sealed one: the other half of its tag.
        tag: u64,
    }
}

impl Chunk {
    /// The same of two chunks that have the same content at each address that both have: that from the same place of
    /// the file.
    #[must_use]
    pub fn origin(&self) -> (u64, u64) {
        match self.codec == Codec::Plain as u32 {
            true => (0, self.offset.wrapping_sub(self.address)),
            false => (self.offset, u64::from(self.skip).wrapping_sub(self.address)),
        }
    }
}

codes! {
    /// How a chunk's content lies in the file.
    Codec: u32 {
        /// As it is.
        Plain = 0,
        /// An LZ4 block.
        Lz4 = 1,
        /// As it is, in whole pages, encrypted (AES-256-GCM). The tag is in the [`Chunk`], so that pages lie at those of the file.
        Sealed = 2,
        /// An LZ4 block, encrypted.
        SealedLz4 = 3,
    }
}

codes! {
    /// What a section holds.
    SectionKind: u32 {
        /// Bytes that [`Text`] points into.
        Strings = 1,
        /// One [`Machine`].
        Machine = 2,
        /// One [`ProcessRecord`]; those of all processes are the index of the image: they are numbered from 0 without gaps.
        Process = 3,
        /// [`Thread`]s, the main one first.
        Threads = 4,
        /// Bytes that [`Thread::xstate`] points into.
        Xstate = 5,
        /// [`VmaRecord`]s by address.
        Vmas = 6,
        /// [`Chunk`]s.
        Chunks = 7,
        /// [`Descriptor`]s by number.
        Descriptors = 8,
        /// 64 [`SignalAction`]s, for signals 1 to 64.
        SignalActions = 9,
        /// [`PendingSignal`]s in the order of their queues.
        PendingSignals = 10,
        /// 16 [`LimitRecord`]s by resource number.
        Limits = 11,
        /// What is in a descriptor of another kind than a file's; [`Section::index`] is [`Descriptor::content`].
        Content = 12,
        /// [`Object`]s: files whose content is in the image, and memory that VMAs or descriptors share.
        Objects = 13,
        /// [`LossRecord`]s: what was left out.
        Losses = 14,
        /// Interval and POSIX timers.
        Timers = 15,
        /// The auxiliary vector as the kernel gave it.
        Auxv = 16,
        /// [`Guard`]s by address.
        Guards = 17,
        /// [`Owner`]s: the robust mutexes that threads hold.
        Owners = 18,
        /// [`Member`]s: the processes of the tree, where there are several.
        Tree = 19,
        /// [`SystemV`] objects of the processes.
        SystemV = 20,
        /// What is in those: values of semaphores in two bytes each, messages behind their length in four bytes, type first.
        SystemVContent = 21,
        /// [`Undo`]s of a process.
        Undo = 22,
        /// [`FileLock`]s.
        Locks = 23,
        /// One [`Screen`], if the processes had a terminal that is somebody else's.
        Screen = 24,
        /// [`NumaPolicy`]s: of threads, then of memory.
        Policies = 25,
        /// [`Filter`]s, each behind those before it.
        Filters = 26,
        /// Their programs: struct sock_filter.
        FilterCode = 27,
        /// [`CpuLeaf`]s of the machine where the image was written.
        Cpuid = 32,
    }
}

impl SectionKind {
    /// Whether each process of an image has a section of this kind, and not the image as a whole.
    pub fn is_of_process(self) -> bool {
        match self {
            Self::Strings
            | Self::Machine
            | Self::Chunks
            | Self::Objects
            | Self::Losses
            | Self::Tree
            | Self::SystemV
            | Self::SystemVContent
            | Self::Screen
            | Self::Cpuid => false,
            Self::Process
            | Self::Threads
            | Self::Xstate
            | Self::Vmas
            | Self::Descriptors
            | Self::SignalActions
            | Self::PendingSignals
            | Self::Limits
            | Self::Content
            | Self::Timers
            | Self::Auxv
            | Self::Guards
            | Self::Locks
            | Self::Policies
            | Self::Filters
            | Self::FilterCode
            | Self::Owners
            | Self::Undo => true,
        }
    }
}
