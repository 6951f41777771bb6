// SPDX-License-Identifier: LGPL-2.1-only
//! System V shared memory, semaphores and message queues (sysvipc(7)).
//!
//! The kernel does not say who uses one, but for mappings and for the last process that did something: an object is the
//! program's if a process of the checkpoint is among these, or waits in a call on it, and none that lives outside. What
//! others use, too, stays where it is. A restart makes the program's in an IPC namespace of its own, where every
//! identifier is free.

pub(crate) mod calls;
pub(crate) mod make;
pub(crate) mod undo;

use super::memory::{Area, hugetlb, leave_to_streams};
use super::{Common, Gathered, Stream, threads};
use crate::proc::stat::lives;
use crate::proc::sysv::{self, Entry};
use crate::proc::{Pid, Process, uptime};
use ckpt_abi::image::{NO_OBJECT, Object, ObjectKind, SystemV, SystemVKind, Thread, object_flag};
use nix::libc;
use std::collections::HashMap;
use zerocopy::FromZeros;

/// How many semaphores of a set are asked for their last user.
const ASKED: u64 = 1000;

/// The name of each kind in /proc.
const fn name(kind: SystemVKind) -> &'static str {
    match kind {
        SystemVKind::Segment => "shm",
        SystemVKind::Semaphores => "sem",
        SystemVKind::Messages => "msg",
    }
}

/// What it is for people.
const fn called(kind: SystemVKind) -> &'static str {
    match kind {
        SystemVKind::Segment => "shared memory",
        SystemVKind::Semaphores => "semaphores",
        SystemVKind::Messages => "message queue",
    }
}

/// An object that a process of the checkpoint uses, or may have made.
struct Found {
    kind: SystemVKind,
    entry: Entry,
    /// Its index among the objects, of a segment that is mapped.
    object: Option<u32>,
    /// A process of the checkpoint is known to use it.
    inside: bool,
    /// Somebody else, as is seen.
    outside: Option<String>,
}

/// The object on which a thread waits in a system call (semop(2), msgop(2)), which is no use of it until it is done.
fn awaited(thread: &Thread) -> Option<(SystemVKind, i32)> {
    let regs = threads::regs(thread);
    let call = if regs.orig_rax.cast_signed() < 0 { regs.rax } else { regs.orig_rax };
    let kind = match call.cast_signed() {
        libc::SYS_semop | libc::SYS_semtimedop => SystemVKind::Semaphores,
        libc::SYS_msgsnd | libc::SYS_msgrcv => SystemVKind::Messages,
        _ => return None,
    };
    Some((kind, regs.rdi as i32))
}

/// The sets of semaphores that one of these processes has changed last, with their values.
pub(crate) fn semaphores(pids: &[Pid]) -> Vec<(u32, Vec<u16>)> {
    if !is_ours(pids) {
        return Vec::new();
    }
    let sets = sysv::all(name(SystemVKind::Semaphores)).into_iter();
    let own =
        sets.filter(|set| users(SystemVKind::Semaphores, set).iter().any(|pid| pids.contains(pid)));
    own.filter_map(|set| {
        Some((set.id.cast_unsigned(), calls::values(set.id, set.size as usize).ok()?))
    })
    .collect()
}

/// Whether we see the objects that the processes see.
fn is_ours(pids: &[Pid]) -> bool {
    let namespace = |pid| Process::glimpse(pid).ok().and_then(|it| it.namespace("ipc"));
    pids.first().is_some_and(|pid| namespace(*pid) == namespace(Pid::own()))
}

/// Who has used one last.
fn users(kind: SystemVKind, entry: &Entry) -> Vec<Pid> {
    match kind {
        SystemVKind::Semaphores => {
            let all = 0..entry.size.min(ASKED) as i32;
            all.filter_map(|number| calls::last_user(entry.id, number).ok()).collect()
        }
        SystemVKind::Segment | SystemVKind::Messages => entry.users.to_vec(),
    }
}

/// Finds the objects of the processes and what is in them.
#[inline(never)]
pub(crate) fn save<'a>(
    processes: impl IntoIterator<Item = (&'a mut Gathered, &'a mut Vec<Area>)>,
    common: &mut Common,
) {
    find(processes, common);
    // What does not travel as a segment is memory of the processes, and no restart may touch what has the identifier then.
    let is_left =
        |o: &&mut Object| o.kind == ObjectKind::Segment as u32 && o.flags & object_flag::WHOLE == 0;
    for object in common.objects.iter_mut().filter(is_left) {
        object.kind = ObjectKind::Memory as u32;
    }
}

