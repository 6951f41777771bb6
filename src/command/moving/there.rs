// SPDX-License-Identifier: LGPL-2.1-only
//! The other end of a move: it has the image in a directory of its own, and goes away with the program.
//!
//! As long as the image has its name the program has not begun here. Whoever sees neither an order nor an end of the
//! connection leaves it there.
//!
//! # Safety
//! The child is made while this process has one thread; no handler of a signal runs.
#![allow(unsafe_code)]

use super::super::{fetch, restart, told};
use super::ends::Ends;
use super::streams::STREAMS;
use super::wire::{MARK, Wire, Word, lost, pieces, write_all};
use crate::cli::{self, StubCommand};
use crate::error::{Because, Error, FAILED, Result, printable};
use crate::fault::{Point, reach};
use crate::image::PAGE;
use crate::image::read::Image;
use crate::image::sums::Sums;
use crate::order;
use crate::proc::Pid;
use crate::proc::clocks::up;
use crate::proc::fork::end;
use crate::proc::pidfd::Pidfd;
use crate::resource::descriptor::standard;
use crate::restart::{MapPath, foresee, gate};
use crate::units::size;
use ckpt_abi::image::{Chunk, Descriptor, SectionKind};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use nix::unistd::{ForkResult, fork};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where an image may be, if there is no room beside our executable.
const PLACES: [&str; 3] = ["/var/tmp", "/dev/shm", "."];
/// How long the order to begin may be on its way.
pub(super) const ORDER: Duration = Duration::from_secs(60);

/// Is the other end, until the program has ended; our directory is `dir`.
pub(in super::super) fn run(dir: &Path) -> Result<u8> {
    // SAFETY: no handler runs.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    let from = std::io::stdin().as_fd().try_clone_to_owned();
    let (from, to) = from
        .and_then(|from| Ok((from, std::io::stdout().as_fd().try_clone_to_owned()?)))
        .because(|| "there is no standard input or output")?;
    write_all(to.as_fd(), MARK, None).because(|| "there is no standard input or output")?;
    let mut wire = Wire::new(from, to);
    wire.send(Word::Here, 0, &[])?;
    let begin = wire.expect(Word::Begin)?;
    let mut house = match House::new(dir, wire.bytes(begin), begin.number) {
        Ok(house) => house,
        Err(e) => return refuse(&wire, &e),
    };
    reach(Point::Housed);
    wire.send(Word::Here, 0, house.place.as_os_str().as_bytes())?;
    loop {
        let frame = wire.receive()?;
        let done = match frame.word {
            Word::Pieces => {
                pieces(wire.bytes(frame)).try_for_each(|(at, piece)| house.write(at, piece))
            }
            Word::Round => house.bring(frame.number, false).and_then(|()| {
                reach(Point::Proved);
                wire.send(Word::Done, 0, &[])
            }),
            Word::Last => match house.bring(frame.number, true) {
                Ok(()) => return stand(wire, house),
                Err(e) => Err(e),
            },
            _ => return Ok(0),
        };
        if let Err(e) = done {
            return refuse(&wire, &e);
        }
    }
}

/// Says why not. What there was of the image goes.
fn refuse(wire: &Wire, error: &Error) -> Result<u8> {
    wire.send(Word::Failed, 0, error.to_string().as_bytes())?;
    Ok(0)
}

/// Where the image is, and the restart that waits for it.
struct House {
    part: File,
    /// What it is called until it is whole, and then.
    unnamed: PathBuf,
    place: PathBuf,
    /// That of our executable, and one beside it if the image is there.
    dir: PathBuf,
    own: Option<PathBuf>,
    words: Vec<OsString>,
    streams: Vec<u8>,
    /// The checksums of its pages.
    sums: Sums,
    /// What has come since the restart was told of it last: where it begins and ends.
    changed: Vec<Range<u64>>,
    /// What was in it that was right when it was looked at last.
    proven: Vec<Chunk>,
    waits: Option<Waits>,
    /// How many bytes of the pipe of standard input went along.
    unread: u64,
    keeps: bool,
}

