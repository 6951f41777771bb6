// SPDX-License-Identifier: LGPL-2.1-only
//! The file descriptors of a process: /proc/PID/fd and /proc/PID/fdinfo.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;

use nix::libc;

use super::id::Pid;
use super::process::{Process, head};
use super::text::{decimal, lines, octal, pair};
use super::{confirmed, failed, parsed, split_deleted};
use crate::abreast;
use crate::error::{Error, Result};

/// The bit of a number that says: no process has the descriptor, it is under way in a socket (SCM_RIGHTS, unix(7)). The
/// rest is the number that it has in this process, which has looked.
pub(crate) const UNDER_WAY: u32 = 1 << 31;

/// The process that has a descriptor for us, and its number there.
pub(crate) fn holder(pid: Pid, number: u32) -> (Pid, u32) {
    match number & UNDER_WAY {
        0 => (head(pid), number),
        _ => (Pid::own(), number & !UNDER_WAY),
    }
}

/// What a descriptor is called in sentences.
pub(crate) fn shown(number: u32) -> String {
    match number & UNDER_WAY {
        0 => number.to_string(),
        _ => "one that is under way in a socket".to_owned(),
    }
}

/// What this process has under a number, as of one that is under way.
///
/// # Errors
/// As [`Process::fds`].
pub(crate) fn under_way(number: u32) -> Result<Option<Fd>> {
    let found = descriptor(&Process::own()?, number)?;
    Ok(found.map(|fd| Fd { number: number | UNDER_WAY, ..fd }))
}

/// One descriptor and the file behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fd {
    /// The number of the descriptor.
    pub number: u32,
    /// What its link says: a path, or `pipe:[27660]`, `socket:[1]`, `anon_inode:[eventfd]` ...,
    /// without the " (deleted)" of an unlinked file.
    pub target: OsString,
    /// The file was unlinked, or never had a name (memfd, O_TMPFILE).
    pub deleted: bool,
    /// The file offset in bytes (a negative one, which some devices have, as two's complement).
    pub position: u64,
    /// Access mode and status flags as open(2) has them, O_CLOEXEC taken out. The kernel adds
    /// O_LARGEFILE (0o100000) to what open(2) was given.
    pub flags: u32,
    /// The descriptor closes at execve(2).
    pub cloexec: bool,
    /// All other lines of fdinfo in their order (proc_pid_fdinfo(5)): "mnt_id", "ino", and what
    /// the kind of file has to say, such as "eventfd-count", "tfd", "inotify", "clockid" and
    /// "lock".
    pub extra: Vec<(String, String)>,
    /// st_mode.
    pub mode: u32,
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
    /// st_rdev.
    pub rdev: u64,
    /// st_size in bytes.
    pub size: u64,
    /// st_mtime in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// st_atime in nanoseconds since 1970.
    pub atime_ns: i64,
    /// st_nlink.
    pub nlink: u64,
    /// st_uid.
    pub user: u32,
    /// st_gid.
    pub group: u32,
}

