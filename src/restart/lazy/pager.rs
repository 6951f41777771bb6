// SPDX-License-Identifier: LGPL-2.1-only
//! The process outside that brings a program the memory that it touches, and then the rest.
//!
//! Nothing that is missing may ever look like zeros. So it follows all that the program does with the memory: each
//! call that changes what lies where waits until its message was read, and nothing can be copied (EAGAIN) from the
//! moment at which such a call has its effect until then. Messages of several threads may come in another order than
//! their effects; so they are collected until no call is under way, and applied in an order that makes sense.

use super::holders::Holders;
use super::layout::{Change, Extent, Layout, join};
use super::leash::{self, Leash};
use crate::error::{Because, Error, Result};
use crate::fault::{Point, reach};
use crate::image::PAGE;
use crate::image::read::Image;
use crate::proc::Pid;
use crate::proc::maps::Vma;
use crate::proc::uffd::{Heard, Message, Request, Uffd};
use ckpt_abi::image::{CHUNK_MAX, Chunk};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::PipeReader;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Messages that are read at a time.
const ROOM: usize = 32;
/// Looks for a moment at which no call is under way: it may be short.
const SPINS: u32 = 32;
/// How long memory is waited for that the kernel does not have.
const PATIENCE: u32 = 100;
const NAP_MS: u8 = 20;
const NAP: Duration = Duration::from_millis(NAP_MS as u64);
/// How often a child is looked for among its parent's, when it was just forked.
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_micros(200);
/// How long anywhere.
const LONG: Duration = Duration::from_secs(60);

/// Memory of one process.
struct Space {
    uffd: Uffd,
    layout: Layout,
    /// Pages that somebody waits for.
    faults: Vec<u64>,
    /// What was heard and has not been applied to the layout.
    changes: Vec<Change>,
    /// Children, each with how many changes were heard before.
    forks: Vec<(usize, Uffd)>,
    /// Its process, which until it is known gets nothing: whether it is to have zeros (MADV_WIPEONFORK) is not known, either.
    pid: Option<Pid>,
    leash: Option<Leash>,
    begun: Instant,
    /// There is no such memory any more: the process has ended, or executed another program.
    is_gone: bool,
}

impl Space {
    fn new(uffd: Uffd, layout: Layout) -> Self {
        let uffd = leash::amid(&uffd).map_or(uffd, Uffd::from);
        let (faults, changes, forks) = (Vec::new(), Vec::new(), Vec::new());
        let (pid, leash, begun) = (None, None, Instant::now());
        Self { uffd, layout, faults, changes, forks, pid, leash, begun, is_gone: false }
    }

    /// Whose it is, with its mappings; nobody's any more is an error of nobody.
    fn is_of(&mut self, pid: Pid, vmas: &[Vma]) -> Result<()> {
        match Leash::of(pid) {
            Ok(leash) => {
                (self.pid, self.leash) = (Some(pid), Some(leash));
                // What its parent has said of that may be otherwise by now.
                let empty = vmas.iter().filter(|vma| vma.flags.has("wf"));
                empty.for_each(|vma| drop(self.layout.cut(&(vma.start..vma.end))));
                Ok(())
            }
            Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e).because(|| "cannot follow a child of the program"),
        }
    }

    /// Reads what there is to be heard; whether there was anything.
    ///
    /// # Errors
    /// A child cannot be followed: there are no descriptors.
    fn listen(&mut self) -> Result<bool> {
        let mut room = [Message::default(); ROOM];
        let heard = self.uffd.hear(&mut room);
        let heard = heard.because(|| "cannot follow a child of the program")?;
        let has_heard = !heard.is_empty();
        for one in heard {
            match one {
                Heard::Fault(address) => self.faults.push(address & !(PAGE - 1)),
                Heard::Fork(uffd) => self.forks.push((self.changes.len(), uffd)),
                Heard::Remap(from, to, len) => {
                    self.changes.push(Change::Moved(from, to, len, false))
                }
                Heard::Remove(start, end) => self.changes.push(Change::Removed(start, end)),
                Heard::Unmap(start, end) => self.changes.push(Change::Unmapped(start, end)),
            }
        }
        Ok(has_heard)
    }
}

