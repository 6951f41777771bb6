// SPDX-License-Identifier: LGPL-2.1-only
//! `--lazy`: the program goes on before its memory is there. Whatever touches a page that is missing waits until a process
//! outside, the [`pager`], has brought it (userfaultfd(2)); that also brings the rest, and then nothing is left of it.
//!
//! Memory is awaited from before anything of this process or of the restorer may touch it; what the restorer moves, the
//! pager follows. Where a child of the program would get zeros, as the kernel does not tell of forks, nothing is lazy: to be told takes
//! CAP_SYS_PTRACE. The kernel writes for a thread that ends (its id, the robust mutexes that it holds) only to pages
//! that are there, so these are read at once; and core files have none of the missing ones.
//!
//! Rejected: signals for faults (system calls would fail), private mappings of the image (MADV_DONTNEED would bring the old
//! content back).
//!
//! # Safety
//! The pager is made by a bare clone(2) in a process with one thread, so it may do all that its maker may, and it uses none of
//! the program's mappings, which it unmaps.
#![allow(unsafe_code)]

mod guard;
mod holders;
mod layout;
mod leash;
mod pager;

use super::machine::capable;
use super::mapping;
use super::phase1_check::{Saved, Whole};
use super::placed::{self, Placed};
use super::skeleton::make::end;
use crate::error::{Because, Error, Result};
use crate::image::PAGE;
use crate::inject::{monitor, turns};
use crate::order;
use crate::proc::Pid;
use crate::proc::fork::fork;
use crate::proc::uffd::{Uffd, feature};
use crate::resource::descriptor::numbers::close_others;
use crate::resource::threads;
use crate::speech;
use ckpt_abi::image::{Chunk, GuardKind, VmaKind, VmaRecord, vma_flag};
use ckpt_abi::region::TURNS;
use ckpt_abi::turn::Task;
use layout::{Extent, Layout};
use leash::Leash;
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::unistd::{geteuid, setsid};
use pager::Pager;
use std::collections::HashSet;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};

/// Of less nobody waits for the rest.
const WORTH: u64 = 8 << 20;
/// What a mapping has to have of it, in bytes.
const PIECE: u64 = 64 << 10;
/// linux/capability.h
const CAP_KILL: u32 = 5;
/// How many robust mutexes the kernel looks at (ROBUST_LIST_LIMIT).
const ROBUST: usize = 2048;

/// Memory that is to be missing.
pub(crate) struct Lazy {
    chunks: Vec<Chunk>,
    uffd: Uffd,
    /// The page of the region that says whose turn it is.
    sign: u64,
}

/// Memory that is missing, and who brings it.
pub(super) struct Awaited {
    uffd: Uffd,
    areas: Vec<(u64, u64)>,
    /// Closed in all processes but the pager when the program begins.
    line: PipeWriter,
    pager: Task,
}

/// Why memory cannot be missing.
pub(super) enum Eager {
    /// There is too little of it.
    Small,
    /// It is not possible.
    Because(String),
}

impl Lazy {
    /// What of a process's memory may be missing, if all is permitted that it takes.
    ///
    /// # Errors
    /// Nothing may.
    pub(super) fn of(whole: &Whole<'_>, saved: &Saved<'_>) -> std::result::Result<Self, Eager> {
        let mut chunks = Vec::new();
        for vma in saved.vmas.iter().filter(|vma| may_be_missing(saved, vma)) {
            let first = saved.memory.partition_point(|chunk| chunk.address < vma.start);
            let count = saved.memory[first..].partition_point(|chunk| chunk.address < vma.end);
            let some = &saved.memory[first..first + count];
            if bytes(some) >= PIECE {
                chunks.extend_from_slice(some);
            }
        }
        needed_at_once(saved, &mut chunks);
        if bytes(&chunks) < WORTH {
            return Err(Eager::Small);
        }
        let no = |why: &str| Err(Eager::Because(why.to_owned()));
        // Else a program that changes its user could not be ended.
        if !geteuid().is_root() || !capable(CAP_KILL) {
            return no("that takes root (CAP_KILL, and userfaultfd(2) with CAP_SYS_PTRACE)");
        }
        if monitor::adopts() {
            return no("its process is the first of a container, or adopts orphans");
        }
        if whole.image.file().is_none() {
            return no("the checkpoint is in no file");
        }
        if whole.image.is_sealed() {
            return no("it is encrypted, and all of it is checked before anything is done");
        }
        let features = feature::EVENT_FORK
            | feature::EVENT_REMAP
            | feature::EVENT_REMOVE
            | feature::EVENT_UNMAP
            | feature::EXACT_ADDRESS;
        match Uffd::new(0, features) {
            Ok(uffd) => Ok(Self { chunks, uffd, sign: saved.process.region + TURNS }),
            Err(Errno::EPERM) => no("that takes root (userfaultfd(2) with CAP_SYS_PTRACE)"),
            Err(Errno::EINVAL) => no("that takes Linux 5.18 or later (userfaultfd(2))"),
            Err(e) => no(&format!("userfaultfd(2): {}", e.desc())),
        }
    }