impl House {
    /// `said` is the streams, the name and the words, each behind a zero; the image will have so many bytes.
    fn new(dir: &Path, said: &[u8], bytes: u64) -> Result<Self> {
        let (streams, said) = said.split_at(said.len().min(STREAMS));
        let mut words = said.split(|byte| *byte == 0).map(|w| OsStr::from_bytes(w).to_owned());
        let name = words.next().unwrap_or_default();
        let free = fetch::available();
        if (1..bytes).contains(&free) {
            let (bytes, free) = (size(bytes), size(free));
            return Err(Error::new(format!("there is no memory for {bytes} there ({free})")));
        }
        // What is in memory there has to be there twice while the program begins.
        let most = |dir: &Path| match statfs(dir).map(|fs| fs.filesystem_type()) {
            Ok(TMPFS_MAGIC) if free > 0 => free.saturating_sub(bytes),
            _ => u64::MAX,
        };
        let room = |dir: &Path| {
            let room = statvfs(dir).map_or(0, |fs| fs.blocks_available() * fs.fragment_size());
            room.min(most(dir))
        };
        let own = || {
            let fits = PLACES.iter().map(Path::new).find(|place| room(place) > bytes)?;
            let dir = std::env::current_dir().ok()?.join(fits);
            let dir = dir.join(format!("ckpt-move.{}", std::process::id()));
            fs::DirBuilder::new().mode(0o700).create(&dir).ok()?;
            Some(dir)
        };
        let own = if room(dir) > bytes { None } else { own() };
        let at = own.as_deref().unwrap_or(dir);
        if room(at) <= bytes {
            let (room, bytes) = (size(room(dir)), size(bytes));
            return Err(Error::new(format!(
                "there is no room for {bytes} in {} ({room})",
                dir.display()
            ))
            .hint("set TMPDIR there to a directory that has it"));
        }
        let (place, unnamed) = (at.join(name), at.join("part"));
        let part = create(&unnamed)?;
        Ok(Self {
            part,
            unnamed,
            place,
            dir: dir.to_owned(),
            own,
            words: words.collect(),
            streams: streams.to_vec(),
            sums: Sums::default(),
            changed: Vec::new(),
            proven: Vec::new(),
            waits: None,
            unread: 0,
            keeps: false,
        })
    }

    fn cannot(&self) -> String {
        cannot_write(&self.unnamed)
    }

