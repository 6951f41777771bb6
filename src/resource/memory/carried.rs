// SPDX-License-Identifier: LGPL-2.1-only
//! Files with a name by which processes share memory: those in memory (/dev/shm: shm_open(3), sem_open(3)), and small
//! ones that several processes of the checkpoint map and write. What they hold belongs to the processes, so it travels;
//! a restart makes each anew, under its name. Data that is only read is left alone, however large it is.

use super::{WHOLE_MAX, hugetlb, leave_to_streams};
use crate::proc::Pid;
use crate::proc::{Process, tree};
use crate::resource::descriptor::{access, kind, only_names};
use crate::resource::{Common, Gathered, Stream};
use ckpt_abi::image::{
    DescriptorKind, Object, ObjectKind, Text, VmaKind, VmaRecord, object_flag, vma_flag,
};
use nix::libc;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use zerocopy::FromZeros;

/// Device and inode number.
type Id = (u64, u64);

/// A file that processes of the checkpoint map and share.
struct Candidate {
    name: Text,
    found: PathBuf,
    by: Process,
    processes: u32,
    writable: bool,
}

/// Makes objects of the files that travel: what shows them, in whatever process, refers to these.
#[inline(never)]
pub(crate) fn carry<'a>(
    processes: impl IntoIterator<Item = (&'a mut Gathered, &'a mut Vec<super::Area>)>,
    common: &mut Common,
) {
    let mut processes: Vec<_> = processes.into_iter().collect();
    let mut candidates = candidates(processes.iter().map(|(gathered, _)| &**gathered));
    candidates.retain(|_, file| file.travels());
    let mut objects: BTreeMap<Id, u32> = BTreeMap::new();
    for (id, file) in candidates {
        let meta = File::open(&file.found).and_then(|opened| opened.metadata());
        let Some(meta) = meta.ok().filter(|meta| (meta.dev(), meta.ino()) == id) else { continue };
        let index = common.objects.len() as u32;
        let time = |seconds: i64, rest| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        common.objects.push(Object {
            kind: ObjectKind::Named as u32,
            mode: meta.mode(),
            size: meta.len(),
            inode: id.1,
            device: id.0,
            name: file.name,
            user: meta.uid(),
            group: meta.gid(),
            accessed: time(meta.atime(), meta.atime_nsec()),
            modified: time(meta.mtime(), meta.mtime_nsec()),
            flags: object_flag::WHOLE,
            ..Object::new_zeroed()
        });
        common.streams.push(Stream {
            object: index,
            path: file.found,
            _by: Some(file.by),
            segment: None,
        });
        objects.insert(id, index);
    }
    if objects.is_empty() {
        return;
    }
    for (gathered, areas) in &mut processes {
        for vma in gathered.vmas.iter_mut().filter(|vma| is_shared(vma)) {
            let Some(index) = objects.get(&(vma.file_device, vma.file_inode)) else { continue };
            (vma.kind, vma.object) = (VmaKind::Shared as u32, *index);
            vma.flags &= !(vma_flag::CARRIED | vma_flag::MAY_WRITE);
        }
        leave_to_streams(areas, gathered, common);
        for fd in &mut gathered.descriptors {
            let object = objects.get(&(fd.device, fd.inode));
            let named = kind(fd) == DescriptorKind::Path && !only_names(fd.flags);
            if let Some(index) = object.filter(|_| named) {
                fd.kind = DescriptorKind::Deleted as u32;
                (fd.content, fd.extra) = (*index, 0);
            }
        }
    }
}

fn is_shared(vma: &VmaRecord) -> bool {
    vma.kind == VmaKind::SharedFile as u32
}