impl Fd {
    /// The first value that fdinfo has for `key`.
    pub fn extra(&self, key: &str) -> Option<&str> {
        self.extra.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

impl Process {
    /// Its descriptors, by number; one that is closed meanwhile is left out.
    ///
    /// # Errors
    /// The process is gone or may not be read (ptrace access, PTRACE_MODE_READ), or a file cannot be
    /// asked (ESTALE of NFS).
    pub fn fds(&self) -> Result<Vec<Fd>> {
        /// So many are as much work as a thread costs.
        const FEW: usize = 64;
        let numbers = self.numbered("fd")?;
        let found = abreast::each(&numbers, FEW, |number| descriptor(self, *number));
        let fds = found.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?;
        // A process that dies here looks like one that closes all its descriptors.
        let fd = self.stat_of("fd").map_err(io::Error::from);
        fd.map_err(|e| failed(self, None, &self.called("fd"), &e))?;
        Ok(fds)
    }

    /// Those of them that have this link.
    ///
    /// # Errors
    /// As [`Process::fds`].
    pub(crate) fn linked(&self, target: &str) -> Result<Vec<Fd>> {
        let numbers = self.numbered("fd")?.into_iter();
        let is =
            |number: &u32| self.link_of(&format!("fd/{number}")).is_ok_and(|link| link == target);
        let found = numbers.filter(is).map(|number| descriptor(self, number));
        found.filter_map(Result::transpose).collect()
    }

    /// Descriptor `number`, none if it is not open.
    ///
    /// # Errors
    /// As [`Process::fds`].
    pub fn descriptor(&self, number: u32) -> Result<Option<Fd>> {
        descriptor(self, number)
    }
}

fn descriptor(process: &Process, number: u32) -> Result<Option<Fd>> {
    let (link, text) = (format!("fd/{number}"), format!("fdinfo/{number}"));
    let target = unless_closed(process, &link, |name| Ok(process.link_of(name)?))?;
    // stat(2) follows the link to the open file itself, wherever its path leads by now.
    let file = unless_closed(process, &link, |name| Ok(process.stat_of(name)?))?;
    let lines = unless_closed(process, &text, |name| process.text(name))?;
    let (Some(target), Some(file), Some(lines)) = (target, file, lines) else { return Ok(None) };
    let FdText { position, flags, extra } = parsed(parse(&lines), || process.called(&text))?;
    let (target, deleted) = split_deleted(target.into_vec());
    let (target, deleted) = confirmed(target, deleted, file.st_ino);
    let time = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    let cloexec = libc::O_CLOEXEC as u32;
    Ok(Some(Fd {
        number,
        target,
        deleted,
        position,
        flags: flags & !cloexec,
        cloexec: flags & cloexec != 0,
        extra,
        mode: file.st_mode,
        device: file.st_dev,
        inode: file.st_ino,
        rdev: file.st_rdev,
        size: file.st_size.cast_unsigned(),
        mtime_ns: time(file.st_mtime, file.st_mtime_nsec),
        atime_ns: time(file.st_atime, file.st_atime_nsec),
        user: file.st_uid,
        group: file.st_gid,
        nlink: file.st_nlink,
    }))
}

fn unless_closed<T>(
    process: &Process,
    name: &str,
    ask: impl FnOnce(&str) -> io::Result<T>,
) -> Result<Option<T>> {
    match ask(name) {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(failed(process, None, &process.called(name), &e)),
    }
}

/// What is in a file of /proc/PID/fdinfo; `flags` still has O_CLOEXEC.
#[derive(Debug, PartialEq, Eq)]
struct FdText {
    position: u64,
    flags: u32,
    extra: Vec<(String, String)>,
}

fn parse(text: &[u8]) -> Result<FdText> {
    let (mut position, mut flags, mut extra) = (None, None, Vec::new());
    for line in lines(text) {
        let line = String::from_utf8_lossy(line);
        let (key, value) = pair(&line);
        match key {
            "pos" if position.is_none() => {
                position = Some(decimal::<i64>(value.as_bytes())? as u64);
            }
            "flags" if flags.is_none() => {
                let bits = octal(value.as_bytes())?;
                flags = Some(u32::try_from(bits).map_err(|_| Error::new("flags are 32 bits"))?);
            }
            _ => extra.push((key.to_owned(), value.to_owned())),
        }
    }
    match (position, flags) {
        (Some(position), Some(flags)) => Ok(FdText { position, flags, extra }),
        _ => Err(Error::new("it has no lines \"pos\" and \"flags\"")),
    }
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scratch, Zombie, of, we};
    use super::*;
    use std::fs;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    fn extras(lines: &str) -> Vec<(String, String)> {
        let text = format!("pos:\t0\nflags:\t02\nmnt_id:\t17\n{lines}");
        let mut extra = parse(text.as_bytes()).unwrap().extra;
        assert_eq!(extra.remove(0), ("mnt_id".to_owned(), "17".to_owned()));
        extra
    }

    #[test]
    fn plain_fdinfo() {
        let text = b"pos:\t4096\nflags:\t02100002\nmnt_id:\t24\nino:\t3\n";
        let parsed = parse(text).unwrap();
        assert_eq!((parsed.position, parsed.flags), (4096, 0o2100002));
        assert_eq!(parsed.extra, [("mnt_id".into(), "24".into()), ("ino".into(), "3".into())]);
        assert_eq!(parse(b"pos:\t-8\nflags:\t0\n").unwrap().position, -8i64 as u64);
    }

    #[test]
    fn fdinfo_of_every_shape() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            extras("eventfd-count:                5\neventfd-id: 1\n"),
            [pair("eventfd-count", "5"), pair("eventfd-id", "1")]
        );
        assert_eq!(
            extras(
                "tfd:        3 events:       19 data:                3  pos:0 ino:40e sdev:10\n"
            ),
            [pair("tfd", "3 events:       19 data:                3  pos:0 ino:40e sdev:10")]
        );
        assert_eq!(
            extras("clockid: 1\nticks: 0\nsettime flags: 01\nit_value: (0, 49406829)\n"),
            [
                pair("clockid", "1"),
                pair("ticks", "0"),
                pair("settime flags", "01"),
                pair("it_value", "(0, 49406829)")
            ]
        );
        assert_eq!(
            extras("inotify wd:1 ino:3c4a7 sdev:fe00000 mask:2\nfanotify flags:10 event-flags:0\n"),
            [
                pair("inotify", "wd:1 ino:3c4a7 sdev:fe00000 mask:2"),
                pair("fanotify", "flags:10 event-flags:0")
            ]
        );
        assert_eq!(
            extras("lock:\t1: POSIX  ADVISORY  WRITE 5797 fe:00:24 0 EOF\nPollList:\nword\n"),
            [
                pair("lock", "1: POSIX  ADVISORY  WRITE 5797 fe:00:24 0 EOF"),
                pair("PollList", ""),
                pair("word", "")
            ]
        );
    }

    #[test]
    fn the_link_tells_how_a_file_may_be_accessed() {
        let scratch = Scratch::new("access");
        let path = scratch.0.join("file");
        fs::write(&path, "").unwrap();
        let own = Process::own().unwrap();
        for (reads, writes) in [(true, false), (false, true), (true, true)] {
            let file = fs::File::options().read(reads).write(writes).open(&path).unwrap();
            let number = file.as_raw_fd().cast_unsigned();
            let fd = we().descriptor(number).unwrap().unwrap();
            let access = u64::from(fd.flags) & libc::O_ACCMODE as u64;
            assert_eq!(own.open_file(number), Some([fd.device, fd.inode, access]));
        }
        assert_eq!(own.open_file(1 << 20), None);
    }

    #[test]
    fn half_a_file_is_refused() {
        assert!(parse(b"pos:\t0\n").is_err());
        assert!(parse(b"").is_err());
        assert!(parse(b"pos:\t0\nflags:\t08\n").is_err());
        assert!(parse(b"pos:\t0\nflags:\t777777777777\n").is_err());
    }

    fn own(file: &impl AsRawFd) -> Fd {
        let number = u32::try_from(file.as_raw_fd()).unwrap();
        we().fds().unwrap().into_iter().find(|fd| fd.number == number).unwrap()
    }

    #[test]
    fn a_regular_file() {
        let scratch = Scratch::new("fds");
        let path = scratch.0.join("a\nb \\012 (deleted)");
        let mut file = fs::File::options().append(true).create(true).open(&path).unwrap();
        file.write_all(b"twelve bytes").unwrap();
        file.seek(SeekFrom::Start(5)).unwrap();
        let fd = own(&file);
        assert_eq!((fd.target.as_os_str(), fd.deleted), (path.as_os_str(), false));
        assert_eq!((fd.position, fd.size, fd.nlink), (5, 12, 1));
        assert_eq!(fd.flags & !0o100_000, (libc::O_WRONLY | libc::O_APPEND) as u32);
        assert!(fd.cloexec && fd.mode & libc::S_IFMT == libc::S_IFREG);
        let meta = file.metadata().unwrap();
        assert_eq!((fd.inode, fd.device), (meta.ino(), meta.dev()));
        assert_eq!(fd.mtime_ns, meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
        assert!(fd.extra("mnt_id").is_some() && fd.extra("nothing").is_none());
        fs::remove_file(&path).unwrap();
        let fd = own(&file);
        assert_eq!((fd.target.as_os_str(), fd.deleted, fd.nlink), (path.as_os_str(), true, 0));
    }

    #[test]
    fn devices_and_pipes() {
        let null = fs::File::open("/dev/null").unwrap();
        let fd = own(&null);
        assert_eq!((fd.target.to_str(), fd.rdev), (Some("/dev/null"), libc::makedev(1, 3)));
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (from, to) = (own(&reader), own(&writer));
        assert_eq!(from.target, *format!("pipe:[{}]", from.inode));
        assert_eq!((from.inode, from.deleted), (to.inode, false));
        assert_eq!(to.flags & libc::O_ACCMODE as u32, libc::O_WRONLY as u32);
        nix::fcntl::fcntl(&reader, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        assert!(!own(&reader).cloexec && own(&writer).cloexec);
    }

    #[test]
    fn in_order_and_without_closed_ones() {
        let all = we().fds().unwrap();
        assert!(all.len() >= 3 && all.is_sorted_by(|a, b| a.number < b.number));
        assert_eq!(we().descriptor(u32::MAX / 2).unwrap(), None);
    }

    #[test]
    fn a_zombie_has_none() {
        let zombie = Zombie::new();
        // A process without memory belongs to root in /proc.
        match of(zombie.pid()).fds() {
            Ok(fds) => assert_eq!(fds, []),
            Err(e) => assert!(e.to_string().contains("Permission denied"), "{e}"),
        }
    }
}