    /// Takes bytes of the image.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.part.write_all_at(bytes, at).because(|| self.cannot())?;
        self.sums.note(at, bytes);
        let end = at + bytes.len() as u64;
        match self.changed.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => self.changed.push(at..end),
        }
        Ok(())
    }

    /// Checks an image, and has the restart bring memory up to it; of the last one it comes as far as to its last steps.
    fn bring(&mut self, len: u64, is_last: bool) -> Result<()> {
        self.part.set_len(len).because(|| self.cannot())?;
        let image = Image::from_file(self.reader()?, &self.place)?;
        let mut changed = order::joined(std::mem::take(&mut self.changed));
        let chunks = self.prove(&image, &changed)?;
        if !is_last {
            let words = std::iter::once("checkpoint".into()).chain(self.words.iter().cloned());
            let map_path = match cli::parse_stub(words)? {
                StubCommand::Restart(options) => options.map_path,
                _ => MapPath::default(),
            };
            foresee(&image, &map_path)?;
        }
        if self.waits.is_none() {
            self.waits = Some(self.start(&chunks, len)?);
            changed.clear();
        }
        self.proven = chunks;
        if is_last {
            let what = || "cannot restart the program";
            self.unread = unread(&image)?;
            fs::rename(&self.unnamed, &self.place).because(what)?;
            // Nobody executes what somebody has open for writing (ETXTBSY).
            self.part = self.reader()?;
        }
        if let Some(waits) = &mut self.waits {
            waits.tell(is_last, changed)?;
        }
        if is_last {
            reach(Point::Poised);
        }
        Ok(())
    }

    /// The image, not to be written to.
    fn reader(&self) -> Result<File> {
        File::open(format!("/proc/self/fd/{}", self.part.as_raw_fd())).because(|| self.cannot())
    }

    /// Checks what there is: what has come is what was sent, so it is not read for that; nor is what lies as it did, in none
    /// of the parts that have changed, looked at again.
    fn prove(&self, image: &Image, changed: &[Range<u64>]) -> Result<Vec<Chunk>> {
        image.verify_frame()?;
        let chunks = image.chunks()?;
        let key = |c: &Chunk| (c.process, c.object, c.address);
        let lies = |c: &Chunk| (c.offset, c.len, c.stored, c.codec, c.hash);
        for chunk in &chunks {
            let before = self.proven.binary_search_by_key(&key(chunk), key);
            let is_so = before.is_ok_and(|at| lies(&self.proven[at]) == lies(chunk));
            let next = changed.partition_point(|part| part.end <= chunk.offset);
            let end = chunk.offset + u64::from(chunk.stored);
            if is_so && changed.get(next).is_none_or(|part| part.start >= end) {
                continue;
            }
            let pages = (u64::from(chunk.len) / PAGE) as usize;
            if self.sums.of(chunk.offset, pages) != chunk.hash {
                image.read_chunk(chunk)?;
            }
        }
        Ok(chunks)
    }

    /// Starts a restart, from a file that has all of the image but its content: as such a one the program runs, and the
    /// room of the image is free when it does.
    fn start(&self, chunks: &[Chunk], len: u64) -> Result<Waits> {
        let what = || "cannot restart the program";
        // What it is called its processes are called, until they are the program's.
        let outline = self.dir.join(self.place.file_name().unwrap_or_default());
        let file = create(&outline)?;
        let mut places: Vec<_> = chunks.iter().map(|c| (c.offset, c.stored.into())).collect();
        order::numbers(&mut places);
        let mut at = 0;
        for (offset, stored) in places.into_iter().chain([(len, 0)]) {
            let copied = fetch::copy(&self.part, &file, at..offset);
            copied.because(|| cannot_write(&outline))?;
            at = at.max(offset + stored);
        }
        drop(file);
        let file = File::open(&outline).because(what)?;
        let _ = fs::remove_file(&outline);
        let image = self.reader()?;
        let (line, theirs) = UnixStream::pair().because(what)?;
        let mut ends = Ends::make(&self.streams)?;
        // SAFETY: this process has one thread.
        let child = match unsafe { fork() }.because(what)? {
            ForkResult::Parent { child } => Pid::new(child.as_raw()),
            ForkResult::Child => {
                drop(line);
                let outcome = ends.take().and_then(|()| self.execute(file, (&theirs, &image)));
                end(told(outcome).into())
            }
        };
        ends.theirs.clear();
        let pidfd = Pidfd::open(child).because(what)?;
        Ok(Waits { child, pidfd, line, ends })
    }

    fn execute(&self, file: File, (line, image): (&UnixStream, &File)) -> Result<u8> {
        let numbers = [line.as_raw_fd(), image.as_raw_fd()];
        for number in numbers {
            // SAFETY: changes a flag of a descriptor that is ours.
            unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
        }
        let numbers = numbers.map(|number| number.to_string()).join(" ");
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(gate::VARIABLE, numbers) };
        restart::execute(file, &self.place, &self.words)
    }

    /// What the image is called while the program may have begun.
    fn begun(&self) -> PathBuf {
        let mut name = self.place.clone().into_os_string();
        name.push(".begun");
        name.into()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.waits.iter().for_each(Waits::kill);
        if !self.keeps {
            for path in [&self.unnamed, &self.place, &self.begun()] {
                let _ = fs::remove_file(path);
            }
            self.own.iter().for_each(|own| drop(fs::remove_dir(own)));
        }
    }
}

fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true).mode(0o700);
    options.open(path).because(|| cannot_write(path))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write to {}", path.display())
}

/// How many bytes of the pipe of standard input are in an image.
fn unread(image: &Image) -> Result<u64> {
    for process in image.processes() {
        for record in process.records::<Descriptor>(SectionKind::Descriptors)? {
            if standard::is_unread(&record) {
                return Ok(process.bytes(SectionKind::Content, record.content)?.len() as u64);
            }
        }
    }
    Ok(0)
}

/// A restart that waits.
struct Waits {
    child: Pid,
    pidfd: Pidfd,
    line: UnixStream,
    ends: Ends,
}