/// What came of an attempt.
#[derive(PartialEq, Eq)]
enum Put {
    Done,
    /// Messages have to be read first.
    Later,
    Gone,
}

/// All that is missing.
pub(super) struct Pager<'a> {
    image: &'a Image,
    /// By address.
    chunks: &'a [Chunk],
    spaces: Vec<Space>,
    holders: Holders,
    /// The content of one of them.
    content: Vec<u8>,
    read: Option<usize>,
    /// An address at which this process has nothing.
    nowhere: u64,
}

impl<'a> Pager<'a> {
    /// For the process `pid`.
    pub(super) fn new(
        image: &'a Image,
        chunks: &'a [Chunk],
        (pid, leash): (Pid, Leash),
        (uffd, layout): (Uffd, Layout),
        [nowhere, sign]: [u64; 2],
    ) -> Self {
        let mut space = Space::new(uffd, layout);
        (space.pid, space.leash) = (Some(pid), Some(leash));
        let (spaces, content) = (vec![space], vec![0; CHUNK_MAX as usize]);
        let holders = Holders::new(sign, nowhere);
        Self { image, chunks, spaces, holders, content, read: None, nowhere }
    }

    /// Brings what is asked for, and from when `line` is hung up the rest. Then all is as if it had been there from the
    /// beginning.
    ///
    /// # Errors
    /// Something cannot be had. Who would miss it is not gone, and waits for it.
    pub(super) fn run(mut self, line: &PipeReader) -> Result<()> {
        let result = self.serve(line);
        // The guard has the same descriptors: they have to stay.
        if result.is_err() {
            std::mem::forget(self.spaces);
        }
        result
    }

    fn serve(&mut self, line: &PipeReader) -> Result<()> {
        let mut begun = false;
        while !self.spaces.is_empty() {
            begun = self.wait(line, begun);
            self.find_children()?;
            let mut index = 0;
            // Those that are forked meanwhile come behind.
            while index < self.spaces.len() {
                if self.spaces[index].pid.is_some() {
                    self.hear(index)?;
                    self.answer(index)?;
                }
                index += 1;
            }
            // A child gets what it touches, and the rest when its parent has it: most do not live as long.
            let first = self.spaces.iter().position(|one| one.pid.is_some()).filter(|_| begun);
            if let Some(index) = first
                && let Some(next) = self.spaces[index].layout.last()
            {
                reach(Point::Bringing);
                self.bring_at(index, next, next.at)?;
            }
            self.let_go(begun);
        }
        Ok(())
    }

    /// Forgets who has all that it may have. What is registered is as before when its descriptor is closed, and who waits for
    /// a page gets zeros: of a whole one these are right.
    fn let_go(&mut self, begun: bool) {
        let mut index = 0;
        while begun && index < self.spaces.len() {
            let one = &self.spaces[index];
            if one.is_gone || self.holders.is_gone(&one.uffd) || one.layout.is_whole() {
                let one = self.spaces.remove(index);
                one.leash.into_iter().for_each(Leash::loosen);
            } else {
                index += 1;
            }
        }
    }

    /// Looks for children that are not known yet.
    fn find_children(&mut self) -> Result<()> {
        for index in 0..self.spaces.len() {
            let one = &self.spaces[index];
            if one.pid.is_some() || self.holders.is_gone(&one.uffd) {
                continue;
            }
            let known = |pid: Pid| self.spaces.iter().any(|space| space.pid == Some(pid));
            if let Some((pid, vmas)) = self.holders.child(&one.uffd, None, known) {
                self.spaces[index].is_of(pid, &vmas)?;
            } else if one.begun.elapsed() > LONG {
                return Err(Error::new("a child of the program cannot be found"));
            }
        }
        Ok(())
    }

