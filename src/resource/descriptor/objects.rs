// SPDX-License-Identifier: LGPL-2.1-only
//! Files whose content is in the image: one for each device and inode, whatever shows it. Each description
//! of one is opened anew, so that it has an offset and an access mode of its own, and mappings show the same
//! pages.

use super::deleted::nameless;
use super::open::{reopened, seek};
use super::{Opening, Origin, Sources, access, memfd, named};
use crate::error::{Because, Error, Result};
use crate::proc::fds::Fd;
use crate::proc::{Pid, Process};
use crate::ptrace::raw;
use crate::resource::memory::hugetlb;
use crate::resource::{Common, Stream};
use ckpt_abi::image::{Descriptor, Object, ObjectKind, Text, object_flag};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use std::os::fd::OwnedFd;
use std::time::Duration;
use zerocopy::FromZeros;

/// Makes an object of the file behind a descriptor; its index. What a mapping of it has said before is
/// replaced by what the file itself says, and its content comes from the file.
pub(crate) fn save(
    process: &Process,
    fd: &Fd,
    kind: ObjectKind,
    name: Text,
    common: &mut Common,
) -> u32 {
    let objects = &mut common.objects;
    let known = objects.iter().position(|o| (o.device, o.inode) == (fd.device, fd.inode));
    let index = known.unwrap_or(objects.len());
    if known.is_none() {
        objects.push(Object::new_zeroed());
    }
    let page = match kind {
        ObjectKind::Memory => hugetlb::page_of(process.fd(fd.number)),
        _ => 0,
    };
    let Some(object) = objects.get_mut(index).filter(|o| o.flags & object_flag::WHOLE == 0) else {
        return index as u32;
    };
    *object = Object {
        kind: kind as u32,
        mode: fd.mode,
        size: fd.size,
        inode: fd.inode,
        device: fd.device,
        name,
        user: fd.user,
        group: fd.group,
        accessed: fd.atime_ns,
        modified: fd.mtime_ns,
        seals: if kind == ObjectKind::Memory { seals(process.pid(), fd) } else { 0 },
        flags: object_flag::WHOLE,
        page,
        reserved: [0; 2],
    };
    let (path, _by) = (process.fd(fd.number).into(), Some(process.clone()));
    common.streams.push(Stream { object: index as u32, path, _by, segment: None });
    index as u32
}

fn seals(pid: Pid, fd: &Fd) -> u32 {
    let ours = raw::take_descriptor(pid, fd.number.cast_signed());
    let seals = ours.and_then(|ours| fcntl(&ours, FcntlArg::F_GET_SEALS));
    seals.map_or(0, i32::cast_unsigned)
}

/// The objects of an image, as a restart has made them.
pub(crate) struct Objects {
    records: Vec<Object>,
    made: Vec<Option<OwnedFd>>,
    /// Some description of the program is the one that was made first.
    given: Vec<bool>,
    /// What gets a name when everything else is done.
    names: Vec<named::Name>,
    /// Bytes of huge pages for which there are ordinary ones.
    pub lacking: u64,
}

impl Objects {
    /// Makes all but those that may be found under their name.
    ///
    /// # Errors
    /// No room, or a damaged image.
    pub(crate) fn make(records: &[Object], sources: &dyn Sources) -> Result<Self> {
        let (mut made, mut names, mut lacking) = (Vec::new(), Vec::new(), 0);
        for (index, record) in (0u32..).zip(records) {
            made.push(match ObjectKind::try_from(record.kind) {
                Ok(ObjectKind::Memory) => Some(memory(index, record, sources, &mut lacking)?),
                Ok(ObjectKind::Deleted) => Some(file(index, record, sources)?),
                Ok(ObjectKind::Named) => {
                    let (file, name) = named::make(index, record, sources)?;
                    names.extend(name);
                    Some(file)
                }
                Ok(ObjectKind::Embedded | ObjectKind::Segment) | Err(_) => None,
            });
        }
        Ok(Self { records: records.to_vec(), given: vec![false; made.len()], made, names, lacking })
    }

    /// Gives those names that have some.
    ///
    /// # Errors
    /// A name cannot be given; those before it are.
    pub(crate) fn name_all(&self) -> Result<()> {
        self.names.iter().try_for_each(named::Name::give)
    }

    /// Makes one that was not found under its name.
    pub(crate) fn make_late(&mut self, index: u32, sources: &dyn Sources) -> Result<()> {
        let (Some(record), Some(made)) =
            (self.records.get(index as usize), self.made.get_mut(index as usize))
        else {
            return Err(no_object());
        };
        if made.is_none() {
            *made = Some(file(index, record, sources)?);
        }
        Ok(())
    }