impl Waits {
    /// Has it bring memory up to date, and waits for that.
    fn tell(&mut self, is_last: bool, changed: Vec<Range<u64>>) -> Result<()> {
        let head = [u64::from(is_last), changed.len() as u64];
        let words =
            head.into_iter().chain(changed.into_iter().flat_map(|part| [part.start, part.end]));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let done = self.line.write_all(&bytes).and_then(|()| self.line.read_exact(&mut [0]));
        if done.is_ok() {
            return Ok(());
        }
        let status = reap(self.child);
        let said = printable(self.ends.said().trim_start_matches("ckpt: "));
        Err(Error::new(match said.is_empty() {
            true => format!("its restart there ended with status {status:#x}"),
            false => said,
        }))
    }

    fn kill(&self) {
        self.pidfd.kill();
        reap(self.child);
    }

    /// Has the program begin, and waits until it has.
    ///
    /// # Errors
    /// It has not, and will not.
    fn begin(&mut self) -> Result<()> {
        self.line.write_all(&[1]).because(|| "its restart has ended")?;
        let mut polled =
            [self.line.as_fd(), self.pidfd.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        while poll(&mut polled, PollTimeout::NONE) == Err(Errno::EINTR) {}
        // Others may have the other end, too. What was said is there before the end of who said it.
        let said = self.line.set_nonblocking(true).and_then(|()| self.line.read_exact(&mut [0]));
        while said.is_err() && !self.pidfd.ended_within(ORDER) {}
        said.because(|| "the program could not begin there")
    }
}

/// Waits for the order, with a program that waits for its last steps, and is what it has here until it ends.
fn stand(mut wire: Wire, mut house: House) -> Result<u8> {
    house.keeps = true;
    reach(Point::Vowing);
    // A network that comes back after minutes brings what was sent before, and whoever was stopped hears it late: somebody
    // may have executed the image by then.
    wire.patience = Some(ORDER);
    let said = loop {
        let done = up();
        // What is heard tells if it does not arrive.
        let _ = wire.send(Word::Done, house.unread, &[]);
        match wire.receive() {
            Ok(_) if up().saturating_sub(done) >= ORDER => break Err(lost(Errno::ETIMEDOUT)),
            // It was asked whether it still waits.
            Ok(frame) if frame.word == Word::Last => {}
            said => break said.map(|frame| frame.word),
        }
    };
    wire.patience = None;
    match said {
        Ok(Word::Go) => {}
        Ok(Word::Drop) => {
            house.keeps = false;
            return Ok(0);
        }
        Ok(_) => return Ok(0),
        Err(e) => {
            let place = printable(&house.place.to_string_lossy());
            return Err(e.hint(format!(
                "the connection was lost before the program was told to begin; if it has ended on the other host it goes \
                 on by executing {place}"
            )));
        }
    }
    let since = Instant::now();
    reach(Point::Ordered);
    let Some(mut waits) = house.waits.take() else { return Ok(0) };
    let begun = fs::rename(&house.place, house.begun()).because(|| "cannot rename the image");
    let begun = begun.and_then(|()| {
        reach(Point::Renamed);
        waits.begin()
    });
    if let Err(e) = begun {
        waits.kill();
        return refuse(&wire, &e.hint(waits.ends.said())).map(|_| FAILED);
    }
    reach(Point::Began);
    wire.send(Word::Begun, since.elapsed().as_micros() as u64, &[]).ok();
    let Waits { child, pidfd, ends, .. } = waits;
    // All of it is in memory. To free the room may take long.
    let place = house.place.clone();
    house.keeps = false;
    let frees = std::thread::Builder::new().stack_size(128 << 10).spawn(move || drop(house));
    let spill = ends.carry(wire, (child, &pidfd), &place);
    let ended = spill.map(|spill| spill.end(reap(child)));
    // What a program that ends at once leaves would stay.
    let _ = frees.map(std::thread::JoinHandle::join);
    ended.map(|()| 0)
}

/// Waits for a child; its status.
pub(super) fn reap(child: Pid) -> i32 {
    let mut status = 0;
    // SAFETY: the kernel writes the one word.
    while unsafe { libc::waitpid(child.get(), &mut status, 0) } < 0 && Errno::last() == Errno::EINTR
    {
    }
    status
}