fn find<'a>(
    processes: impl IntoIterator<Item = (&'a mut Gathered, &'a mut Vec<Area>)>,
    common: &mut Common,
) {
    let mut processes: Vec<_> = processes.into_iter().collect();
    let pids = common.tables.pids();
    // Of each object how often it is mapped.
    let mut mapped: HashMap<u32, u64> = HashMap::new();
    for vma in processes.iter().flat_map(|(gathered, _)| &gathered.vmas) {
        *mapped.entry(vma.object).or_default() += 1;
    }
    if !is_ours(&pids) {
        let is_segment = |o: &&Object| o.kind == ObjectKind::Segment as u32;
        if common.objects.iter().any(|object| is_segment(&object)) {
            common.losses.push("System V objects of an IPC namespace that we cannot enter: shared memory becomes memory of the program alone".into());
        }
        return;
    }
    let of_segment = |entry: &Entry| {
        let segment = ObjectKind::Segment as u32;
        common.objects.iter().position(|o| o.kind == segment && o.inode == entry.id as u64)
    };
    let threads = processes.iter().flat_map(|(gathered, _)| &gathered.threads);
    let awaited: Vec<_> = threads.filter_map(awaited).collect();
    let mut all = Vec::new();
    for kind in SystemVKind::ALL.iter().copied() {
        for entry in sysv::all(name(kind)) {
            let object =
                of_segment(&entry).filter(|_| kind == SystemVKind::Segment).map(|o| o as u32);
            let users = users(kind, &entry);
            let inside = object.is_some()
                || users.iter().any(|pid| pids.contains(pid))
                || awaited.contains(&(kind, entry.id));
            let more = object.is_some_and(|o| mapped.get(&o).is_none_or(|n| *n < entry.attached));
            let outside =
                stranger(&users, &pids).or_else(|| more.then(|| "another process".into()));
            all.push(Found { kind, entry, object, inside, outside });
        }
    }
    let own = || all.iter().filter(|found| found.inside);
    if own().next().is_none() {
        return;
    }
    let begun = begun(pids[0]);
    let user = Process::glimpse(pids[0]).and_then(|first| first.main_status());
    let user = user.map_or(u32::MAX, |status| status.uid[1]);
    let mut saved = Saved::default();
    let mut why =
        own().find_map(|found| Some(format!("{} uses them, too", found.outside.as_ref()?)));
    if why.is_none() {
        for found in &all {
            // What a child that is gone has made, or nobody has used.
            let young = found.entry.changed >= begun && found.entry.user == user;
            if !found.inside && (!young || found.outside.is_some()) {
                continue;
            }
            if saved.add(found, common).is_err() && found.inside {
                why = Some("the kernel does not let us see what is in them".into());
                break;
            }
        }
    }
    if let Some(why) = why {
        let what: Vec<_> = own().map(|f| format!("{} {}", called(f.kind), f.entry.id)).collect();
        common.losses.push(format!(
            "System V objects ({}): {why}. A restart finds them as they are then, if at all, and has a copy of shared memory for itself",
            what.join(", ")
        ));
        return;
    }
    common.streams.extend(saved.streams);
    for (index, object) in saved.objects {
        match common.objects.get_mut(index as usize) {
            Some(known) => *known = Object { name: known.name, ..object },
            None => common.objects.push(object),
        }
    }
    (common.systemv, common.messages) = (saved.records, saved.content);
    for (gathered, areas) in &mut processes {
        leave_to_streams(areas, gathered, common);
    }
}

/// What was read of them.
#[derive(Default)]
struct Saved {
    records: Vec<SystemV>,
    content: Vec<u8>,
    objects: Vec<(u32, Object)>,
    streams: Vec<Stream>,
}

impl Saved {
    fn add(&mut self, found: &Found, common: &Common) -> nix::Result<()> {
        let entry = &found.entry;
        let id = entry.id;
        let start = self.content.len();
        let mut record = SystemV {
            kind: found.kind as u32,
            id: id.cast_unsigned(),
            key: entry.key.cast_unsigned(),
            mode: entry.mode,
            user: entry.user,
            group: entry.group,
            size: entry.size,
            object: NO_OBJECT,
            content: start as u64,
            ..SystemV::new_zeroed()
        };
        match found.kind {
            SystemVKind::Segment => {
                calls::segment(id)?;
                let new = self.objects.iter().filter(|(i, _)| *i as usize >= common.objects.len());
                let next = (common.objects.len() + new.count()) as u32;
                record.object = found.object.unwrap_or(next);
                let page = match found.object {
                    Some(known) => common.objects[known as usize].page,
                    None => hugetlb::page_of_segment(id),
                };
                let object = Object {
                    kind: ObjectKind::Segment as u32,
                    size: entry.size,
                    inode: id as u64,
                    flags: object_flag::WHOLE,
                    page,
                    ..Object::new_zeroed()
                };
                self.objects.push((record.object, object));
                let whole = entry.swapped != 0 || page != 0;
                let segment = Some(super::Segment { id, whole });
                let path = std::path::PathBuf::new();
                self.streams.push(Stream { object: record.object, path, _by: None, segment });
            }
            SystemVKind::Semaphores => {
                let values = calls::values(id, entry.size as usize)?;
                self.content.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            SystemVKind::Messages => {
                record.size = calls::capacity(id)?;
                let mut number = 0;
                while let Some(message) = calls::message(id, number)? {
                    self.content.extend((message.len() as u32).to_le_bytes());
                    self.content.extend(message);
                    number += 1;
                }
            }
        }
        record.content_len = (self.content.len() - start) as u64;
        self.records.push(record);
        Ok(())
    }
}

/// A process that lives outside of the checkpoint, among these.
fn stranger(users: &[Pid], pids: &[Pid]) -> Option<String> {
    let own = Pid::own();
    let other = |pid: &&Pid| pid.get() > 0 && **pid != own && !pids.contains(pid) && lives(**pid);
    let found = users.iter().find(other)?;
    let name = Process::glimpse(*found).and_then(|it| it.name()).unwrap_or_default();
    Some(format!("process {found} ({})", name.display()))
}

/// When a process began, in seconds since 1970.
fn begun(pid: Pid) -> i64 {
    const TICKS: u64 = 100;
    let age = Process::glimpse(pid).and_then(|it| it.main_stat()).ok().zip(uptime());
    let age = age.map_or(0, |(stat, up)| up.saturating_sub(stat.starttime / TICKS));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(i64::MAX, |now| now.as_secs().saturating_sub(age + 1).cast_signed())
}
