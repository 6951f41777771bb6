//! Reading and checking an image. Nothing in it is believed before its checksum was.

use super::{PAGE, hash, strings};
use crate::error::{Because, Error, Kind, Result};
use ckpt_abi::image::{
    FORMAT, HEADER_MAGIC, Header, KNOWN_NEEDS, PageRun, RUN_MAX, Section, SectionKind,
    TRAILER_MAGIC, Text, Trailer,
};
use nix::fcntl::OFlag;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Most sections that an image can have.
const SECTIONS_MAX: u32 = 1 << 20;

/// Opens what may be a checkpoint; a FIFO of that name makes nobody wait.
///
/// # Errors
/// Those of open(2).
pub fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// An image whose header and section table are sound.
pub struct Image {
    file: File,
    path: PathBuf,
    header: Header,
    trailer: Trailer,
    sections: Vec<Section>,
    strings: Vec<u8>,
}

impl Image {
    /// The header of the image that rides on `file`; None when none does.
    ///
    /// # Errors
    /// When a trailer is there but its checksum or the header's is wrong.
    pub fn find(file: &File) -> Result<Option<Header>> {
        match find_trailer(file)? {
            Some(trailer) => read_header(file, &trailer).map(Some),
            None => Ok(None),
        }
    }

    /// Opens a checkpoint file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path).because(|| format!("cannot open {}", path.display()))?;
        Self::from_file(file, path)
    }

    /// Reads the head of a checkpoint file; `path` is its name in sentences.
    pub fn from_file(file: File, path: &Path) -> Result<Self> {
        let named = || path.display().to_string();
        let trailer = find_trailer(&file).because(named)?.ok_or_else(|| {
            Error::new(format!("{} is not a checkpoint, or was cut off", path.display()))
        })?;
        let header = read_header(&file, &trailer).because(named)?;
        let sections = read_sections(&file, &header).because(named)?;
        let mut image =
            Self { file, path: path.into(), header, trailer, sections, strings: Vec::new() };
        image.strings = image.bytes(SectionKind::Strings, 0)?;
        Ok(image)
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file's name, for sentences.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// A string of the image.
    pub fn text(&self, text: Text) -> OsString {
        strings::get(&self.strings, text)
    }

    /// The bytes of a section, checked.
    pub fn bytes(&self, kind: SectionKind, index: u32) -> Result<Vec<u8>> {
        let section = self.section(kind, index)?;
        let mut bytes = self.padded(section)?;
        bytes.truncate(section.len as usize);
        Ok(bytes)
    }

    /// The records of a section, checked; fields that the writer did not know are zero.
    pub fn records<T: FromBytes + IntoBytes>(&self, kind: SectionKind) -> Result<Vec<T>> {
        let section = self.section(kind, 0)?;
        let written = (section.record_len as usize).max(1);
        let bytes = self.bytes(kind, 0)?;
        let records = bytes.chunks_exact(written).map(|record| {
            let mut value = T::new_zeroed();
            let known = written.min(size_of::<T>());
            value.as_mut_bytes()[..known].copy_from_slice(&record[..known]);
            value
        });
        Ok(records.collect())
    }

    /// The single record of a section.
    pub fn record<T: FromBytes + IntoBytes>(&self, kind: SectionKind) -> Result<T> {
        let mut records = self.records(kind)?;
        records.pop().ok_or_else(|| self.damaged(&format!("its section {kind:?} is empty")))
    }

    /// Checks every byte of the file.
    pub fn verify(&self) -> Result<()> {
        self.verify_frame()?;
        for run in &self.page_runs()? {
            self.read_run(run)?;
        }
        Ok(())
    }

    /// Checks every byte but those of the page runs, which are checked when they are read.
    pub fn verify_frame(&self) -> Result<()> {
        let mut stub = vec![0; self.header.start as usize];
        self.read(0, &mut stub)?;
        if hash(&stub) != self.header.stub_hash {
            return Err(self.damaged("the checksum of its stub is wrong"));
        }
        let start = self.trailer.elf_table;
        let mut table =
            vec![0; (self.trailer.file_len - size_of::<Trailer>() as u64 - start) as usize];
        self.read(start, &mut table)?;
        if hash(&table) != self.trailer.elf_hash {
            return Err(self.damaged("the checksum of its ELF table is wrong"));
        }
        for section in &self.sections {
            self.padded(section)?;
        }
        let mut end = self.header.start + PAGE;
        let mut runs = self.page_runs()?;
        runs.sort_by_key(|run| run.offset);
        for run in &runs {
            if run.offset != end {
                return Err(self.damaged("its page runs have gaps"));
            }
            end += run.len;
        }
        Ok(())
    }

    /// The page runs by address.
    pub fn page_runs(&self) -> Result<Vec<PageRun>> {
        self.records(SectionKind::PageRuns)
    }

    /// Reads the pages of a run, checked.
    pub fn read_run(&self, run: &PageRun) -> Result<Vec<u8>> {
        if run.len > RUN_MAX || !run.len.is_multiple_of(PAGE) {
            return Err(self.damaged("a page run has an impossible length"));
        }
        let mut bytes = vec![0; run.len as usize];
        self.read_run_into(run, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`Image::read_run`] into memory of that length.
    pub fn read_run_into(&self, run: &PageRun, bytes: &mut [u8]) -> Result<()> {
        self.read(run.offset, bytes)?;
        if hash(bytes) != run.hash {
            let what = format!("the checksum of the pages at {:#x} is wrong", run.addr);
            return Err(self.damaged(&what));
        }
        Ok(())
    }

    /// An error about this file.
    pub fn damaged(&self, what: &str) -> Error {
        Error::new(format!("{} is damaged: {what}", self.path.display()))
            .of(Kind::Damaged)
            .hint("restart an older checkpoint or another copy")
    }

    fn section(&self, kind: SectionKind, index: u32) -> Result<&Section> {
        let mut named = self.sections.iter();
        named
            .find(|s| s.kind == kind as u32 && s.index == index)
            .ok_or_else(|| self.damaged(&format!("it has no section {kind:?}")))
    }

    fn padded(&self, section: &Section) -> Result<Vec<u8>> {
        let len = section.len.checked_next_multiple_of(8).filter(|len| {
            section.offset.checked_add(*len).is_some_and(|end| end <= self.header.file_len)
        });
        let len = len.ok_or_else(|| self.damaged("a section lies outside the file"))?;
        let mut bytes = vec![0; len as usize];
        self.read(section.offset, &mut bytes)?;
        if hash(&bytes) != section.hash {
            let what = format!("the checksum of section {} is wrong", section.kind);
            return Err(self.damaged(&what));
        }
        Ok(bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(bytes, offset)
            .because(|| format!("cannot read {}", self.path.display()))
    }
}

fn find_trailer(file: &File) -> Result<Option<Trailer>> {
    let len = file.metadata().because(|| "cannot stat")?.len();
    let mut trailer = Trailer::new_zeroed();
    let Some(at) = len.checked_sub(size_of::<Trailer>() as u64) else { return Ok(None) };
    file.read_exact_at(trailer.as_mut_bytes(), at).because(|| "cannot read the trailer")?;
    if trailer.magic != TRAILER_MAGIC {
        return Ok(None);
    }
    let sum = std::mem::replace(&mut trailer.hash, 0);
    let fits = trailer.file_len == len
        && trailer.header.is_multiple_of(PAGE)
        && trailer.header.checked_add(PAGE).is_some_and(|end| end <= at)
        && trailer.elf_table <= at;
    if hash(trailer.as_bytes()) != sum || !fits {
        return Err(damage("damaged: its trailer is wrong, or the file was cut off or grew"));
    }
    trailer.hash = sum;
    Ok(Some(trailer))
}

fn read_header(file: &File, trailer: &Trailer) -> Result<Header> {
    let mut page = vec![0; PAGE as usize];
    file.read_exact_at(&mut page, trailer.header).because(|| "cannot read the header")?;
    let mut header = Header::new_zeroed();
    header.as_mut_bytes().copy_from_slice(&page[..size_of::<Header>()]);
    let at = std::mem::offset_of!(Header, hash);
    page[at..at + 8].fill(0);
    if header.magic != HEADER_MAGIC || hash(&page) != header.hash {
        return Err(damage("damaged: the checksum of its header is wrong"));
    }
    if header.format != FORMAT || header.needs & !KNOWN_NEEDS != 0 {
        let what = format!(
            "its format {} (needs {:#x}) is newer than this ckpt's {FORMAT}; run the file itself",
            header.format, header.needs
        );
        return Err(Error::new(what));
    }
    if header.file_len != trailer.file_len || header.start != trailer.header {
        return Err(damage("damaged: header and trailer disagree"));
    }
    Ok(header)
}

fn read_sections(file: &File, header: &Header) -> Result<Vec<Section>> {
    let (count, len) = (header.section_count, header.section_len);
    let total = u64::from(count) * u64::from(len);
    let end = header.sections.checked_add(total);
    if count > SECTIONS_MAX || len < 48 || end.is_none_or(|end| end > header.file_len) {
        return Err(damage("damaged: its section table lies outside the file"));
    }
    let mut bytes = vec![0; total as usize];
    file.read_exact_at(&mut bytes, header.sections).because(|| "cannot read the section table")?;
    if hash(&bytes) != header.sections_hash {
        return Err(damage("damaged: the checksum of its section table is wrong"));
    }
    let sections = bytes
        .chunks_exact(len as usize)
        .filter_map(|record| Section::read_from_prefix(record).ok().map(|(section, _)| section));
    Ok(sections.collect())
}

fn damage(what: &str) -> Error {
    Error::new(what).hint("restart an older checkpoint or another copy").of(Kind::Damaged)
}
