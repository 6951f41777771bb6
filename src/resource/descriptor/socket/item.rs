// SPDX-License-Identifier: LGPL-2.1-only
//! A unix socket of an image, and its name: a path, which may be removed or another's by now, or an abstract one (unix(7)).

use super::queue::Message;
use crate::error::{Because, Error, Result};
use crate::proc::unix::Unix;
use crate::resource::descriptor::open::{Sources, place};
use crate::resource::descriptor::spot::Spot;
use ckpt_abi::image::{Descriptor, Socket, socket_flag};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, socket, socketpair,
};
use nix::unistd::UnlinkatFlags;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use zerocopy::FromBytes;

/// A socket of the image.
pub(super) struct Item {
    /// Whose of the image's processes it is.
    pub(super) process: u32,
    pub(super) socket: Socket,
    pub(super) name: Vec<u8>,
    pub(super) options: Vec<u8>,
    /// The name of somebody outside to whom it sends, or nothing.
    pub(super) sends_to: Vec<u8>,
    pub(super) messages: Vec<Message>,
    /// The file that it is bound to, here.
    pub(super) file: Option<PathBuf>,
    /// The directory that its name begins in.
    directory: Option<PathBuf>,
    /// Where others find it whose file was removed: by that file, or where its name is taken, under another.
    pub(super) elsewhere: OnceCell<(UnixAddr, Option<OwnedFd>)>,
}

impl Item {
    pub(super) fn read(
        process: u32,
        record: &Descriptor,
        pieces: Vec<&[u8]>,
        sources: &dyn Sources,
    ) -> Option<Self> {
        let mut pieces = pieces.into_iter();
        let (socket, _) = Socket::read_from_prefix(pieces.next()?).ok()?;
        let (mut name, options) = (pieces.next()?.to_vec(), pieces.next()?.to_vec());
        let sends_to = match socket.flags & socket_flag::CONNECTS {
            0 => Vec::new(),
            _ => pieces.next()?.to_vec(),
        };
        let apart = socket.kind.cast_signed() != libc::SOCK_STREAM;
        let mut messages = Vec::new();
        while let Some(first) = pieces.next() {
            let from = if apart { first.to_vec() } else { Vec::new() };
            let numbers = if apart { pieces.next()? } else { first }.chunks_exact(4);
            let numbers = numbers.filter_map(|fd| Some(u32::from_le_bytes(fd.try_into().ok()?)));
            let numbers: Vec<u32> = numbers.collect();
            let (sender, rights) = numbers.split_first_chunk()?;
            let (sender, rights, bytes) = (*sender, rights.to_vec(), pieces.next()?.to_vec());
            messages.push(Message { from, bytes, rights, sender });
        }
        let (saved, here) = (sources.name(record), sources.path(record));
        let file = here.is_absolute().then_some(here);
        let mut directory = None;
        if let Some(file) = &file {
            let relative = name.first().is_some_and(|b| *b != b'/');
            match Path::new(&saved) == file {
                true if relative => directory = beginning(file, &name),
                true => {}
                false => name = file.as_os_str().as_bytes().to_vec(),
            }
        }
        let elsewhere = OnceCell::new();
        Some(Self {
            process,
            socket,
            name,
            options,
            sends_to,
            messages,
            file,
            directory,
            elsewhere,
        })
    }

    pub(super) fn is(&self, flag: u32) -> bool {
        self.socket.flags & flag != 0
    }

    pub(super) fn kind(&self) -> SockType {
        match self.socket.kind.cast_signed() {
            libc::SOCK_DGRAM => SockType::Datagram,
            libc::SOCK_SEQPACKET => SockType::SeqPacket,
            _ => SockType::Stream,
        }
    }

    pub(super) fn has_datagrams(&self) -> bool {
        self.kind() == SockType::Datagram
    }

    /// The name for people.
    pub(super) fn called(&self) -> String {
        match self.name.split_first() {
            Some((0, name)) => format!("the socket @{}", String::from_utf8_lossy(name)),
            _ => format!("the socket {}", String::from_utf8_lossy(&self.name)),
        }
    }