    /// Waits until there is something to do; whether the program has begun.
    fn wait(&self, line: &PipeReader, begun: bool) -> bool {
        let known = || self.spaces.iter().filter(|space| space.pid.is_some());
        let in_need = known().any(|space| begun || !space.faults.is_empty());
        let limit = match in_need {
            true => PollTimeout::ZERO,
            false if known().count() < self.spaces.len() => PollTimeout::from(NAP_MS),
            false => PollTimeout::NONE,
        };
        let line = (!begun).then(|| line.as_fd());
        let fds = line.into_iter().chain(known().map(|space| space.uffd.as_fd()));
        let mut polled: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut polled, limit);
        begun || polled[0].any() == Some(true)
    }

    /// Reads messages until no call is under way.
    fn hear(&mut self, index: usize) -> Result<()> {
        let space = &mut self.spaces[index];
        while space.listen()? || (0..SPINS).all(|_| space.uffd.is_changing()) {
            std::thread::yield_now();
        }
        let mut changes = std::mem::take(&mut space.changes);
        let forks = std::mem::take(&mut space.forks);
        let mut layout = std::mem::take(&mut space.layout);
        let uffd = &self.spaces[index].uffd;
        join(&mut changes, |at, others| {
            let moved_on = others.iter().any(|change| change.concerns(at));
            moved_on || self.is_there(uffd, at & !(PAGE - 1)) != Some(false)
        });
        let mut result = Ok(());
        for (done, uffd) in forks {
            // Whatever fails, nobody's memory is let go.
            let mut child = Space::new(uffd, layout.clone());
            let found = self.find_child(index, &child.uffd);
            let inherited = self.inherit(&mut child, &changes, done);
            let is_of = found.map_or(Ok(()), |(pid, vmas)| child.is_of(pid, &vmas));
            result = result.and(inherited).and(is_of);
            self.spaces.push(child);
        }
        layout.make(&mut changes);
        self.spaces[index].layout = layout;
        result
    }

    /// Makes the changes that a child has inherited, whose fork was heard when so many were `done`: those that its memory
    /// shows, where messages may have come in another order than their effects.
    fn inherit(&self, child: &mut Space, changes: &[Change], done: usize) -> Result<()> {
        for (number, change) in changes.iter().enumerate() {
            let (is_done, later) = (number < done, &changes[number + 1..done.max(number + 1)]);
            let has = match *change {
                Change::Removed(..) => is_done,
                Change::Moved(from, to, len, stays) => {
                    let nothing = child.layout.area(&(to..to + len)).is_none();
                    match (child.layout.area(&(from..from + len)), self.had(child, to)?) {
                        (None, _) => false,
                        (_, true) => is_done || nothing || !stays && !self.had(child, from)?,
                        (_, false) => is_done && later.iter().any(|one| one.concerns(to)),
                    }
                }
                Change::Unmapped(start, end) => match child.layout.area(&(start..end)) {
                    None => false,
                    Some(area) => {
                        let at = area.start.max(start);
                        !self.had(child, at)? || is_done && later.iter().any(|one| one.concerns(at))
                    }
                },
            };
            if has {
                child.layout.change(*change);
            }
        }
        Ok(())
    }

    /// Whether a child had memory at an address when it was forked.
    fn had(&self, child: &mut Space, at: u64) -> Result<bool> {
        let is_there = loop {
            match self.is_there(&child.uffd, at) {
                None => drop(child.listen()?),
                Some(is_there) => break is_there,
            }
        };
        match child.changes.iter().any(|change| change.concerns(at)) {
            true => Err(Error::new(
                "it forked while other threads moved memory that was still missing, and what its child has cannot be seen",
            )),
            false => Ok(is_there),
        }
    }

    /// Whether an address is one at which missing memory is awaited; None: something is just changing.
    fn is_there(&self, uffd: &Uffd, at: u64) -> Option<bool> {
        match uffd.put(Request::Copy, at, self.nowhere, PAGE).0 {
            Err(Errno::ENOENT) if !uffd.is_changing() => Some(false),
            Err(Errno::ESRCH) => Some(false),
            Err(Errno::EAGAIN | Errno::ENOENT) => None,
            // EFAULT: all but the content is there.
            _ => Some(true),
        }
    }

    /// The child that was just forked, with this memory, and its mappings. It exists when the kernel comes to it, and may
    /// be somebody else's child (CLONE_PARENT), or an orphan.
    fn find_child(&mut self, parent: usize, uffd: &Uffd) -> Option<(Pid, Vec<Vma>)> {
        let parent = self.spaces[parent].pid?;
        for _ in 0..LOOKS {
            let known = |pid: Pid| self.spaces.iter().any(|space| space.pid == Some(pid));
            let found = self.holders.child(uffd, Some(parent), known);
            if found.is_some() || self.holders.is_gone(uffd) {
                return found;
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    /// Gives those who wait what they wait for.
    fn answer(&mut self, index: usize) -> Result<()> {
        while let Some(address) = self.spaces[index].faults.pop() {
            let put = match self.spaces[index].layout.find(address) {
                Some(extent) => self.bring_at(index, extent, address)?,
                None => self.zero(index, address)?,
            };
            if put != Put::Done {
                self.spaces[index].faults.push(address);
                break;
            }
            self.spaces[index].uffd.wake(address, PAGE);
        }
        Ok(())
    }

    /// Brings the piece of an extent that lies at an address: as much as the image has in one.
    fn bring_at(&mut self, index: usize, extent: Extent, address: u64) -> Result<Put> {
        let saved = extent.from + (address - extent.at);
        let number = self.chunks.partition_point(|c| c.address + u64::from(c.len) <= saved);
        let chunk = self.chunks.get(number).filter(|chunk| chunk.address <= saved);
        let Some(chunk) = chunk else { return Err(self.image.damaged("its memory has gaps")) };
        if self.read != Some(number) {
            self.read = None;
            self.image.read_chunk_into(chunk, &mut self.content[..chunk.len as usize])?;
            self.read = Some(number);
        }
        let start = extent.from.max(chunk.address);
        let end = (extent.from + extent.len).min(chunk.address + u64::from(chunk.len));
        let offset = (start - chunk.address) as usize;
        let to = extent.at + (start - extent.from);
        let from = self.content[offset..].as_ptr().expose_provenance() as u64;
        let (put, done) = self.copy(index, to, from, end - start)?;
        self.spaces[index].layout.cut(&(to..to + done));
        self.spaces[index].is_gone |= put == Put::Gone;
        Ok(put)
    }

    /// Copies pages to where nothing is; how many bytes need nothing more.
    fn copy(&self, index: usize, to: u64, from: u64, len: u64) -> Result<(Put, u64)> {
        let uffd = &self.spaces[index].uffd;
        let (mut done, mut step, mut lacks) = (0, len, 0);
        while done < len {
            let (result, bytes) =
                uffd.put(Request::Copy, to + done, from + done, step.min(len - done));
            done += bytes;
            match result {
                Ok(()) => {}
                // It says why with the next.
                Err(_) if bytes > 0 => {}
                Err(Errno::EAGAIN) => return Ok((Put::Later, done)),
                Err(Errno::ESRCH) => return Ok((Put::Gone, done)),
                // What was moved since the kernel looked whether anything is.
                Err(Errno::ENOENT) if uffd.is_changing() => return Ok((Put::Later, done)),
                // Part of it is in another mapping, or in none that is awaited: unmapped by now.
                Err(Errno::ENOENT) if step > PAGE => step = PAGE,
                // Something is there.
                Err(Errno::ENOENT | Errno::EEXIST) => done += PAGE,
                Err(Errno::ENOMEM) if lacks < PATIENCE => {
                    lacks += 1;
                    std::thread::sleep(NAP);
                }
                Err(e) => return Err(e).because(|| "cannot give the program its memory"),
            }
        }
        Ok((Put::Done, done))
    }

    /// Gives a page of which the image has nothing.
    fn zero(&mut self, index: usize, address: u64) -> Result<Put> {
        for _ in 0..PATIENCE {
            match self.spaces[index].uffd.zero(address, PAGE) {
                Ok(()) | Err(Errno::EEXIST | Errno::ENOENT) => return Ok(Put::Done),
                Err(Errno::EAGAIN) => return Ok(Put::Later),
                Err(Errno::ESRCH) => {
                    self.spaces[index].is_gone = true;
                    return Ok(Put::Gone);
                }
                Err(Errno::ENOMEM) => std::thread::sleep(NAP),
                Err(e) => return Err(e).because(|| "cannot give the program its memory"),
            }
        }
        Err(Errno::ENOMEM).because(|| "cannot give the program its memory")
    }
}