    /// The others of these chunks, which are by address.
    pub(super) fn others(&self, all: &[Chunk]) -> Vec<Chunk> {
        let missing = |one: &&Chunk| self.chunks.binary_search_by_key(&one.address, |c| c.address);
        all.iter().filter(|one| missing(one).is_err()).copied().collect()
    }

    /// Starts the pager: before there is anything in the mappings, which it need not have.
    ///
    /// # Errors
    /// No process can be made.
    pub(super) fn start(self, whole: &Whole<'_>, placed: &[Placed]) -> Result<Awaited> {
        let what = || "cannot start the process that brings the memory (--lazy)";
        let (line, kept) = std::io::pipe().because(what)?;
        let (mut answer, tell) = std::io::pipe().because(what)?;
        let layout = self.layout(placed)?;
        let areas = layout.areas().map(|area| (area.start, area.end - area.start)).collect();
        let restarter = Pid::own();
        let before = mapping::block_all_signals();
        let between = fork(0).because(what)?;
        let Some(between) = between else {
            drop((kept, answer));
            if matches!(fork(libc::SIGCHLD), Ok(None)) {
                placed.iter().for_each(|home| home.mapping.leave());
                self.guard(whole, (restarter, layout), line, tell);
            }
            end(0)
        };
        drop((tell, line));
        // SAFETY: waits for the child that was just made.
        unsafe { libc::waitpid(between.get(), std::ptr::null_mut(), libc::__WCLONE) };
        mapping::set_signals(before);
        let mut word = [0; 4];
        answer.read_exact(&mut word).because(what)?;
        let pager = turns::task(Pid::of_word(u32::from_ne_bytes(word)), restarter);
        let pager = pager.ok_or_else(|| Error::new(what()))?;
        Ok(Awaited { uffd: self.uffd, areas, line: kept, pager })
    }

    /// Where it is, all of which is in mappings that are there.
    fn layout(&self, placed: &[Placed]) -> Result<Layout> {
        let (mut extents, mut areas) = (Vec::<Extent>::new(), Vec::new());
        for chunk in &self.chunks {
            let home = placed::home(placed, chunk.address);
            let home = home.ok_or_else(|| Error::new("a mapping is missing"))?;
            let (at, len) = (home.mapping.at(), u64::from(chunk.len));
            let at = at + chunk.address - home.record.start;
            match extents.last_mut() {
                Some(last) if last.at + last.len == at && last.from + last.len == chunk.address => {
                    last.len += len;
                }
                _ => extents.push(Extent { at, len, from: chunk.address }),
            }
            let area = home.mapping.at()..home.mapping.at() + home.mapping.len();
            if areas.last() != Some(&area) {
                areas.push(area);
            }
        }
        // A child gets it empty, and is known by it.
        areas.push(self.sign..self.sign + PAGE);
        order::by_key(&mut extents, |extent| (extent.at, 0));
        order::by_key(&mut areas, |area| (area.start, 0));
        Ok(Layout::new(extents, areas))
    }

    /// Is the pager's parent.
    fn guard(
        self,
        whole: &Whole<'_>,
        with: (Pid, Layout),
        line: PipeReader,
        tell: PipeWriter,
    ) -> ! {
        // No dumper takes them for the program's.
        let _ = nix::sys::prctl::set_name(c"ckpt-assist");
        let _ = setsid();
        let _ = std::env::set_current_dir("/");
        let image = whole.image.file().map_or(2, AsRawFd::as_raw_fd);
        let all = [2, image, self.uffd.as_fd().as_raw_fd(), line.as_raw_fd(), tell.as_raw_fd()];
        close_others(all.to_vec());
        // What they have is little, and the program's life.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        guard::without_limits();
        leash::allow(true);
        let (Ok(nowhere), sign) = (nowhere(), self.sign) else { end(1) };
        match fork(libc::SIGCHLD | libc::CLONE_FILES) {
            Ok(None) => self.page(whole, with, nowhere, (line, tell)),
            // From now on the descriptors are the pager's alone, until it has ended.
            Ok(Some(pager)) => guard::watch(pager, sign, nowhere),
            Err(_) => end(1),
        }
    }

