// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 3: open every file that the program had open or mapped, and name all that are missing.

use super::callers;
use super::phase1_check::{Saved, Whole};
use crate::error::{Because, Error, Result};
use crate::proc::Pid;
use crate::resource::descriptor::objects::Objects;
use crate::resource::descriptor::socket::Deputy;
use crate::resource::descriptor::{
    self, Missing, Origin, Restored, Sources, epoll, late, locks, pollable, shared, socket, unread,
};
use crate::resource::memory::hugetlb;
use crate::resource::{memory, process, regained};
use crate::rights::{Rights, open_for};
use ckpt_abi::image::{EpollEntry, SectionKind, Text, VmaKind, VmaRecord, vma_flag};
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

/// What was opened.
pub(crate) struct Opened {
    /// The program's descriptors.
    pub descriptors: Vec<Restored>,
    /// The numbers of those that no other process has before it.
    pub led: HashSet<u32>,
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
    way: Way,
    /// What is said before a failure of each process.
    whose: &'a [String],
    rights: &'a [Option<Rights>],
}

/// What cannot be had, each once: who shares it fails in the same way.
#[derive(Default)]
struct Failures {
    known: HashSet<String>,
    said: Vec<String>,
    /// Whether something is missing: not only names and ports that others have, or room.
    missing: bool,
}

impl Failures {
    fn add(&mut self, whose: &str, error: &Error) {
        let text = error.to_string();
        if self.known.insert(text.clone()) {
            self.said.push(format!("{whose}{text}"));
            let is_there = [Errno::EADDRINUSE as i32, Errno::EMFILE as i32];
            self.missing |= !is_there.contains(&error.errno());
        }
    }
}

/// Which of several processes it is.
fn whose(saved: &Saved<'_>) -> String {
    let name = saved.threads.first().map_or(&[][..], |thread| &thread.name);
    let name = String::from_utf8_lossy(name);
    format!("of {} ({}), ", name.trim_end_matches('\0'), saved.process.pid)
}

impl Sources for FromImage<'_> {
    fn text(&self, text: Text) -> OsString {
        self.whole.image.text(text)
    }

    fn place(&self, path: Text) -> PathBuf {
        self.whole.path(path)
    }

    fn content(&self, process: u32, index: u32) -> Result<Vec<u8>> {
        self.whole.image.process(process).bytes(SectionKind::Content, index)
    }

    fn whose(&self, process: u32) -> &str {
        self.whose.get(process as usize).map_or("", String::as_str)
    }

    fn rights(&self, process: u32) -> Option<&Rights> {
        self.rights.get(process as usize)?.as_ref()
    }

    fn port(&self, port: u16) -> u16 {
        self.whole.map_port.apply(port)
    }

    fn keeps_tcp(&self) -> bool {
        self.whole.keeps_tcp && self.way == Way::Restart
    }

    fn is_rehearsal(&self) -> bool {
        self.way == Way::Rehearsal
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

    fn fill_memory(&self, object: u32, memory: &mut [u8]) -> Result<()> {
        self.whole.read(object, memory)
    }
}

/// Why everything is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The program follows.
    Restart,
    /// Only to see whether it could: nothing of the caller's is read.
    Rehearsal,
}

/// What was opened for all processes of an image, before they are made: they inherit it.
pub(crate) struct Files {
    descriptors: Vec<Vec<Restored>>,
    mapped: Vec<Vec<Option<Rc<File>>>>,
    objects: Objects,
    entries: Vec<Vec<(u32, EpollEntry)>>,
    missing: Vec<Missing>,
    sockets: Option<socket::Made>,
}

