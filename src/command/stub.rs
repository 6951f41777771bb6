// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint file that is executed: the stub restarts the program that rides on it.
//!
//! # Safety
//! The name by which the kernel executed us is read once, before anything could have moved it. A number
//! becomes a descriptor for a single call, or one that our maker has left for us.
#![allow(unsafe_code)]

use super::destination::{check_said, open_images_with, refuse_plain, usual_key, with_usual_key};
use crate::cli::{self, StubCommand};
use crate::error::{Because, Error, FAILED, Result};
use crate::image::read::Image;
use crate::resource::plan::Step;
use crate::restart::gate::{self, Gate};
use crate::restart::restart;
use crate::settings::Settings;
use crate::settings::server::Key;
use ckpt_abi::op::{Report, read_spelled};
use nix::errno::Errno;
use std::ffi::{CString, OsString};
use std::fs::{File, FileType};
use std::os::fd::{BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use zerocopy::FromBytes;

/// Restarts the program in our own file, or does what the arguments ask.
///
/// # Errors
/// As [`restart_from`].
#[inline(never)]
pub(super) fn from_own_file(own: File, args: &[OsString]) -> Result<u8> {
    if executed_by_the_program() {
        return execute_original(own, args);
    }
    restart_from(own, args)
}

/// Does what a checkpoint file does when it is executed with these words, the first of which is its name.
///
/// # Errors
/// The words are wrong, or the program cannot be restarted.
pub(super) fn restart_from(file: File, args: &[OsString]) -> Result<u8> {
    let name = args.first().cloned().unwrap_or_else(|| "checkpoint".into());
    let mut options = match cli::parse_stub(args.iter().cloned())? {
        StubCommand::Help(text) => return super::print(&text),
        StubCommand::Version => return super::print(&format!("{}\n", cli::version())),
        StubCommand::Restart(options) => options,
    };
    // Without options no name is relative, and a removed directory is as good as another.
    let here = std::env::current_dir().or_else(|e| match args.len() {
        ..=1 => Ok("/".into()),
        _ => Err(e),
    });
    let here = here.because(|| "cannot find out the current directory")?;
    let said = options.settings.transfer.key.clone().or_else(|| {
        let file = std::env::var_os("CKPT_KEY").filter(|file| !file.is_empty())?;
        Some(Key::Said(here.join(file)))
    });
    open_images_with(said.as_ref(), true)?;
    let name = Path::new(&name);
    let gate = gate();
    let image = match &gate {
        Some((gate, file)) => gate.image(file, name)?,
        None => Image::from_file(file, name)?,
    };
    options.cwd = options.cwd.map(|cwd| here.join(cwd));
    let mut settings = std::mem::take(&mut options.settings);
    refuse_plain(&image, settings.encrypt)?;
    if image.is_sealed() {
        // What opened it seals the next one; a passphrase the program has already, made into a key.
        settings.transfer.key = match said.or_else(usual_key) {
            Some(Key::Descriptor(_)) => None,
            Some(Key::Usual(_)) if image.is_of_passphrase() => None,
            Some(Key::Usual(file)) => Some(Key::Said(file)),
            said => said,
        };
    }
    let settings = with_usual_key(settings).resolve(&here)?;
    // The program has the key that was made of a passphrase.
    let has_it = image.is_of_passphrase() && !matches!(settings.transfer.key, Some(Key::Said(_)));
    let encrypt = settings.encrypt.filter(|_| !has_it);
    check_said(&Settings { encrypt, ..settings.clone() })?;
    options.settings = settings;
    match restart(&image, &options, "ckpt", gate.as_ref().map(|(gate, _)| gate))? {}
}

/// Whoever says when the program may go on, and the file that its image comes to, if our maker has them (`moving/there.rs`).
fn gate() -> Option<(Gate, File)> {
    let numbers = std::env::var(gate::VARIABLE).ok()?;
    // What is executed on the way has other descriptors under these numbers.
    // SAFETY: this process has one thread.
    unsafe { std::env::remove_var(gate::VARIABLE) };
    let (line, image) = numbers.split_once(' ')?;
    let is = |number: i32, kind: fn(&FileType) -> bool| {
        let found = std::fs::metadata(format!("/proc/self/fd/{number}"));
        number > 2 && found.is_ok_and(|found| kind(&found.file_type()))
    };
    let line = line.parse().ok().filter(|n| is(*n, FileType::is_socket))?;
    let image = image.parse().ok().filter(|n| is(*n, FileType::is_file))?;
    for number in [line, image] {
        // SAFETY: sets a flag: whoever we execute on the way does not have it.
        unsafe { nix::libc::fcntl(number, nix::libc::F_SETFD, nix::libc::FD_CLOEXEC) };
    }
    // SAFETY: it was made for this, and nothing else of ours is there.
    let line = unsafe { UnixStream::from_raw_fd(line) };
    // SAFETY: as above.
    let image = unsafe { File::from_raw_fd(image) };
    Some((Gate::of(line), image))
}

/// Whether somebody executed /proc/…/exe: a restarted program that starts itself anew (busybox its
/// applets), for which the checkpoint stands in the place of its executable.
fn executed_by_the_program() -> bool {
    const AT_EXECFN: u64 = 31;
    // SAFETY: reads the auxiliary vector of this process.
    let name = unsafe { nix::libc::getauxval(AT_EXECFN) };
    if name == 0 {
        return false;
    }
    let pointer: *const std::ffi::c_char = std::ptr::with_exposed_provenance(name as usize);
    // SAFETY: the kernel put a C string there (execve(2)).
    let name = unsafe { std::ffi::CStr::from_ptr(pointer) };
    let name = name.to_bytes();
    name.starts_with(b"/proc/") && name.ends_with(b"/exe")
}

fn execute_original(own: File, args: &[OsString]) -> Result<u8> {
    use ckpt_abi::image::{ProcessRecord, SectionKind};
    let image = Image::from_file(own, Path::new("/proc/self/exe"))?;
    // The program has no key.
    let path = match image.is_sealed() {
        true => image.executable()?,
        false => image.text(image.process(0).record::<ProcessRecord>(SectionKind::Process)?.exe),
    };
    let c_string = |text: &std::ffi::OsStr| CString::new(text.as_bytes()).unwrap_or_default();
    let argv: Vec<CString> = args.iter().map(|a| c_string(a)).collect();
    let error = match nix::unistd::execv(&c_string(&path), &argv) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    Err(Error::new(format!("cannot execute {}: {}", Path::new(&path).display(), error.desc())))
}

/// Turns the report that the restorer has spelled into a sentence, for descriptor `to`.
#[inline(never)]
pub(super) fn report(letters: Option<&OsString>, to: Option<&OsString>) -> Result<u8> {
    let report = letters.and_then(|l| read_spelled(l.as_bytes()));
    let Some(report) = report.and_then(|bytes| Report::read_from_bytes(&bytes).ok()) else {
        return Err(Error::new("__report is for the restorer alone"));
    };
    let sentence = format!("ckpt: {}\n", failure(&report));
    let to = to.and_then(|fd| fd.to_str()).and_then(|fd| fd.parse().ok()).unwrap_or(2);
    // SAFETY: the restorer has left it open for this; if not, the call fails with EBADF.
    let to = unsafe { BorrowedFd::borrow_raw(to) };
    if nix::unistd::write(to, sentence.as_bytes()).is_err() {
        eprint!("{sentence}");
    }
    Ok(FAILED)
}

/// What the kernel refused, why, and what helps.
fn failure(report: &Report) -> Error {
    let step = Step::try_from(report.step);
    let doing = step.map_or("go on", Step::describe);
    let reason = match report.errno {
        0 => "the kernel answered something else than asked for",
        n => Errno::from_raw(n.cast_signed()).desc(),
    };
    let Report { nr, addr, len, index, .. } = report;
    let error = Error::new(format!(
        "cannot restart: the kernel did not let the program {doing}: {reason} (order {index}, system call {nr}, {addr:#x}, {len:#x})"
    ));
    match step.ok().and_then(|step| step.way_out(Errno::from_raw(report.errno.cast_signed()))) {
        Some(hint) => error.hint(hint),
        None => error
            .hint("the checkpoint is unharmed, and ckpt check FILE says what this machine lacks"),
    }
}