    /// A new socket of this kind.
    pub(super) fn make(&self) -> Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, self.kind(), flags, None).because(|| "cannot make a socket")
    }

    /// A new socket of this kind, with the name if it has one.
    pub(super) fn make_named(&self, others: Option<&HashMap<u64, Unix>>) -> Result<OwnedFd> {
        let end = self.make()?;
        if !self.name.is_empty() {
            self.bind(&end, others)?;
        }
        Ok(end)
    }

    pub(super) fn pair(&self) -> Result<(OwnedFd, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let made = socketpair(AddressFamily::Unix, self.kind(), None, flags);
        made.because(|| "cannot make a pair of sockets")
    }

    /// The address of somebody outside to whom it sends.
    pub(super) fn to(&self) -> Option<nix::Result<UnixAddr>> {
        Some(match self.sends_to.split_first()? {
            (0, name) => UnixAddr::new_abstract(name),
            _ => UnixAddr::new(OsStr::from_bytes(&self.sends_to)),
        })
    }

    /// Does something with the name as an address, where a path begins.
    pub(super) fn by_name<T>(
        &self,
        act: impl FnOnce(&UnixAddr) -> nix::Result<T>,
    ) -> nix::Result<T> {
        let address = match self.name.split_first() {
            None => UnixAddr::new_unnamed(),
            Some((0, name)) => UnixAddr::new_abstract(name)?,
            Some(_) => UnixAddr::new(OsStr::from_bytes(&self.name))?,
        };
        let Some(directory) = &self.directory else { return act(&address) };
        let before = fs::File::open(".");
        nix::unistd::chdir(directory)?;
        let done = act(&address);
        if let Ok(before) = before {
            nix::unistd::fchdir(before)?;
        }
        done
    }

    /// Does something with an address that leads to the socket, which is bound.
    pub(super) fn by_place<T>(
        &self,
        act: impl FnOnce(&UnixAddr) -> nix::Result<T>,
    ) -> nix::Result<T> {
        match self.elsewhere.get() {
            Some((address, _)) => act(address),
            None => self.by_name(act),
        }
    }

    /// Whether it is bound to a path that leads elsewhere or nowhere by now.
    pub(super) fn is_removed(&self) -> bool {
        self.file.is_none() && self.name.first().is_some_and(|b| *b != 0)
    }

    /// Binds a socket to its path and removes that at once: nobody finds it but by the address that this returns.
    pub(super) fn bind_hidden(&self, end: &OwnedFd) -> nix::Result<(UnixAddr, OwnedFd)> {
        let file = self.by_name(|address| {
            let spot = Spot::of(address.path().unwrap_or(Path::new("")))?;
            bind(end.as_raw_fd(), address)?;
            let file = spot.ours(libc::S_IFSOCK).map_err(|_| Errno::ESTALE)?;
            spot.remove(UnlinkatFlags::NoRemoveDir)?;
            Ok(file)
        })?;
        Ok((UnixAddr::new(&place(&file))?, file))
    }

    /// Binds a socket to a name whose file was removed, and removes it again.
    fn bind_removed(&self, end: &OwnedFd) -> Result<()> {
        let why = || format!("cannot make {}", self.called());
        let found = match self.bind_hidden(end) {
            Ok((address, file)) => (address, Some(file)),
            // Nobody finds it by the name; but one that listens has to have some.
            Err(Errno::EADDRINUSE | Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => {
                let unnamed = UnixAddr::new_unnamed();
                bind(end.as_raw_fd(), &unnamed).because(why)?;
                (getsockname(end.as_raw_fd()).because(why)?, None)
            }
            Err(Errno::ESTALE) => return Err(self.replaced()),
            Err(e) => return Err(e).because(why),
        };
        drop(self.elsewhere.set(found));
        Ok(())
    }

    /// Binds a socket to the name; `others` are those of the machine.
    pub(super) fn bind(&self, end: &OwnedFd, others: Option<&HashMap<u64, Unix>>) -> Result<()> {
        if self.is_removed() {
            return self.bind_removed(end);
        }
        let why = || format!("cannot make {}", self.called());
        let spot = self.file.as_deref().map(Spot::of).transpose().because(why)?;
        if let (Some(file), Some(spot)) = (&self.file, &spot) {
            self.clear_spot(file, spot, others)?;
        }
        let bound = self.by_name(|address| bind(end.as_raw_fd(), address));
        match bound {
            // The kernel chose it (unix(7), autobind), so it may choose again.
            Err(Errno::EADDRINUSE) if self.name.first() == Some(&0) && self.name.len() == 6 => {
                let unnamed = UnixAddr::new_unnamed();
                bind(end.as_raw_fd(), &unnamed).because(|| "cannot name a socket")?;
            }
            Err(Errno::EADDRINUSE) => return Err(self.taken()),
            Err(e) => return Err(e).because(why),
            Ok(()) => {}
        }
        let Some(spot) = spot else { return Ok(()) };
        // The address was a path (getsockname(2) shows it), which others may have led elsewhere.
        let made = spot.ours(libc::S_IFSOCK).map_err(|_| self.replaced())?;
        let file = place(&made);
        // Only root may give files away.
        let _ = std::os::unix::fs::chown(&file, Some(self.socket.user), Some(self.socket.group));
        fs::set_permissions(file, fs::Permissions::from_mode(self.socket.mode))
            .because(|| format!("cannot set the mode of {}", self.called()))
    }

    fn replaced(&self) -> Error {
        Error::new(format!("{} was replaced while it was made", self.called()))
            .hint("see to it that nobody else changes its directory meanwhile")
    }

    fn taken(&self) -> Error {
        Error::new(format!("{} is in use by another program", self.called()))
    }

    /// Removes the file of a socket that nobody has any more.
    pub(super) fn clear(&self, file: &Path, others: Option<&HashMap<u64, Unix>>) -> Result<()> {
        Spot::of(file).map_or(Ok(()), |spot| self.clear_spot(file, &spot, others))
    }

    fn clear_spot(
        &self,
        file: &Path,
        spot: &Spot,
        others: Option<&HashMap<u64, Unix>>,
    ) -> Result<()> {
        let Ok(found) = spot.look() else { return Ok(()) };
        self.judge(file, &found, others)?;
        let removed = spot.remove(UnlinkatFlags::NoRemoveDir);
        removed.because(|| format!("cannot replace {}", self.called()))
    }

    /// Whether the file that has the name is a socket that nobody has any more.
    fn judge(
        &self,
        file: &Path,
        found: &libc::stat,
        others: Option<&HashMap<u64, Unix>>,
    ) -> Result<()> {
        if found.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(Error::new(format!(
                "{} cannot be made: there is another file of that name",
                self.called()
            )));
        }
        let mut others = others.ok_or_else(|| self.taken())?.values();
        let same = |it: &Unix| {
            it.file == Some(found.st_ino as u32)
                || it.is_bound() && it.name == file.as_os_str().as_bytes()
        };
        if others.any(same) { Err(self.taken()) } else { Ok(()) }
    }

    /// Why the name cannot be had, as far as a look tells.
    pub(super) fn obstacle(&self, others: Option<&HashMap<u64, Unix>>) -> Option<String> {
        const CHOSEN: usize = 6;
        let judged = match (&self.file, self.name.first()) {
            (Some(file), _) => {
                let spot = Spot::of(file).ok()?;
                let found = spot.look().ok()?;
                self.judge(file, &found, others)
            }
            (None, Some(0)) if self.name.len() != CHOSEN => {
                let mut all = others?.values();
                let taken = all.any(|it| it.is_bound() && it.name == self.name);
                if taken { Err(self.taken()) } else { Ok(()) }
            }
            _ => Ok(()),
        };
        judged.err().map(|error| error.to_string())
    }
}

/// The directory in which a relative name leads to a file.
fn beginning(file: &Path, name: &[u8]) -> Option<PathBuf> {
    let before = file.as_os_str().as_bytes().strip_suffix(name)?;
    Some(PathBuf::from(OsStr::from_bytes(before)))
}