/// Opens everything but for what waits in sockets ([`Files::finish`]).
#[inline(never)]
pub(crate) fn open(
    whole: &Whole<'_>,
    all: &[&Saved<'_>],
    way: Way,
    warnings: &mut Vec<String>,
) -> Result<Files> {
    let mut failures = Failures::default();
    let several = all.len() > 1;
    let names: Vec<_> =
        all.iter().map(|saved| if several { whose(saved) } else { String::new() }).collect();
    let rights = |saved: &&Saved<'_>| regained::rights(&saved.process, &saved.supplementary);
    let rights: Vec<_> = match way {
        Way::Restart => all.iter().map(rights).collect(),
        Way::Rehearsal => Vec::new(),
    };
    let sources = FromImage { whole, way, whose: &names, rights: &rights };
    let mut objects = Objects::make(&whole.objects, &sources)?;
    warnings.extend(hugetlb::lacking(objects.lacking));
    let each = || all.iter().zip(&names);
    let mapped = each().map(|(saved, whose)| {
        let rights = sources.rights(saved.part.number());
        mapped(whole, saved, rights, warnings, &mut |error| failures.add(whose, &error))
    });
    let mapped = mapped.collect();
    let mut missing = Vec::new();
    let first = all.first().map(|first| callers::of_image(first)).transpose()?.flatten();
    let tolerated = first.filter(callers::due).map(|_| &mut missing);
    let records: Vec<_> = all.iter().map(|saved| &saved.descriptors[..]).collect();
    let opened = descriptor::open_all(&records, &sources, &mut objects, warnings, tolerated);
    let (mut descriptors, sockets) = opened.unwrap_or_else(|e| {
        failures.add("", &e);
        (Vec::new(), None)
    });
    for (saved, whose) in each() {
        let found = process::find_directory(&saved.process, &saved.cwd, way == Way::Restart);
        found.map_or_else(|error| failures.add(whose, &error), drop);
    }
    if !failures.said.is_empty() {
        let (path, said) = (whole.image.path().display(), failures.said.join("; "));
        return Err(Error::new(format!("cannot restart {path}: {said}")).hint(match failures.missing {
            true => "bring these back, or say where they are with --map-path OLD=NEW; nothing was started",
            false => "nothing was started",
        }));
    }
    let mut entries = Vec::new();
    for (saved, descriptors) in all.iter().zip(&mut descriptors) {
        let content = |index| saved.part.bytes(SectionKind::Content, index);
        if way == Way::Restart {
            unread::put_first(descriptors, content, warnings)?;
        }
        let own = epoll::entries(saved.part.number(), &saved.descriptors, content)?;
        let watched = |fd| own.iter().any(|(_, entry)| entry.source == fd);
        if way == Way::Restart {
            pollable::make(descriptors, watched, warnings)?;
        }
        entries.push(own);
    }
    if way == Way::Restart {
        let held: Vec<_> = all.iter().map(|saved| &saved.locks[..]).collect();
        locks::take(&descriptors, &held, |record| whole.path(record.path).display().to_string())?;
    }
    Ok(Files { descriptors, mapped, objects, entries, missing, sockets })
}

impl Files {
    /// Connects sockets and fills them, once, by processes of the ids that others learn from that, where they may be had.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn finish(
        &mut self,
        whole: &Whole<'_>,
        deputy: Option<Deputy<'_>>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let Some(sockets) = self.sockets.take() else { return Ok(()) };
        let all = &self.descriptors;
        let watch = || epoll::watch_under_way(&self.entries, all);
        sockets.finish(all, deputy, &watch, warnings).map_err(|error| {
            let path = whole.image.path().display();
            Error::new(format!("cannot restart {path}: {error}")).hint("nothing was started")
        })
    }

    /// A slave of the pseudo-terminal that had this number, if it was made.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn terminal(&self, number: u32) -> Result<Option<OwnedFd>> {
        descriptor::pty::slave_of(&self.descriptors, number)
    }

    /// What a process has of it; called in that process, in whose directory it is from now on.
    ///
    /// # Errors
    /// There is no such directory any more, or no process of which it has a descriptor.
    pub(crate) fn of_process(mut self, saved: &Saved<'_>) -> Result<Opened> {
        process::restore_directory(&saved.process, &saved.cwd)?;
        let (number, index) = (saved.part.number(), saved.part.number() as usize);
        let own = self.descriptors.get(index).into_iter().flatten();
        let led = own.filter(|r| matches!(r.origin, Origin::Own(_))).map(|r| r.record.fd).collect();
        let mut descriptors = shared::of_process(self.descriptors, number);
        let own = Pid::of_word(saved.process.pid);
        late::open_all(&mut descriptors, own, |text| saved.part.image().text(text))?;
        let entries = self.entries.get(index).map(Vec::as_slice).unwrap_or_default();
        let watches = epoll::watches(entries, &descriptors);
        let missing = if saved.part.is_first() { self.missing } else { Vec::new() };
        let mapped = self.mapped.swap_remove(index);
        // Another process may have them under the same numbers, in the same table; who leaves closes what is not its own.
        std::mem::forget(self.mapped);
        Ok(Opened { descriptors, led, mapped, objects: self.objects, watches, missing })
    }
}

/// The files of mappings, by index of the mapping; each is opened once, whatever maps it.
#[inline(never)]
fn mapped(
    whole: &Whole<'_>,
    saved: &Saved<'_>,
    rights: Option<&Rights>,
    warnings: &mut Vec<String>,
    fails: &mut dyn FnMut(Error),
) -> Vec<Option<Rc<File>>> {
    let mut opened: HashMap<(PathBuf, [u64; 5]), Rc<File>> = HashMap::new();
    let mut open = |vma: &VmaRecord| -> Result<Rc<File>> {
        let path = whole.path(vma.name);
        let written = u64::from(vma.prot) & nix::libc::PROT_WRITE as u64;
        let may = vma.flags & vma_flag::MAY_WRITE;
        let mtime = vma.file_mtime.cast_unsigned();
        let key = (path, [vma.kind.into(), written, may, vma.file_size, mtime]);
        if let Some(file) = opened.get(&key) {
            return Ok(file.clone());
        }
        let file = open_for(rights, &key.0, (vma.file_device, vma.file_inode), || {
            memory::open::file(&key.0, vma, warnings)
        });
        let file = Rc::new(file?);
        opened.insert(key, file.clone());
        Ok(file)
    };
    let mut mapped = Vec::new();
    for vma in &saved.vmas {
        let by_path =
            vma.kind == VmaKind::SharedFile as u32 || vma.kind == VmaKind::PrivateFile as u32;
        match by_path.then(|| open(vma)).transpose() {
            Ok(file) => mapped.push(file),
            Err(e) => fails(e),
        }
    }
    mapped
}
