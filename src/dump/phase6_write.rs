// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 6: write the pages, then the records.

use super::stream;
use crate::error::{Because, Error, Result};
use crate::image::PAGE;
use crate::image::write::{Sink, Writer};
use crate::image::zeros::nonzero;
use crate::proc::{self, pagemap::Pagemap};
use crate::ptrace::memory::Memory;
use crate::resource::memory::{self, Area, Pages};
use crate::resource::runtime::glibc::Search;
use crate::resource::{Gathered, cpu};
use ckpt_abi::image::{CHUNK_MAX, Guard, GuardKind, Machine, SectionKind};
use std::ops::Range;
use zerocopy::FromZeros;

/// An image that is being written.
pub struct Writing<'a> {
    writer: Writer<'a>,
    gathered: Gathered,
    locks: Search,
    buffer: Vec<u8>,
}

impl<'a> Writing<'a> {
    /// Begins an image behind the stub.
    pub fn begin(sink: &'a mut dyn Sink, stub: Vec<u8>, gathered: Gathered) -> Self {
        let writer = Writer::new(sink, stub);
        let locks = Search::new(&gathered.threads);
        Self { writer, gathered, locks, buffer: vec![0; CHUNK_MAX as usize] }
    }

    /// Writes the pages of some areas, read from `pid`: the target or its snapshot.
    pub fn pages<'b>(
        &mut self,
        pid: i32,
        memory: &Memory,
        areas: impl IntoIterator<Item = &'b Area>,
    ) -> Result<()> {
        let pagemap = Pagemap::open(pid)?;
        for area in areas {
            let ranges = match area.pages {
                _ if area.known.is_some() => area.known.clone().unwrap_or_default(),
                Pages::Populated => pagemap.populated(area.start, area.end, false)?,
                Pages::Written => pagemap.populated(area.start, area.end, true)?,
                Pages::Whole => std::iter::once(area.start..area.end).collect(),
                Pages::None => Vec::new(),
            };
            for range in ranges {
                self.range(memory, range, area)?;
            }
        }
        Ok(())
    }

    fn range(&mut self, memory: &Memory, range: Range<u64>, area: &Area) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            // Chunks end where those of the next checkpoint do.
            let border = (at + 1).next_multiple_of(CHUNK_MAX);
            let len = (range.end.min(border) - at) as usize;
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = read(memory, at, &mut buffer[..len], area);
            let mut pieces = nonzero(&buffer[..read]);
            let written = pieces
                .try_for_each(|(start, bytes)| self.chunk(memory, at + start as u64, bytes, area));
            drop(pieces);
            self.buffer = buffer;
            written?;
            at += read as u64;
            if read < len {
                if !area.streamed {
                    self.untouchable(at, area)?;
                }
                at += PAGE;
            }
        }
        Ok(())
    }

    /// Notes a page that cannot be read: a guard, or of a mapped file what is behind its end.
    fn untouchable(&mut self, page: u64, area: &Area) -> Result<()> {
        let guards = &mut self.gathered.guards;
        if guards.iter().any(|g| (g.start..g.end).contains(&page)) {
            return Ok(());
        }
        if area.pages != Pages::Whole {
            return Err(Error::new(format!(
                "the kernel does not let anybody read the memory at {page:#x}"
            ))
            .hint("a guard page (Linux 6.13 and 6.14 do not tell them), or the memory is broken"));
        }
        let absent = GuardKind::Absent as u32;
        match guards.last_mut() {
            Some(last) if last.end == page && last.kind == absent => last.end += PAGE,
            _ => guards.push(Guard { start: page, end: page + PAGE, kind: absent, reserved: 0 }),
        }
        Ok(())
    }

    fn chunk(&mut self, memory: &Memory, addr: u64, bytes: &[u8], area: &Area) -> Result<()> {
        let owners = &mut self.gathered.owners;
        let first = owners.len();
        if area.writable {
            self.locks.look(memory, addr, bytes, owners);
        }
        if area.streamed {
            return Ok(());
        }
        let locks = [first, owners.len() - first].map(|n| n as u32);
        self.writer.memory(0, addr, bytes, locks)
    }

    /// Writes the files that travel in the image while the target stands still, a piece at a time.
    pub fn streams(&mut self) -> Result<()> {
        for (addr, bytes) in std::mem::take(&mut self.gathered.hidden) {
            self.writer.memory(0, addr, &bytes, [0, 0])?;
        }
        for stream in std::mem::take(&mut self.gathered.streams) {
            let object = self.gathered.objects.get(stream.object as usize);
            let object = object.ok_or_else(|| Error::new("a file is no object"))?;
            let name = self.gathered.strings.get(object.name);
            stream::write(&mut self.writer, &stream, object.size, &mut self.buffer)
                .because(|| format!("cannot read {}", name.display()))?;
        }
        Ok(())
    }

    /// Names the NUMA policies of the target, or of its snapshot, which has the same.
    pub fn look_at_policies(&mut self, pid: i32) {
        let policies = proc::numa::policies(pid);
        if !policies.is_empty() {
            let what =
                format!("NUMA policies (set_mempolicy(2), mbind(2)): {}", policies.join(", "));
            self.gathered.losses.push(what);
        }
    }

    /// Whether the files whose pages were read from a target that went on have kept still.
    ///
    /// # Errors
    /// Of [`crate::error::Kind::Changed`]: one has not.
    pub fn unchanged(&self) -> Result<()> {
        self.gathered.files.as_ref().map_or(Ok(()), memory::Files::unchanged)
    }

    /// Writes the records and seals; the length of the image, and what it goes without.
    pub fn finish(mut self) -> Result<(u64, Vec<String>)> {
        self.gathered.guards.sort_by_key(|guard| guard.start);
        let process = self.gathered.process.ok_or_else(|| Error::new("nothing was gathered"))?;
        let machine = machine(&mut self.gathered, process.pid.cast_signed())?;
        let losses: Vec<_> =
            self.gathered.losses.iter().map(|l| self.gathered.strings.add(l)).collect();
        let (w, g) = (&mut self.writer, &self.gathered);
        w.records(SectionKind::Machine, &[machine])?;
        w.records(SectionKind::Cpuid, &cpu::leaves())?;
        w.records_of(0, SectionKind::Process, &[process])?;
        w.records_of(0, SectionKind::Threads, &g.threads)?;
        w.bytes_of(0, SectionKind::Xstate, 0, &g.xstate)?;
        w.records_of(0, SectionKind::Owners, &g.owners)?;
        w.records_of(0, SectionKind::Vmas, &g.vmas)?;
        w.records_of(0, SectionKind::Guards, &g.guards)?;
        w.records(SectionKind::Objects, &g.objects)?;
        w.records_of(0, SectionKind::Descriptors, &g.descriptors)?;
        w.records_of(0, SectionKind::SignalActions, &g.actions)?;
        w.records_of(0, SectionKind::PendingSignals, &g.pending)?;
        w.records_of(0, SectionKind::Timers, &g.timers)?;
        w.records_of(0, SectionKind::Limits, &g.limits)?;
        w.bytes_of(0, SectionKind::Auxv, 0, &g.auxv)?;
        for content in &g.contents {
            w.bytes_of(0, SectionKind::Content, content.index, &content.bytes)?;
        }
        let losses: Vec<_> =
            losses.into_iter().map(|what| ckpt_abi::image::Loss { what }).collect();
        w.records(SectionKind::Losses, &losses)?;
        w.bytes(SectionKind::Strings, self.gathered.strings.bytes())?;
        Ok((self.writer.seal()?, self.gathered.losses))
    }
}

