//! Phase 2: open every file that the program had open or mapped, and name all that are missing.

use super::callers;
use super::phase1_check::Saved;
use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::resource::descriptor::memory::memfd;
use crate::resource::descriptor::{self, Missing, Restored, Sources, epoll};
use crate::resource::{memory, process};
use ckpt_abi::image::{Descriptor, ObjectKind, SectionKind, Vma, VmaKind, vma_flag};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

/// What was opened.
pub struct Opened {
    /// The program's descriptors.
    pub descriptors: Vec<Restored>,
    /// Files of mappings, by index of the mapping.
    pub mapped: Vec<Option<Rc<File>>>,
    /// Shared memory objects.
    pub objects: Vec<Option<OwnedFd>>,
    /// What the epoll instances watch.
    pub watches: Vec<epoll::Watch>,
    /// Files that are not there, of a program that may name others in its restart callbacks.
    pub missing: Vec<Missing>,
}

struct FromImage<'a> {
    image: &'a Image,
    saved: &'a Saved,
    objects: &'a [Option<OwnedFd>],
}

impl Sources for FromImage<'_> {
    fn name(&self, record: &Descriptor) -> OsString {
        self.image.text(record.path)
    }

    fn path(&self, record: &Descriptor) -> PathBuf {
        self.saved.map_path.apply(super::path_of(self.image, record.path))
    }

    fn content(&self, index: u32) -> Result<Vec<u8>> {
        self.image.bytes(SectionKind::Content, index)
    }

    fn fill(&self, object: u32, file: &File) -> Result<()> {
        let record = self.saved.objects.get(object as usize);
        let record = record.ok_or_else(|| self.image.damaged("a descriptor has no object"))?;
        let first = self.saved.contents.partition_point(|c| c.object < object);
        for chunk in self.saved.contents[first..].iter().take_while(|c| c.object == object) {
            file.write_all_at(&self.image.read_chunk(chunk)?, chunk.address)
                .because(|| "cannot write it")?;
        }
        file.set_len(record.size).because(|| "cannot set its length")
    }

    fn object(&self, index: u32) -> Result<OwnedFd> {
        let object = self.objects.get(index as usize).and_then(Option::as_ref);
        let object = object.ok_or_else(|| self.image.damaged("a descriptor has no object"))?;
        object.try_clone().map_err(|e| Error::new(format!("cannot duplicate a memfd: {e}")))
    }
}

/// Opens everything.
pub fn open(image: &Image, saved: &Saved, warnings: &mut Vec<String>) -> Result<Opened> {
    let mut failures = Vec::new();
    let mut objects = Vec::new();
    for object in &saved.objects {
        if object.kind != ObjectKind::Memory as u32 {
            objects.push(None);
            continue;
        }
        let name = image.text(object.name);
        let name = name.to_string_lossy();
        let name = name.strip_prefix("/memfd:").unwrap_or("ckpt-shared");
        objects.push(Some(memfd(name, object.size)?));
    }
    let mapped = mapped(image, saved, warnings, &mut failures);
    let sources = FromImage { image, saved, objects: &objects };
    let mut missing = Vec::new();
    let tolerated = callers::of_image(image, saved)?.filter(callers::due).map(|_| &mut missing);
    let descriptors = match descriptor::open_all(&saved.descriptors, &sources, warnings, tolerated)
    {
        Ok(descriptors) => descriptors,
        Err(e) => {
            failures.push(e.to_string());
            Vec::new()
        }
    };
    // The directory last: until here relative paths are the restarter's.
    if let Err(e) = process::restore_directory(&saved.process, &saved.cwd) {
        failures.push(e.to_string());
    }
    if !failures.is_empty() {
        failures.dedup();
        return Err(Error::new(format!(
            "cannot restart {}: {}",
            image.path().display(),
            failures.join("; ")
        ))
        .hint("bring these back, or say where they are with --map-path OLD=NEW; nothing has been changed"));
    }
    let content = |index| image.bytes(SectionKind::Content, index);
    let watches = epoll::watches(&saved.descriptors, &descriptors, content)?;
    Ok(Opened { descriptors, mapped, objects, watches, missing })
}

/// The files of mappings, by index of the mapping; each is opened once, whatever maps it.
fn mapped(
    image: &Image,
    saved: &Saved,
    warnings: &mut Vec<String>,
    failures: &mut Vec<String>,
) -> Vec<Option<Rc<File>>> {
    let mut opened: HashMap<(PathBuf, [u64; 5]), Rc<File>> = HashMap::new();
    let mut open = |vma: &Vma| -> Result<Rc<File>> {
        let path = saved.map_path.apply(super::path_of(image, vma.name));
        let written = u64::from(vma.prot) & nix::libc::PROT_WRITE as u64;
        let may = vma.flags & vma_flag::MAY_WRITE;
        let mtime = vma.file_mtime.cast_unsigned();
        let key = (path, [vma.kind.into(), written, may, vma.file_size, mtime]);
        if let Some(file) = opened.get(&key) {
            return Ok(file.clone());
        }
        let file = Rc::new(memory::open::file(&key.0, vma, warnings)?);
        opened.insert(key, file.clone());
        Ok(file)
    };
    let mut mapped = Vec::new();
    for vma in &saved.vmas {
        let by_path =
            vma.kind == VmaKind::SharedFile as u32 || vma.kind == VmaKind::PrivateFile as u32;
        match by_path.then(|| open(vma)).transpose() {
            Ok(file) => mapped.push(file),
            Err(e) => failures.push(e.to_string()),
        }
    }
    mapped
}
