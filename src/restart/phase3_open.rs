// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 3: open every file that the program had open or mapped, and name all that are missing.

use super::callers;
use super::phase1_check::{Saved, Whole};
use crate::error::{Because, Error, Result};
use crate::resource::descriptor::objects::Objects;
use crate::resource::descriptor::{self, Missing, Restored, Sources, epoll, pollable, unread};
use crate::resource::{memory, process};
use ckpt_abi::image::{SectionKind, Text, Vma, VmaKind, vma_flag};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

/// What was opened.
pub struct Opened {
    /// The program's descriptors.
    pub descriptors: Vec<Restored>,
    /// Files of mappings, by index of the mapping.
    pub mapped: Vec<Option<Rc<File>>>,
    /// Files whose content is in the image, and shared memory.
    pub objects: Objects,
    /// What the epoll instances watch.
    pub watches: Vec<epoll::Watch>,
    /// Files that are not there, of a program that may name others in its restart callbacks.
    pub missing: Vec<Missing>,
}

struct FromImage<'a> {
    whole: &'a Whole<'a>,
    saved: &'a Saved<'a>,
}

impl Sources for FromImage<'_> {
    fn text(&self, text: Text) -> OsString {
        self.whole.image.text(text)
    }

    fn place(&self, path: Text) -> PathBuf {
        self.whole.path(path)
    }

    fn content(&self, index: u32) -> Result<Vec<u8>> {
        self.saved.part.bytes(SectionKind::Content, index)
    }

    fn fill(&self, object: u32, file: &File) -> Result<()> {
        let Whole { image, objects, .. } = self.whole;
        let record = objects.get(object as usize);
        let record = record.ok_or_else(|| image.damaged("a descriptor has no object"))?;
        for chunk in self.whole.content(object) {
            file.write_all_at(&image.read_chunk(chunk)?, chunk.address)
                .because(|| "cannot write it")?;
        }
        file.set_len(record.size).because(|| "cannot set its length")
    }
}

/// Why everything is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The program follows.
    Restart,
    /// Only to see whether it could: nothing of the caller's is read.
    Rehearsal,
}

/// Opens everything.
pub fn open(
    whole: &Whole<'_>,
    saved: &Saved<'_>,
    way: Way,
    warnings: &mut Vec<String>,
) -> Result<Opened> {
    let mut failures = Vec::new();
    let sources = FromImage { whole, saved };
    let mut objects = Objects::make(&whole.objects, &sources)?;
    let mapped = mapped(whole, saved, warnings, &mut failures);
    let mut missing = Vec::new();
    let tolerated = callers::of_image(saved)?.filter(callers::due).map(|_| &mut missing);
    let mut descriptors =
        match descriptor::open_all(&saved.descriptors, &sources, &mut objects, warnings, tolerated)
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
            whole.image.path().display(),
            failures.join("; ")
        ))
        .hint("bring these back, or say where they are with --map-path OLD=NEW; nothing has been changed"));
    }
    let content = |index| saved.part.bytes(SectionKind::Content, index);
    if way == Way::Restart {
        unread::put_first(&mut descriptors, content, warnings)?;
    }
    let entries = epoll::entries(&saved.descriptors, content)?;
    let watched = |fd| entries.iter().any(|(_, entry)| entry.source == fd);
    if way == Way::Restart {
        pollable::make(&mut descriptors, watched, warnings)?;
    }
    let watches = epoll::watches(&entries, &descriptors);
    Ok(Opened { descriptors, mapped, objects, watches, missing })
}

/// The files of mappings, by index of the mapping; each is opened once, whatever maps it.
fn mapped(
    whole: &Whole<'_>,
    saved: &Saved<'_>,
    warnings: &mut Vec<String>,
    failures: &mut Vec<String>,
) -> Vec<Option<Rc<File>>> {
    let mut opened: HashMap<(PathBuf, [u64; 5]), Rc<File>> = HashMap::new();
    let mut open = |vma: &Vma| -> Result<Rc<File>> {
        let path = whole.path(vma.name);
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
