// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoints of servers and of streams, in memory or where there is room for them.

use super::destination::open_images_with;
use crate::error::{Because, Error, Result};
use crate::image::piped::Giver;
use crate::image::queued::{PIECE, on_disk};
use crate::image::read::Image;
use crate::image::sink::Sink;
use crate::progress::{self, Screen};
use crate::serve::client::Client;
use crate::settings::server::{SCHEME, ServerName, Transfer};
use crate::settings::stream;
use ckpt_abi::image::{Descriptor, DescriptorKind, SectionKind};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An image in a file without a name.
struct MemorySink(File);

impl Sink for MemorySink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.write_all_at(bytes, offset).because(|| "cannot keep the checkpoint of the server")
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        self.0.set_len(len).because(|| "cannot keep the checkpoint of the server")
    }
}

/// A checkpoint from a server, in memory.
///
/// # Errors
/// The server's, and what it has is no checkpoint.
pub(super) fn fetch(server: &ServerName, transfer: &Transfer) -> Result<File> {
    let file = download(server, transfer)?;
    // Not executed before it is known to be a checkpoint, whatever the server says.
    Image::find(&file)
        .because(|| server.to_string())?
        .ok_or_else(|| Error::new(format!("{server} is not a checkpoint")))?;
    Ok(file)
}

/// Whatever a server has under a name, in memory.
///
/// # Errors
/// The server's.
pub(super) fn download(server: &ServerName, transfer: &Transfer) -> Result<File> {
    let mut sink = MemorySink(memory()?);
    Client::connect(server, transfer)?.get(server.path(), &mut sink)?;
    Ok(sink.0)
}

/// Whatever a stream gives to its end: our standard input (`-`), or the standard output of a command (`|COMMAND`). It can
/// be executed.
///
/// # Errors
/// There is nothing, or no room for it; the command has failed.
pub(super) fn streamed(name: &OsStr) -> Result<File> {
    let file = gathered(name)?;
    match file.metadata().is_ok_and(|meta| meta.len() > 0) {
        true => Ok(file),
        false => {
            Err(Error::new(format!("{} has given nothing", stream::shown_name(name).display()))
                .hint("run the command by itself and look; nothing was started"))
        }
    }
}

/// The same; it may be nothing.
///
/// # Errors
/// As there.
pub(super) fn gathered(name: &OsStr) -> Result<File> {
    let shown = name.to_string_lossy().into_owned();
    if name == "-" {
        let input = std::io::stdin();
        if input.is_terminal() {
            return Err(Error::new("standard input is a terminal, where no checkpoint comes from")
                .hint("say < FILE, or COMMAND |"));
        }
        let own = input.as_fd().try_clone_to_owned().because(|| "cannot read standard input")?;
        return spooled(&mut own.into(), shown);
    }
    let mut giver = Giver::start(stream::command(name)?)?;
    let file = spooled(&mut giver.output, shown);
    let ended = giver.finish();
    let file = file?;
    ended.map(|()| file)
}

/// All that comes, in memory as long as that takes no more than a part of what is free, else on a disk.
fn spooled(from: &mut File, name: String) -> Result<File> {
    const WHY: &str = "cannot keep the checkpoint";
    let _shown = progress::begin(name.clone(), None, Screen::Own);
    let (most, mut tried) = (available() / 4, false);
    let (mut into, mut at, mut piece) = (memory()?, 0, vec![0; PIECE]);
    loop {
        let n = match from.read(&mut piece) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            n => n.because(|| format!("cannot read {name}"))?,
        };
        if n == 0 {
            break;
        }
        if !tried && at + n as u64 > most {
            tried = true;
            if let Some(disk) = on_disk() {
                copy(&into, &disk, 0..at).because(|| WHY)?;
                into = disk;
            }
        }
        into.write_all_at(&piece[..n], at)
            .because(|| WHY)
            .map_err(|e| e.hint("TMPDIR names a directory with more room"))?;
        at += n as u64;
        progress::add(n as u64);
    }
    // What somebody has open for writing cannot be executed (ETXTBSY).
    File::open(format!("/proc/self/fd/{}", into.as_raw_fd())).because(|| WHY)
}

pub(super) fn copy(from: &File, to: &File, part: Range<u64>) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    let end = part.end;
    part.step_by(PIECE).try_for_each(|at| {
        let piece = &mut piece[..(end - at).min(PIECE as u64) as usize];
        from.read_exact_at(piece, at)?;
        to.write_all_at(piece, at)
    })
}

/// Memory that is free, in bytes (proc_meminfo(5)); 0: nobody knows.
pub(super) fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let words = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = words.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.map_or(0, |kib| kib << 10)
}

/// Gives a program whose standard input was a terminal that of ours again, which a checkpoint came over.
///
/// # Errors
/// The records of the image are damaged.
pub(super) fn back_to_the_terminal(image: &Image) -> Result<()> {
    let all: Vec<Descriptor> = image.process(0).records(SectionKind::Descriptors)?;
    let terminal = |d: &Descriptor| d.fd == 0 && d.mode & libc::S_IFMT == libc::S_IFCHR;
    if all.iter().any(|d| terminal(d) && d.kind == DescriptorKind::Stdio as u32)
        && let Ok(tty) = File::options().read(true).write(true).open("/dev/tty")
    {
        nix::unistd::dup2_stdin(&tty).because(|| "cannot give the program the terminal")?;
    }
    Ok(())
}

/// The checkpoint of a word of the command line, a file's name, a server's or `-`, to be looked at. No word is a command:
/// of those that a shell has made of `*`, others have chosen the names.
///
/// # Errors
/// It cannot be read, or is no checkpoint.
pub(super) fn image(word: &OsStr, transfer: &Transfer) -> Result<Image> {
    open_images_with(transfer.key.as_ref(), true)?;
    if word == "-" {
        return Image::from_file(streamed(word)?, Path::new(word));
    }
    if !word.as_bytes().starts_with(SCHEME.as_bytes()) {
        let path = word.as_bytes().strip_prefix(b"file://").unwrap_or(word.as_bytes());
        let path = Path::new(OsStr::from_bytes(path));
        let opened = Image::open(path);
        return match stream::is_one(word.as_bytes()) && !path.exists() {
            true => {
                opened.map_err(|e| e.hint("for the output of a command, say COMMAND | ckpt ... -"))
            }
            false => opened,
        };
    }
    let server = ServerName::parse(word)?;
    let mut sink = MemorySink(passing()?);
    Client::connect(&server, transfer)?.get(server.path(), &mut sink)?;
    Image::from_file(sink.0, Path::new(word))
}

/// A file without a name, which may be larger than memory: on a disk if there is room for one.
fn passing() -> Result<File> {
    on_disk().map_or_else(memory, Ok)
}

/// A file in memory.
pub(super) fn memory() -> Result<File> {
    // MFD_EXEC (memfd_create(2)) says what is meant since Linux 6.3, and is EINVAL before.
    let exec = MFdFlags::from_bits_retain(0x10);
    let made = memfd_create(c"ckpt", MFdFlags::MFD_CLOEXEC | exec)
        .or_else(|_| memfd_create(c"ckpt", MFdFlags::MFD_CLOEXEC));
    made.map(File::from).because(|| "cannot make a file in memory")
}