/// Reads up to the first page that cannot be read.
fn read(memory: &Memory, addr: u64, buffer: &mut [u8], area: &Area) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let at = addr + done as u64;
        let read = if area.unreadable { 0 } else { memory.read_some(at, rest).unwrap_or(0) };
        done += match read {
            // Memory without read permission, or a page that is not there.
            0 => match memory.read_forced(at, rest) {
                Ok(n) if n > 0 => n,
                _ => break,
            },
            read => read,
        };
    }
    done - done % PAGE as usize
}

fn machine(gathered: &mut Gathered, pid: i32) -> Result<Machine> {
    let names = nix::sys::utsname::uname().because(|| "uname")?;
    Ok(Machine {
        host: gathered.strings.add(names.nodename()),
        kernel: gathered.strings.add(names.release()),
        realtime: gathered.clocks.realtime,
        monotonic: gathered.clocks.since_boot[0],
        boottime: gathered.clocks.since_boot[1],
        xcr0: cpu::xcr0(),
        version: gathered.strings.add(env!("CARGO_PKG_VERSION")),
        boot: proc::boot(pid),
        cpu: gathered.cpu.0,
        processor: gathered.strings.add(cpu::name(&cpu::leaves())),
        permitted: gathered.permitted,
        ..Machine::new_zeroed()
    })
}
