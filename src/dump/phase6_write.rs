//! Phase 6: write the pages, then the records.

use crate::error::{Because, Error, Result};
use crate::image::PAGE;
use crate::image::write::{Sink, Writer};
use crate::proc::pagemap::Pagemap;
use crate::ptrace::memory::Memory;
use crate::resource::memory::{Area, Pages};
use crate::resource::mutexes::Search;
use crate::resource::{Gathered, cpu};
use ckpt_abi::image::{Machine, RUN_MAX, SectionKind};
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use zerocopy::FromZeros;

/// An image that is being written.
pub struct Writing<'a> {
    writer: Writer<'a>,
    gathered: Gathered,
    locks: Search,
    contents: Vec<(u32, Vec<u8>)>,
    buffer: Vec<u8>,
}

impl<'a> Writing<'a> {
    /// Begins an image behind the stub.
    pub fn begin(sink: &'a mut dyn Sink, stub: Vec<u8>, gathered: Gathered) -> Self {
        let writer = Writer::new(sink, stub);
        let locks = Search::new(&gathered.threads);
        Self { writer, gathered, locks, contents: Vec::new(), buffer: vec![0; RUN_MAX as usize] }
    }

    /// Writes the pages of some areas, read from `pid`: the target or its snapshot.
    pub fn pages(&mut self, pid: i32, memory: &Memory, areas: &[Area]) -> Result<()> {
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
            let len = (range.end - at).min(RUN_MAX) as usize;
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = read(memory, at, &mut buffer[..len], area);
            let written = read.and_then(|read| {
                if area.writable {
                    self.locks.look(memory, at, &buffer[..read], &mut self.gathered.owners);
                }
                self.nonzero(at, &buffer[..read])?;
                // Pages of a mapping behind the end of its file do not exist.
                Ok(if read < len { range.end } else { at + len as u64 })
            });
            self.buffer = buffer;
            at = written?;
        }
        Ok(())
    }

    /// Writes the pages that are not all zeros, those that follow each other as one run.
    fn nonzero(&mut self, addr: u64, bytes: &[u8]) -> Result<()> {
        let mut start = None;
        let count = bytes.len() / PAGE as usize;
        for page in 0..=count {
            let here = page * PAGE as usize;
            let content = page < count && !is_zero(&bytes[here..here + PAGE as usize]);
            match (content, start) {
                (true, None) => start = Some(here),
                (false, Some(first)) => {
                    self.writer.pages(addr + first as u64, &bytes[first..here])?;
                    start = None;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the files without a name while the target stands still.
    pub fn contents(&mut self, pid: i32) -> Result<()> {
        for content in std::mem::take(&mut self.gathered.contents) {
            if let Some(bytes) = content.bytes {
                self.contents.push((content.index, bytes));
                continue;
            }
            // Opening through /proc leaves the descriptor's offset alone.
            let path = format!("/proc/{pid}/fd/{}", content.index);
            let mut bytes = Vec::new();
            File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).because(|| {
                format!("cannot read the deleted file behind descriptor {}", content.index)
            })?;
            self.contents.push((content.index, bytes));
        }
        Ok(())
    }

    /// Writes the records and seals; the length of the image, and what it goes without.
    pub fn finish(mut self) -> Result<(u64, Vec<String>)> {
        let process = self.gathered.process.ok_or_else(|| Error::new("nothing was gathered"))?;
        let machine = machine(&mut self.gathered, process.pid.cast_signed())?;
        let losses: Vec<_> =
            self.gathered.losses.iter().map(|l| self.gathered.strings.add(l)).collect();
        let (w, g) = (&mut self.writer, &self.gathered);
        w.records(SectionKind::Machine, &[machine])?;
        w.records(SectionKind::Cpuid, &cpu::leaves())?;
        w.records(SectionKind::Process, &[process])?;
        w.records(SectionKind::Threads, &g.threads)?;
        w.bytes(SectionKind::Xstate, 0, &g.xstate)?;
        w.records(SectionKind::Owners, &g.owners)?;
        w.records(SectionKind::Vmas, &g.vmas)?;
        w.records(SectionKind::Guards, &g.guards)?;
        w.records(SectionKind::Objects, &g.objects)?;
        w.records(SectionKind::Descriptors, &g.descriptors)?;
        w.records(SectionKind::SignalActions, &g.actions)?;
        w.records(SectionKind::PendingSignals, &g.pending)?;
        w.records(SectionKind::Timers, &g.timers)?;
        w.records(SectionKind::Limits, &g.limits)?;
        w.bytes(SectionKind::Auxv, 0, &g.auxv)?;
        for (index, bytes) in &self.contents {
            w.bytes(SectionKind::Content, *index, bytes)?;
        }
        let losses: Vec<_> =
            losses.into_iter().map(|what| ckpt_abi::image::Loss { what }).collect();
        w.records(SectionKind::Losses, &losses)?;
        w.bytes(SectionKind::Strings, 0, self.gathered.strings.bytes())?;
        Ok((self.writer.seal()?, self.gathered.losses))
    }
}

/// Reads up to the first page that does not exist.
fn read(memory: &Memory, addr: u64, buffer: &mut [u8], area: &Area) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let at = addr + done as u64;
        let read = if area.unreadable { Ok(0) } else { memory.read_some(at, rest) };
        let read = match read {
            Ok(n) if n > 0 => n,
            // Memory without read permission, or the end of a mapped file.
            _ => match memory.read_forced(at, rest) {
                Ok(n) if n > 0 => n,
                _ if area.pages == Pages::Whole => break,
                Ok(_) => return Err(Error::new(format!("cannot read the memory at {at:#x}"))),
                Err(e) => return Err(e).because(|| format!("cannot read the memory at {at:#x}")),
            },
        };
        done += read;
    }
    Ok(done - done % PAGE as usize)
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages show early that they are not; the whole comparison is a memcmp.
    page[..64].iter().all(|b| *b == 0) && page[64..] == page[..page.len() - 64]
}

fn machine(gathered: &mut Gathered, pid: i32) -> Result<Machine> {
    let names = nix::sys::utsname::uname().because(|| "uname")?;
    let now = |clock| -> Result<u64> {
        let time = clock_gettime(clock).because(|| "cannot read a clock")?;
        Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
    };
    // The clocks as the program sees them, which may be in another time namespace than we.
    let own = crate::proc::clock_offsets(std::process::id().cast_signed());
    let theirs = crate::proc::clock_offsets(pid);
    let seen = |clock, i: usize| -> Result<u64> {
        Ok(now(clock)?.saturating_add_signed(theirs[i].saturating_sub(own[i])))
    };
    Ok(Machine {
        host: gathered.strings.add(names.nodename()),
        kernel: gathered.strings.add(names.release()),
        realtime: now(ClockId::CLOCK_REALTIME)?,
        monotonic: seen(ClockId::CLOCK_MONOTONIC, 0)?,
        boottime: seen(ClockId::CLOCK_BOOTTIME, 1)?,
        xcr0: cpu::xcr0(),
        version: gathered.strings.add(env!("CARGO_PKG_VERSION")),
        boot: crate::proc::boot(pid),
        cpu: gathered.cpu.0,
        processor: gathered.strings.add(cpu::name(&cpu::leaves())),
        permitted: gathered.permitted,
        ..Machine::new_zeroed()
    })
}