    /// A description for the program, opened with these flags.
    ///
    /// The first that reads and writes is the one that memfd_create(2) has made: a file that was opened for
    /// writing by its path cannot be executed (ETXTBSY), one that was made so can.
    pub(crate) fn description(&mut self, index: u32, flags: u32) -> Result<OwnedFd> {
        const SYNC: i32 = libc::O_SYNC | libc::O_DSYNC;
        let index = index as usize;
        let file = self.made.get(index).and_then(Option::as_ref).ok_or_else(no_object)?;
        let plain = access(flags) == libc::O_RDWR && flags.cast_signed() & SYNC == 0;
        match self.given.get_mut(index) {
            Some(given) if plain && !*given => {
                *given = true;
                file.try_clone().because(|| "cannot duplicate a descriptor (ulimit -n)")
            }
            _ => reopened(file, flags),
        }
    }

    /// The identifier of System V shared memory.
    pub(crate) fn segment(&self, index: u32) -> Option<i32> {
        let record = self.records.get(index as usize)?;
        (record.kind == ObjectKind::Segment as u32).then_some(record.inode as i32)
    }

    /// A descriptor for a shared mapping, and the protection that it may have: what is sealed against
    /// writing must have no mapping that could be made writable.
    pub(crate) fn to_map(&self, index: u32) -> Result<(OwnedFd, u32)> {
        const READ: u32 = (libc::PROT_READ | libc::PROT_EXEC) as u32;
        let index = index as usize;
        let file = self.made.get(index).and_then(Option::as_ref).ok_or_else(no_object)?;
        let sealed = self.records.get(index).is_some_and(|o| o.seals & WRITE_SEAL != 0);
        match sealed {
            true => Ok((reopened(file, libc::O_RDONLY as u32)?, READ)),
            false => {
                let file = file.try_clone();
                Ok((file.because(|| "cannot duplicate a descriptor (ulimit -n)")?, u32::MAX))
            }
        }
    }

    /// Mode, owner, times and seals, when all descriptions are open and all mappings filled.
    ///
    /// # Errors
    /// A seal that cannot be set: the program, or another that it gives the descriptor to, counts on it.
    pub(crate) fn settle(&self) -> Result<()> {
        for (record, file) in self.records.iter().zip(&self.made) {
            let ours =
                record.flags & object_flag::WHOLE != 0 && record.flags & object_flag::OUTSIDE == 0;
            let Some(file) = file.as_ref().filter(|_| ours) else { continue };
            // Only root gives files away.
            let (user, group) = (Uid::from_raw(record.user), Gid::from_raw(record.group));
            let _ = fchown(file, Some(user), Some(group));
            let why = || "cannot set the mode and times of a file without a name";
            fchmod(file, Mode::from_bits_truncate(record.mode & 0o7777)).because(why)?;
            futimens(file, &time(record.accessed), &time(record.modified)).because(why)?;
            if record.seals != 0 {
                let seals = SealFlag::from_bits_retain(record.seals.cast_signed());
                fcntl(file, FcntlArg::F_ADD_SEALS(seals)).because(|| "cannot seal a memfd")?;
            }
        }
        Ok(())
    }
}

const WRITE_SEAL: u32 = libc::F_SEAL_WRITE as u32;

fn no_object() -> Error {
    Error::new("the image is damaged: a descriptor or mapping has no object")
}

fn time(nanoseconds: i64) -> TimeSpec {
    Duration::from_nanos(nanoseconds.max(0).cast_unsigned()).into()
}

fn memory(
    index: u32,
    record: &Object,
    sources: &dyn Sources,
    lacking: &mut u64,
) -> Result<OwnedFd> {
    let name = sources.text(record.name);
    let name = name.to_string_lossy();
    let name = name.strip_prefix(memfd::PREFIX).unwrap_or("ckpt-shared");
    if record.page != 0 {
        if let Some((file, mut memory)) = hugetlb::make(name, record.size, record.page) {
            sources.fill_memory(index, &mut memory)?;
            return Ok(file);
        }
        *lacking += record.size;
    }
    if record.flags & object_flag::WHOLE == 0 {
        return memfd::memfd(name, record.size);
    }
    let file = memfd::memfd(name, 0)?.into();
    sources.fill(index, &file)?;
    Ok(file.into())
}

fn file(index: u32, record: &Object, sources: &dyn Sources) -> Result<OwnedFd> {
    nameless(&sources.place(record.name), |file| sources.fill(index, file))
}

/// Opens a descriptor of an object.
pub(super) fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let file = opening.objects.description(record.content, record.flags)?;
    seek(&file, record, &opening.sources.path(record))?;
    Ok(Origin::Own(file))
}