    fn page(
        self,
        whole: &Whole<'_>,
        (pid, layout): (Pid, Layout),
        nowhere: u64,
        (line, mut tell): (PipeReader, PipeWriter),
    ) -> ! {
        leash::allow(false);
        let Ok(leash) = Leash::of(pid) else { end(guard::NOT_BEGUN) };
        let Self { chunks, uffd, sign } = self;
        let pager = Pager::new(whole.image, &chunks, (pid, leash), (uffd, layout), [nowhere, sign]);
        if tell.write_all(&std::process::id().to_ne_bytes()).is_err() {
            end(guard::NOT_BEGUN);
        }
        drop(tell);
        match pager.run(&line) {
            Ok(()) => end(0),
            Err(e) => {
                say(&format!(
                    "the program is ended, since its memory cannot be brought (--lazy): {e}"
                ));
                end(1)
            }
        }
    }
}

/// An address at which nothing can be read.
fn nowhere() -> nix::Result<u64> {
    let len = NonZeroUsize::new(PAGE as usize).ok_or(Errno::EINVAL)?;
    // SAFETY: the kernel puts it where nothing is.
    let page = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
    Ok(page.addr().get() as u64)
}

fn say(sentence: &str) {
    speech::say(std::io::stderr().as_fd(), sentence);
}

impl Awaited {
    /// Has it awaited from now on; the pager, for the control page.
    ///
    /// # Errors
    /// The kernel does not.
    pub(super) fn register(self) -> Result<Task> {
        for (at, len) in &self.areas {
            let what = || format!("cannot have the memory at {at:#x} awaited (--lazy)");
            self.uffd.register(*at, *len).because(what)?;
        }
        // Closed with all that the program does not have.
        std::mem::forget(self.line);
        Ok(self.pager)
    }
}

/// Reads what the kernel may write to when a thread ends: only if it is there.
pub(super) fn touch(saved: &Saved<'_>, placed: &[Placed]) {
    let word = |at: u64| {
        let mut bytes = [0; 8];
        placed::read(placed, at, &mut bytes).then(|| u64::from_ne_bytes(bytes))
    };
    for head in saved.threads.iter().map(|thread| thread.robust_list).filter(|head| *head != 0) {
        // struct robust_list_head: the first mutex, where its word lies from there, and the one that is just taken.
        let [Some(first), Some(offset), Some(pending)] = [0, 8, 16].map(|at| word(head + at))
        else {
            continue;
        };
        let mut entry = first & !1;
        for _ in 0..ROBUST {
            if entry == head {
                break;
            }
            let _ = word(entry.wrapping_add(offset));
            let Some(next) = word(entry) else { break };
            entry = next & !1;
        }
        let _ = word((pending & !1).wrapping_add(offset));
    }
}

fn bytes(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
}

/// Whether memory of a mapping may be missing.
fn may_be_missing(saved: &Saved<'_>, vma: &VmaRecord) -> bool {
    // What is locked is there. Who runs code is looked through for some of it.
    const OTHERS: u64 = vma_flag::REGION
        | vma_flag::GROWSDOWN
        | vma_flag::DROPPABLE
        | vma_flag::FOLLOWS
        | vma_flag::HUGETLB
        | vma_flag::WIPEONFORK
        | vma_flag::LOCKED
        | vma_flag::LOCK_ON_FAULT
        | vma_flag::SEALED;
    let absent = |guard: &ckpt_abi::image::Guard| guard.kind != GuardKind::Installed as u32;
    let first = saved.guards.partition_point(|guard| guard.end <= vma.start);
    let mut guards = saved.guards[first..].iter().take_while(|guard| guard.start < vma.end);
    vma.kind == VmaKind::Private as u32
        && vma.flags & OTHERS == 0
        && vma.prot & libc::PROT_EXEC as u32 == 0
        && !guards.any(absent)
}

/// Leaves out what is needed at once, or written when a thread ends.
fn needed_at_once(saved: &Saved<'_>, chunks: &mut Vec<Chunk>) {
    let of_thread = |thread: &ckpt_abi::image::Thread| {
        let regs = threads::regs(thread);
        [regs.rsp, regs.fs_base, thread.robust_list, thread.tid_address, thread.rseq]
    };
    let holder = |address: u64| {
        let index = chunks.partition_point(|c| c.address + u64::from(c.len) <= address);
        chunks.get(index).filter(|c| c.address <= address).map(|c| c.address)
    };
    let needed: HashSet<u64> =
        saved.threads.iter().flat_map(of_thread).filter_map(holder).collect();
    chunks.retain(|chunk| !needed.contains(&chunk.address));
}
