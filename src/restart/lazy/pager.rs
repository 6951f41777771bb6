// SPDX-License-Identifier: LGPL-2.1-only
//! The process outside that brings a program the memory that it touches, and then the rest.
//!
//! Nothing that is missing may ever look like zeros. So it follows all that the program does with the memory: each
//! call that changes what lies where waits until its message was read, and nothing can be copied (EAGAIN) from the
//! moment at which such a call has its effect until then. Messages of several threads may come in another order than
//! their effects; so they are collected until no call is under way, and applied in an order that makes sense.

use super::layout::{Change, Extent, Layout, join};
use super::leash::{self, Leash};
use crate::error::{Because, Error, Result};
use crate::fault::{Point, reach};
use crate::image::PAGE;
use crate::image::read::Image;
use crate::proc::maps::Vma;
use crate::proc::{Pid, Process};
use crate::restart::uffd::{Heard, Message, Request, Uffd};
use ckpt_abi::image::{CHUNK_MAX, Chunk};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::PipeReader;
use std::os::fd::AsFd;
use std::time::Duration;

/// Messages that are read at a time.
const ROOM: usize = 32;
/// Looks for a moment at which no call is under way: it may be short.
const SPINS: u32 = 32;
/// How long memory is waited for that the kernel does not have.
const PATIENCE: u32 = 100;
const NAP: Duration = Duration::from_millis(20);
/// How often a child is looked for that was just forked.
const LOOKS: u32 = 100;
const LOOK: Duration = Duration::from_micros(200);

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
    /// Its process, if that is known.
    pid: Option<Pid>,
    /// There is no such memory any more: the process has ended, or executed another program.
    is_gone: bool,
}

impl Space {
    fn new(uffd: Uffd, layout: Layout, pid: Option<Pid>) -> Self {
        let uffd = leash::amid(&uffd).map_or(uffd, Uffd::from);
        let (faults, changes, forks) = (Vec::new(), Vec::new(), Vec::new());
        Self { uffd, layout, faults, changes, forks, pid, is_gone: false }
    }

    /// Reads what there is to be heard; whether there was anything.
    fn listen(&mut self) -> bool {
        let mut room = [Message::default(); ROOM];
        let heard = self.uffd.hear(&mut room);
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
        has_heard
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
    leashes: Vec<Leash>,
    /// The content of one of them.
    content: Vec<u8>,
    read: Option<usize>,
    /// An address at which this process has nothing.
    nowhere: u64,
    /// A page that is ours in the program, in a mapping of its own.
    sign: u64,
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
        let spaces = vec![Space::new(uffd, layout, Some(pid))];
        let (leashes, content) = (vec![leash], vec![0; CHUNK_MAX as usize]);
        Self { image, chunks, spaces, leashes, content, read: None, nowhere, sign }
    }

    /// Brings what is asked for, and from when `line` is hung up the rest. Then all is as if it had been there from the
    /// beginning.
    ///
    /// # Errors
    /// Something cannot be had. All who would miss it are gone.
    pub(super) fn run(mut self, line: &PipeReader) -> Result<()> {
        let result = self.serve(line);
        match &result {
            Ok(()) => self.leashes.into_iter().for_each(Leash::loosen),
            Err(_) => {
                self.leashes.iter().for_each(Leash::kill);
                self.spaces.iter().for_each(|space| self.outlast(space));
            }
        }
        result
    }

    /// Waits until nobody can miss anything.
    fn outlast(&self, space: &Space) {
        while !self.is_gone(&space.uffd) {
            std::thread::sleep(NAP);
        }
    }

    /// Whether the memory is no process's any more.
    fn is_gone(&self, uffd: &Uffd) -> bool {
        uffd.put(Request::Copy, self.sign, self.nowhere, PAGE).0 == Err(Errno::ESRCH)
    }

    fn serve(&mut self, line: &PipeReader) -> Result<()> {
        let mut begun = false;
        while !self.spaces.is_empty() {
            begun = self.wait(line, begun);
            let mut index = 0;
            // Those that are forked meanwhile come behind.
            while index < self.spaces.len() {
                self.hear(index)?;
                self.answer(index)?;
                if begun && let Some(next) = self.spaces[index].layout.last() {
                    reach(Point::Bringing);
                    self.bring_at(index, next, next.at)?;
                }
                index += 1;
            }
            // What is registered is as before when its descriptor is closed, and who waits for a page gets zeros: of a whole
            // one these are right.
            self.spaces.retain(|one| !(one.is_gone || begun && one.layout.is_whole()));
        }
        Ok(())
    }

    /// Waits until there is something to do; whether the program has begun.
    fn wait(&self, line: &PipeReader, begun: bool) -> bool {
        let in_need = begun || self.spaces.iter().any(|space| !space.faults.is_empty());
        let limit = if in_need { PollTimeout::ZERO } else { PollTimeout::NONE };
        let line = (!begun).then(|| line.as_fd());
        let fds = line.into_iter().chain(self.spaces.iter().map(|space| space.uffd.as_fd()));
        let mut polled: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut polled, limit);
        begun || polled[0].any() == Some(true)
    }

    /// Reads messages until no call is under way.
    fn hear(&mut self, index: usize) -> Result<()> {
        let space = &mut self.spaces[index];
        while space.listen() || (0..SPINS).all(|_| space.uffd.is_changing()) {
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
            let mut child = Space::new(uffd, layout.clone(), None);
            let found = self.find_child(index, &child.uffd);
            let inherited = self.inherit(&mut child, &changes, done);
            result = result.and(inherited);
            if let Some((leash, vmas)) = found {
                // What its parent has said of that may be otherwise by now.
                let empty = vmas.iter().filter(|vma| vma.flags.has("wf"));
                empty.for_each(|vma| drop(child.layout.cut(&(vma.start..vma.end))));
                child.pid = Some(leash.pid());
                self.leashes.push(leash);
            }
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
                None => drop(child.listen()),
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

    /// The child that was just forked, with this memory, and its mappings. It exists when the kernel comes to it.
    /// What tells it from others is a flag of a mapping that is ours, which nobody else sets ("uw").
    fn find_child(&self, parent: usize, uffd: &Uffd) -> Option<(Leash, Vec<Vma>)> {
        let parent = Process::glimpse(self.spaces[parent].pid?).ok()?;
        uffd.mark(self.sign, PAGE, true).ok()?;
        let is_marked = |vma: &Vma| vma.start == self.sign && vma.flags.has("uw");
        let mut found = None;
        for _ in 0..LOOKS {
            let known = |pid: Pid| self.leashes.iter().any(|leash| leash.pid() == pid);
            for pid in parent.children().into_iter().rev().filter(|pid| !known(*pid)) {
                let vmas = Process::glimpse(pid).and_then(|child| child.maps_with_flags());
                if let Some(vmas) = vmas.ok().filter(|vmas| vmas.iter().any(is_marked)) {
                    found = Leash::of(pid).ok().map(|leash| (leash, vmas));
                }
            }
            if found.is_some() || self.is_gone(uffd) {
                break;
            }
            std::thread::sleep(LOOK);
        }
        let _ = uffd.mark(self.sign, PAGE, false);
        found
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
