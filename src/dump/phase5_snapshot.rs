// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 5: a copy-on-write picture of a process, so that it need not wait for the disk.
//!
//! The main thread makes an intermediate that shares its memory (so only one page table is ever
//! copied), and that makes the snapshot. The intermediate executes nothing and is waited for with
//! `__WCLONE`, so the program's own wait(2) never meets either; the snapshot becomes init's. It has
//! no descriptors, blocks all signals, and ends when it is killed or when this dumper ends.

use super::phase2_equip::Equipped;
use super::phase3_gather::Still;
use super::rolling::Rolling;
use crate::error::{Because, Result};
use crate::fault::{Point, reach};
use crate::proc::Process;
use crate::proc::maps::Vma;
use crate::proc::pidfd::Pidfd;
use crate::proc::stat::Stat;
use crate::proc::{Pid, Tid};
use crate::proc::{clocks, closing, tracking};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::ptrace::raw;
use crate::ptrace::thread::StoppedThread;
use crate::resource::Gathered;
use crate::resource::memory::Area;
use crate::resource::plan::{Orders, Step};
use ckpt_abi::op::{ListHead, OpKind};
use ckpt_abi::region::{Control, STACK_LEN, STACKS};
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use std::mem::offset_of;
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

const PR_SET_PTRACER: u64 = 0x5961_6d61;
const CLONE_PARENT_SETTID: u64 = libc::CLONE_PARENT_SETTID as u64;
const CLONE_UNTRACED: u64 = libc::CLONE_UNTRACED as u64;
/// The number of the picture's descriptor of its maker's memory ([`tracking`]), where it has no others for long.
const HELD: u64 = 5;
/// How long that is waited for.
const FETCHED: Duration = Duration::from_millis(200);
/// How long a picture is waited for until it allows a look at its memory.
pub(super) const OPENED: Duration = Duration::from_secs(5);
/// Where the picture says that it has no others, behind its id.
const ALONE: u64 = 4;

/// What is made of a process in its stop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copying {
    /// Nothing: it ends, or what is needed is read before it goes on, or behind that.
    Nothing,
    /// A picture.
    Picture,
    /// The same, and a descriptor with which its memory can be tracked.
    Tracked,
    /// Only that descriptor: who holds it has the memory itself, and no page table is copied.
    Tracker,
}

/// A process of ours that holds the picture; it ends with this value.
pub(crate) struct Snapshot(Process);

