// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt restart NAME`: executes a checkpoint file, or fetches one into memory and executes that.
//!
//! # Safety
//! execveat(2) is called with strings that live until it returns, which it does only on failure.
#![allow(unsafe_code)]

use super::trust;
use crate::error::{Because, CANNOT_EXECUTE, Error, NOT_FOUND, Result};
use crate::image::read::{self, Image};
use crate::image::write::Sink;
use crate::restart::{Options, restart};
use crate::serve::client::Client;
use crate::settings::Name;
use crate::settings::server::{SCHEME, ServerName, Transfer};
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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

/// Resumes the program in the checkpoint `name`; `args` are options of the checkpoint file.
pub fn resume(name: &OsStr, transfer: &Transfer, args: &[OsString], trusted: bool) -> Result<u8> {
    match Name::parse(name)? {
        Name::File(path) => {
            let file = read::open(&path).because(|| format!("cannot open {}", path.display()));
            let file = file.map_err(|e| e.with_status(NOT_FOUND))?;
            let copy = file.try_clone().because(|| path.display().to_string())?;
            Image::from_file(copy, &path).map_err(|e| e.with_status(CANNOT_EXECUTE))?;
            // Anybody else may execute what he likes as himself, as if it were a program.
            if nix::unistd::geteuid().is_root()
                && !trusted
                && let Some(why) = trust::judge(Some(&file), &path)?
            {
                return Err(why.sentence().hint(trust::WAY_OUT));
            }
            execute(file, &path, args)
        }
        Name::Server(server) => {
            let file = fetch(&server, transfer)?;
            execute(file, Path::new(name), args)
        }
    }
}

/// A checkpoint from a server, in memory.
///
/// # Errors
/// The server's, and what it has is no checkpoint.
pub fn fetch(server: &ServerName, transfer: &Transfer) -> Result<File> {
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
pub fn download(server: &ServerName, transfer: &Transfer) -> Result<File> {
    let mut sink = MemorySink(memory()?);
    Client::connect(server, transfer)?.get(server.path(), &mut sink)?;
    Ok(sink.0)
}

/// The checkpoint of a word of the command line, a file's name or a server's, to be looked at.
///
/// # Errors
/// It cannot be read, or is no checkpoint.
pub fn image(word: &OsStr, transfer: &Transfer) -> Result<Image> {
    if !word.as_bytes().starts_with(SCHEME.as_bytes()) {
        let path = word.as_bytes().strip_prefix(b"file://").unwrap_or(word.as_bytes());
        return Image::open(Path::new(OsStr::from_bytes(path)));
    }
    let server = ServerName::parse(word)?;
    let mut sink = MemorySink(passing()?);
    Client::connect(&server, transfer)?.get(server.path(), &mut sink)?;
    Image::from_file(sink.0, Path::new(word))
}

/// A file without a name, which may be larger than memory: on a disk if there is room for one.
fn passing() -> Result<File> {
    let open = |dir: PathBuf| {
        let flags = libc::O_TMPFILE;
        File::options().read(true).write(true).custom_flags(flags).mode(0o600).open(dir)
    };
    let dirs = [std::env::var_os("TMPDIR").map(PathBuf::from), Some("/var/tmp".into())];
    dirs.into_iter().flatten().find_map(|dir| open(dir).ok()).map_or_else(memory, Ok)
}

fn memory() -> Result<File> {
    // MFD_EXEC (memfd_create(2)) says what is meant since Linux 6.3, and is EINVAL before.
    let exec = MFdFlags::from_bits_retain(0x10);
    let made = memfd_create(c"ckpt", MFdFlags::MFD_CLOEXEC | exec)
        .or_else(|_| memfd_create(c"ckpt", MFdFlags::MFD_CLOEXEC));
    made.map(File::from).because(|| "cannot make a file in memory")
}

/// Becomes the checkpoint file: it carries the ckpt that made it. Where it may not be executed
/// (vm.memfd_noexec, a file system mounted noexec), this ckpt does its work.
///
/// # Errors
/// It cannot be executed, or this ckpt cannot restart it.
pub fn execute(file: File, name: &Path, args: &[OsString]) -> Result<u8> {
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
        Errno::EACCES | Errno::EPERM => ourselves(file, name, args),
        e => Err(Error::new(format!("cannot execute {}: {}", name.display(), e.desc()))
            .with_status(CANNOT_EXECUTE)),
    }
}

fn ourselves(file: File, name: &Path, args: &[OsString]) -> Result<u8> {
    let words = std::iter::once(name.as_os_str().to_owned()).chain(args.iter().cloned());
    let options = match crate::cli::parse_restart(words)? {
        crate::cli::RestartCommand::Help(text) => return super::print(&text),
        crate::cli::RestartCommand::Version => {
            return super::print(&format!("{}\n", crate::cli::version()));
        }
        crate::cli::RestartCommand::Restart(options) => options,
    };
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    let crate::cli::RestartOptions { settings, truncate_files, force_cpu, map_path } = options;
    let settings = super::destination::with_usual_key(settings).resolve(&here)?;
    super::destination::check_said(&settings)?;
    let image = Image::from_file(file, name)?;
    let options = Options { settings, truncate_files, force_cpu, map_path };
    match restart(&image, &options, "ckpt")? {}
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}
