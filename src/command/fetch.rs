// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoints of servers, in memory or where there is room for them.

use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::image::write::Sink;
use crate::serve::client::Client;
use crate::settings::server::{SCHEME, ServerName, Transfer};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::OsStr;
use std::fs::File;
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

/// The checkpoint of a word of the command line, a file's name or a server's, to be looked at.
///
/// # Errors
/// It cannot be read, or is no checkpoint.
pub(super) fn image(word: &OsStr, transfer: &Transfer) -> Result<Image> {
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
