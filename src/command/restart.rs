// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt restart NAME`: executes a checkpoint by its name, which is a file's, a server's or a stream's.
//!
//! # Safety
//! execveat(2) is called with strings that live until it returns, which it does only on failure.
#![allow(unsafe_code)]

use super::destination::{open_images_with, refuse_plain};
use super::{fetch, stub, trust};
use crate::error::{Because, CANNOT_EXECUTE, Error, Kind, NOT_FOUND, Result};
use crate::image::read::{self, Image};
use crate::settings::server::{Key, Transfer};
use crate::settings::{Name, passphrase};
use nix::errno::Errno;
use nix::libc;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Executes the checkpoint `name`; `args` are options of the checkpoint file.
///
/// # Errors
/// There is none, it is not to be trusted, or it cannot be executed.
#[inline(never)]
pub(super) fn run(
    name: &OsStr,
    transfer: &Transfer,
    args: &[OsString],
    trusted: bool,
) -> Result<u8> {
    // A file of such a name is no command: others may have chosen it, and a shell made it of `*`.
    let file = Path::new(".").join(name);
    let is_there = name.as_bytes().starts_with(b"|") && file.symlink_metadata().is_ok();
    let name = if is_there { file.as_os_str() } else { name };
    open_images_with(transfer.key.as_ref(), true)?;
    match Name::parse(name)? {
        Name::File(path) => {
            let file = read::open(&path).because(|| format!("cannot open {}", path.display()));
            let file = file.map_err(|e| e.with_status(NOT_FOUND))?;
            let copy = file.try_clone().because(|| path.display().to_string())?;
            let image = Image::from_file(copy, &path).map_err(inexecutable)?;
            // Anybody else may execute what he likes as himself, as if it were a program.
            if nix::unistd::geteuid().is_root()
                && !trusted
                && let Some(why) = trust::judge(Some(&file), &path)?
            {
                return Err(why.sentence().hint(trust::WAY_OUT));
            }
            proceed(&image, file, &path, (transfer, args))
        }
        Name::Server(server) => {
            let file = fetch::fetch(&server, transfer)?;
            let copy = file.try_clone().because(|| "cannot keep a checkpoint open")?;
            let image = Image::from_file(copy, Path::new(name))?;
            proceed(&image, file, Path::new(name), (transfer, args))
        }
        Name::Stream(_) => {
            let file = fetch::streamed(name)?;
            let copy = file.try_clone().because(|| "cannot keep a checkpoint open")?;
            let image = Image::from_file(copy, Path::new(name)).map_err(inexecutable)?;
            image.verify()?;
            if name == "-" {
                fetch::back_to_the_terminal(&image)?;
            }
            proceed(&image, file, Path::new(name), (transfer, args))
        }
    }
}

/// What is no checkpoint cannot be executed; of a damaged one it is ckpt that tells, as the checkpoint itself does.
fn inexecutable(error: Error) -> Error {
    match error.kind() {
        Kind::Damaged => error,
        _ => error.with_status(CANNOT_EXECUTE),
    }
}

/// Becomes the checkpoint file; of an encrypted one, whose key it has to be told, only if that is its key. What is executed is
/// what those who have the key have written.
fn proceed(
    image: &Image,
    file: File,
    name: &Path,
    (transfer, args): (&Transfer, &[OsString]),
) -> Result<u8> {
    if let Some(why) = image.locked() {
        return Err(why.clone());
    }
    let demands = args.iter().any(|word| word == "--encrypt").then_some(true);
    refuse_plain(image, demands)?;
    let mut args = args.to_vec();
    if image.is_of_passphrase() {
        // The passphrase was said to us. The pipe stays open until the file is executed.
        let said = passphrase::again_for_another()?;
        args.insert(0, format!("--passphrase-fd={}", said.as_raw_fd()).into());
        return execute(file, name, &args);
    }
    if let (true, Some(Key::Said(path))) = (image.is_sealed(), &transfer.key) {
        args.insert(0, [OsStr::new("--key="), path.as_os_str()].join(OsStr::new("")));
    }
    execute(file, name, &args)
}

/// Becomes the checkpoint file: it carries the ckpt that made it. Where it may not be executed
/// (vm.memfd_noexec, a file system mounted noexec), this ckpt does its work.
///
/// # Errors
/// It cannot be executed, or this ckpt cannot restart it.
pub(super) fn execute(file: File, name: &Path, args: &[OsString]) -> Result<u8> {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
    let argv: Vec<CString> = std::iter::once(name.as_os_str())
        .chain(args.iter().map(AsRef::as_ref))
        .map(c_string)
        .collect();
    let envp: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| c_string(&[name, value].join(OsStr::new("="))))
        .collect();
    let argv = pointers(&argv);
    let envp = pointers(&envp);
    // SAFETY: both lists end with a null pointer, and their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    match Errno::last() {
        Errno::EACCES | Errno::EPERM => {
            let words: Vec<_> =
                std::iter::once(name.as_os_str().to_owned()).chain(args.iter().cloned()).collect();
            stub::restart_from(file, &words)
        }
        e => Err(Error::new(format!("cannot execute {}: {}", name.display(), e.desc()))
            .with_status(CANNOT_EXECUTE)),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}