/// All files that are mapped and shared.
fn candidates<'a>(processes: impl Iterator<Item = &'a Gathered>) -> BTreeMap<Id, Candidate> {
    let mut all: BTreeMap<Id, Candidate> = BTreeMap::new();
    let mut written: HashSet<Id> = HashSet::new();
    for gathered in processes {
        let mut own: HashSet<Id> = HashSet::new();
        for vma in gathered.vmas.iter().filter(|vma| is_shared(vma)) {
            let id = (vma.file_device, vma.file_inode);
            let found = || gathered.files.as_ref().and_then(|files| files.found(id));
            let Some(file) = (match all.contains_key(&id) {
                true => all.get_mut(&id),
                false => found().map(|(found, by)| {
                    let (name, found, by) = (vma.name, found.to_path_buf(), by.clone());
                    let new = Candidate { name, found, by, processes: 0, writable: false };
                    all.entry(id).or_insert(new)
                }),
            }) else {
                continue;
            };
            file.processes += u32::from(own.insert(id));
            file.writable |= vma.flags & vma_flag::MAY_WRITE != 0;
        }
        let writers = gathered.descriptors.iter().filter(|fd| access(fd.flags) != libc::O_RDONLY);
        written.extend(writers.map(|fd| (fd.device, fd.inode)));
    }
    all.iter_mut().for_each(|(id, file)| file.writable |= written.contains(id));
    all
}

impl Candidate {
    fn travels(&self) -> bool {
        let in_memory = || statfs(&self.found).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
        let small = || fs::metadata(&self.found).is_ok_and(|meta| meta.len() <= WHOLE_MAX);
        // Nothing can be written to files of hugetlbfs but through a mapping.
        let small = || small() && hugetlb::page_of(&self.found) == 0;
        self.writable && (in_memory() || (self.processes > 1 && small()))
    }
}

/// Marks what processes outside of the checkpoint use, too, and names it: it is not the checkpoint's alone. They are
/// looked for among those that are older than this process, when the checkpoint's, `inside`, may go on already.
pub(crate) fn look_outside(common: &mut Common, inside: &HashSet<Pid>) -> Vec<String> {
    let own = Pid::own();
    let now = tree::kin(own).map_or(u64::MAX, |kin| kin.start);
    let spared = |pid: Pid| {
        inside.contains(&pid) || tree::kin(pid).is_ok_and(|kin| kin.ours || kin.start >= now)
    };
    let named = |o: &Object| o.kind == ObjectKind::Named as u32;
    let all: HashSet<Id> =
        common.objects.iter().filter(|o| named(o)).map(|o| (o.device, o.inode)).collect();
    let users = users(all, spared);
    let mut losses = Vec::new();
    for object in common.objects.iter_mut().filter(|o| named(o)) {
        let Some(who) = users.get(&(object.device, object.inode)) else { continue };
        object.flags |= object_flag::OUTSIDE;
        let name = common.strings.get(object.name);
        losses.push(format!(
            "what {} holds: {who} uses it, too, so a restart finds it as it is then",
            name.display()
        ));
    }
    losses
}

/// A process that has a file open or mapped, if one is to be seen, by its name and id.
pub(crate) fn user(id: Id) -> Option<String> {
    users([id].into(), |_| false).remove(&id)
}

/// For each of the files that a process has open or mapped: the first such one. Every process of the machine is looked at
/// once, however many files there are.
fn users(mut wanted: HashSet<Id>, spared: impl Fn(Pid) -> bool) -> HashMap<Id, String> {
    let mut users = HashMap::new();
    let own = Pid::own();
    for pid in tree::pids().unwrap_or_default().into_iter().filter(|pid| *pid != own) {
        if wanted.is_empty() {
            break;
        }
        let Ok(process) = Process::glimpse(pid) else { continue };
        let mapped = process.maps().unwrap_or_default();
        let mut has: Vec<Id> = mapped.iter().map(|vma| (vma.device, vma.inode)).collect();
        has.extend(open_files(&process));
        has.retain(|id| wanted.contains(id));
        if has.is_empty() || spared(pid) {
            continue;
        }
        let name = process.name().unwrap_or_default();
        let who = format!("process {pid} ({})", AsRef::<OsStr>::as_ref(&name).display());
        for id in has {
            wanted.remove(&id);
            users.entry(id).or_insert_with(|| who.clone());
        }
    }
    users
}

fn open_files(process: &Process) -> impl Iterator<Item = Id> {
    let entries = fs::read_dir(process.path("fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::metadata(entry.path()).ok()).map(|meta| (meta.dev(), meta.ino()))
}