impl Snapshot {
    /// The process and its memory, if that can be had within some time.
    pub(crate) fn open(&self, within: Duration) -> Result<(Process, Memory)> {
        let process = self.0.clone();
        // Under Yama the snapshot itself has to allow us first.
        let deadline = Instant::now() + within;
        loop {
            match Memory::open(&process) {
                Ok(memory) => return Ok((process, memory)),
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// A process of the checkpoint of whose memory there is a picture, or that stands still until it is saved.
pub(crate) struct Pictured<'a> {
    /// The process.
    pub equipped: &'a Equipped,
    /// What the image says of it.
    pub gathered: Gathered,
    /// What is still to be written of its memory.
    pub areas: Vec<Area>,
    /// Its mappings, as long as they have to be confirmed.
    pub presumed: Option<Vec<Vma>>,
    /// The picture, if there is one.
    pub snapshot: Option<Snapshot>,
    /// Who holds a descriptor of its memory, and nothing else.
    holder: Option<Snapshot>,
    /// It goes on without a picture.
    pub held: bool,
    /// Where the id of the picture will be, as long as it is only begun.
    begun: Option<Asked>,
    /// Its threads, as long as they stand still.
    frozen: Option<Frozen>,
}

/// A picture that was asked for.
struct Asked {
    /// Where its id will be.
    at: u64,
    /// When, in ticks since boot.
    since: u64,
}

/// Pictures that are being taken of processes that go on, of all at once: the kernel copies their page tables on as many
/// processors as there are. Of those that end, and where there can be none, it is the process itself that stands still.
pub(crate) struct Begun<'a> {
    /// The processes.
    pub(crate) pictured: Vec<Pictured<'a>>,
    outcome: Result<()>,
    copying: Copying,
}

impl<'a> Begun<'a> {
    /// Begins. [`Begun::finish`] has to follow, whatever fails meanwhile.
    pub(crate) fn of(processes: Vec<Still<'a>>, copying: Copying) -> Self {
        let mut all = Self { pictured: Vec::new(), outcome: Ok(()), copying };
        let goes_on = copying != Copying::Nothing && are_possible();
        for process in processes {
            let Still { equipped, mut frozen, gathered, areas, presumed, orphans_leave, .. } =
                process;
            let mut data = None;
            // Its picture would obey its filters, which nobody suspends.
            let possible = goes_on && orphans_leave && !frozen.is_sandboxed();
            if possible && all.outcome.is_ok() {
                all.outcome = begin(&mut frozen, equipped, copying).map(|asked| data = Some(asked));
            }
            all.pictured.push(Pictured {
                equipped,
                gathered,
                areas,
                presumed,
                snapshot: None,
                holder: None,
                held: false,
                begun: data,
                frozen: Some(frozen),
            });
        }
        all
    }

    /// Waits until all are there.
    ///
    /// # Errors
    /// One could not be begun, or its maker is gone.
    pub(crate) fn finish(mut self) -> Result<Vec<Pictured<'a>>> {
        for process in &mut self.pictured {
            let (begun, mut frozen) = (process.begun.take(), process.frozen.as_mut());
            if let Some(frozen) = frozen.as_deref_mut() {
                self.outcome = self.outcome.and(frozen.end_work());
            }
            let Some((asked, frozen)) = begun.zip(frozen) else { continue };
            let snapshot = finish(frozen, process.equipped, &asked);
            let snapshot = snapshot.map(|snapshot| match self.copying {
                Copying::Tracker => process.holder = snapshot,
                _ => {
                    // The memory that the other has is the program's own, and so would be its end.
                    snapshot.iter().for_each(|snapshot| snapshot.0.ends_first());
                    process.snapshot = snapshot;
                }
            });
            self.outcome = self.outcome.and(snapshot);
        }
        self.outcome.map(|()| self.pictured)
    }
}

impl Pictured<'_> {
    /// Has its memory tracked from now on, by what its picture was made with.
    pub(crate) fn be_tracked(&mut self, known: &mut Rolling) {
        let holder = self.holder.take();
        let Some(snapshot) = holder.as_ref().or(self.snapshot.as_ref()) else { return };
        // For who is no picture the program stands still.
        let within = if holder.is_some() { FETCHED } else { OPENED };
        let taken = snapshot.open(within).ok().and_then(|(process, memory)| {
            let at = self.equipped.region.base + STACKS + STACK_LEN * 2 + ALONE;
            let deadline = Instant::now() + FETCHED;
            // Before, the number may be that of a descriptor of the program.
            while memory.get::<u32>(at).ok()? == 0 {
                if Instant::now() > deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            raw::take_descriptor(process.pid(), HELD as i32).ok()
        });
        let Equipped { memory, region, .. } = self.equipped;
        let at = region.base + offset_of!(Control, tracked) as u64;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
        let mark = now.map_or(1, |now| now.tv_nsec() as u32 + 1);
        if let Some(fd) = taken
            && memory.put(at, &mark).is_ok()
        {
            known.track(fd, mark);
        }
    }

    /// Has its threads begin to come back from our work, those of all processes abreast.
    pub(crate) fn start_home(&mut self) {
        let goes_on = self.goes_on();
        if let Some(frozen) = self.frozen.as_mut().filter(|_| goes_on) {
            frozen.threads.iter_mut().for_each(StoppedThread::start_home);
        }
    }

    fn goes_on(&self) -> bool {
        self.snapshot.is_some() || self.held
    }

    /// Lets the process go on, if there is a picture.
    ///
    /// # Errors
    /// Its memory cannot be written to.
    pub(crate) fn thaw(&mut self) -> Result<()> {
        if self.goes_on()
            && let Some(frozen) = self.frozen.take()
        {
            let leaves = self.equipped.leaves();
            // Somebody who goes on already may have killed it where it stands; its picture is taken.
            leaves.or_else(|e| if self.equipped.process.is_ending() { Ok(()) } else { Err(e) })?;
            reach(Point::Leaving);
            frozen.thaw();
            // What goes on may have executed another program by then, or ended; its picture is taken.
            let _ = self.equipped.has_left();
            reach(Point::Thawed);
        }
        Ok(())
    }

    /// Its threads, if they stand still, and what the image says of it.
    pub(crate) fn take_apart(self) -> (Option<Frozen>, Gathered) {
        (self.frozen, self.gathered)
    }
}

/// Whether a snapshot may let go of what it inherits, and see the end of its dumper: the filter of a container, which is the
/// program's, too, may refuse what that takes.
fn are_possible() -> bool {
    closing::is_possible() && Pidfd::open(Pid::own()).is_ok()
}

/// Begins to make a snapshot. There is none where orphans come to the target or to nobody
/// ([`super::keeper`]): then the pages have to be written while the target stands still.
fn begin(frozen: &mut Frozen, equipped: &Equipped, copying: Copying) -> Result<Asked> {
    let Equipped { memory, region, .. } = equipped;
    let stack = |index: u64| region.base + STACKS + STACK_LEN * (index + 1);
    // The lists lie in the third stack, which nobody runs on now.
    let data = stack(1);
    let head = write_orders(memory, data, stack(1) - 64, copying)?;
    let asked = Asked { at: data, since: clocks::ticks() };
    let mut caller = Caller::new(&mut frozen.threads[0], memory, &region.desk())?;
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLONE_UNTRACED;
    caller.begin_clone(&[flags, stack(0) - 64], head)?;
    Ok(asked)
}

/// The snapshot that was begun; None when the kernel allows no more processes or memory, and where there is none by the
/// kernel's word.
fn finish(frozen: &mut Frozen, equipped: &Equipped, asked: &Asked) -> Result<Option<Snapshot>> {
    let Equipped { process, memory, region, .. } = equipped;
    let maker = frozen.threads[0].tid;
    let mut caller = Caller::new(&mut frozen.threads[0], memory, &region.desk())?;
    caller.end_clone()?;
    reach(Point::Cloned);
    let pid = Pid::of_word(memory.get(asked.at)?);
    if pid.get() <= Pid::INIT.get() || pid == process.pid() {
        return Ok(None);
    }
    let found = Process::open(pid).ok().filter(Process::is_held);
    Ok(found.filter(|found| is_copy(found, process, maker, asked.since)).map(Snapshot))
}

/// Whether a process is a copy that a thread of another has made since then, by what only the kernel writes: its id comes
/// from memory that other processes of that user may write to (proc_pid_mem(5)), and name somebody else's process.
fn is_copy(found: &Process, of: &Process, maker: Tid, since: u64) -> bool {
    let places = |stat: &Stat| {
        [stat.start_code, stat.start_stack, stat.start_brk, stat.arg_start, stat.env_end]
    };
    let seen = |process: &Process, tid: Tid| {
        let stat = process.stat(tid).ok()?;
        Some((stat.starttime, (process.status(tid).ok()?.uid, places(&stat))))
    };
    let both = seen(found, found.main_thread()).zip(seen(of, maker));
    both.is_some_and(|((begun, copy), (_, own))| begun >= since && copy == own)
}

/// Writes the lists of the intermediate and of the snapshot into the target; the address of the
/// intermediate's.
///
/// From `data` on: the snapshot's id, the poll request, its name, the child's words, the head of
/// the orders, and the two lists.
fn write_orders(memory: &Memory, data: u64, stack: u64, copying: Copying) -> Result<u64> {
    let dumper = u64::from(std::process::id());
    let (request, name, words, head) = (data + 8, data + 16, data + 32, data + 64);
    let (intermediate, snapshot) = (data + 128, data + 512);
    let step = Step::Clone;
    let mut list = Orders::default();
    let tracks = matches!(copying, Copying::Tracked | Copying::Tracker);
    let shares = if copying == Copying::Tracker { libc::CLONE_VM as u64 } else { 0 };
    let flags = CLONE_PARENT_SETTID | CLONE_UNTRACED | shares;
    // A copy has its maker's name from its birth: whoever lists processes just then knows it for no member of the job.
    list.try_call(step, libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name]);
    if tracks {
        // The intermediate has copies of the descriptors, and makes one of the memory that it shares: number 0. It closes no
        // other while its maker waits for it: of a file of NFS that brings to the server what was written (nfs_file_flush).
        list.try_call(step, libc::SYS_close, &[0]);
        list.try_call(step, libc::SYS_userfaultfd, &[tracking::FLAGS]);
    }
    list.push(OpKind::Clone, ckpt_abi::op::flag::MAY_FAIL, step, flags, &[stack, words, data]);
    list.push(OpKind::End, 0, step, 0, &[]);
    let orders = ListHead { ops: intermediate, exec_fd: -1, ..ListHead::new_zeroed() };
    let poll_request = (libc::POLLIN as u64) << 32;
    let mut bytes = Vec::new();
    let mut place = |at: u64, piece: &[u8]| {
        bytes.resize((at - data) as usize, 0);
        bytes.extend_from_slice(piece);
    };
    place(request, poll_request.as_bytes());
    place(name, b"ckpt-snapshot\0\0\0");
    place(words, [head, snapshot].as_bytes());
    place(head, orders.as_bytes());
    place(intermediate, list.bytes());
    debug_assert!(intermediate + list.bytes().len() as u64 <= snapshot);
    let mut list = Orders::default();
    list.try_call(step, libc::SYS_prctl, &[PR_SET_PTRACER, dumper]);
    list.try_call(step, libc::SYS_setsid, &[]);
    if tracks {
        list.call(step, libc::SYS_close_range, &[1, u64::from(u32::MAX), 0]);
        list.try_call(step, libc::SYS_dup3, &[0, HELD, libc::O_CLOEXEC as u64]);
        list.try_call(step, libc::SYS_close, &[0]);
        list.push(OpKind::Store, 0, step, 4, &[data + ALONE, 1]);
    } else {
        list.call(step, libc::SYS_close_range, &[0, u64::from(u32::MAX), 0]);
    }
    // With every other descriptor closed, the pidfd is number 0; it becomes readable when the
    // dumper ends.
    list.call(step, libc::SYS_pidfd_open, &[dumper, 0]);
    list.call(step, libc::SYS_poll, &[request, 1, u64::MAX]);
    list.push(OpKind::Exit, 0, step, 0, &[0]);
    place(snapshot, list.bytes());
    memory.write(data, &bytes).because(|| "cannot prepare the snapshot")?;
    Ok(head)
}
