//! File descriptors.
//!
//! What was a terminal, pipe or socket under 0, 1 or 2, and every descriptor that shares one of
//! those, becomes what the restarter has there. Files are opened again by their path, at their
//! offset; files without a name travel in the image. The rest is a declared loss.
//!
//! # Safety
//! Numbers become descriptors only for single calls or where their owner is known.
#![allow(unsafe_code)]

use super::{Content, Gathered, Target};
use crate::error::{Because, Error, Result};
use crate::proc::{self, fds::Fd};
use crate::ptrace::raw;
use ckpt_abi::image::{Descriptor, DescriptorKind};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use zerocopy::FromZeros;

/// Status flags that reopening a file keeps; what only matters at the first open is not among
/// them (O_CREAT, O_EXCL, O_TRUNC).
const KEPT: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_NOATIME
    | libc::O_PATH;

/// Saves every descriptor of the target.
pub fn save(target: &Target<'_>, gathered: &mut Gathered) -> Result<()> {
    let pid = target.frozen.pid;
    let fds = proc::fds(pid)?;
    let mut lost = Vec::new();
    for (i, fd) in fds.iter().enumerate() {
        let earlier = fds[..i].iter().find(|e| same(pid, e, fd));
        let shared_with = earlier.map_or(fd.number, |e| e.number);
        let mut record = Descriptor {
            fd: fd.number,
            flags: fd.flags,
            cloexec: u32::from(fd.cloexec),
            position: fd.position,
            shared_with,
            mode: fd.mode,
            rdev: fd.rdev,
            size: fd.size,
            mtime: fd.mtime_ns,
            path: gathered.strings.add(&fd.target),
            inode: fd.inode,
            device: fd.device,
            ..Descriptor::new_zeroed()
        };
        record.kind = kind(fd, &fds, gathered, &mut record) as u32;
        if record.kind == DescriptorKind::Lost as u32 {
            lost.push(format!("{} ({})", fd.number, fd.target.display()));
        }
        if record.kind == DescriptorKind::Content as u32 && earlier.is_none() {
            record.content = fd.number;
            gathered.contents.push(Content { index: fd.number, fd: fd.number, size: fd.size });
        }
        gathered.descriptors.push(record);
    }
    if !lost.is_empty() {
        gathered.losses.push(format!("descriptors that will be closed: {}", lost.join(", ")));
    }
    Ok(())
}

/// Whether two descriptors are one open file description.
fn same(pid: i32, a: &Fd, b: &Fd) -> bool {
    if (a.device, a.inode, a.flags) != (b.device, b.inode, b.flags) {
        return false;
    }
    // Without kcmp(2) (CONFIG_KCMP), what looks the same is taken for the same.
    raw::same_file(pid, a.number, b.number).unwrap_or(a.position == b.position)
}

fn kind(fd: &Fd, all: &[Fd], gathered: &Gathered, record: &mut Descriptor) -> DescriptorKind {
    let access = |fd: &Fd| fd.flags as i32 & libc::O_ACCMODE;
    match fd.mode & libc::S_IFMT {
        libc::S_IFREG if fd.deleted || fd.nlink == 0 => {
            let object = gathered.objects.iter().position(|o| o.inode == fd.inode);
            match object {
                Some(index) => {
                    record.content = index as u32;
                    DescriptorKind::Object
                }
                None => DescriptorKind::Content,
            }
        }
        libc::S_IFREG | libc::S_IFDIR if !fd.deleted => DescriptorKind::Path,
        libc::S_IFCHR if !terminal(fd) => DescriptorKind::Path,
        libc::S_IFCHR => match all.iter().find(|s| s.number < 3 && s.rdev == fd.rdev) {
            Some(_) if fd.number < 3 => stdio(record, fd.number),
            Some(other) => stdio(record, other.number),
            None => DescriptorKind::Path,
        },
        libc::S_IFIFO | libc::S_IFSOCK if fd.number < 3 => stdio(record, fd.number),
        libc::S_IFIFO | libc::S_IFSOCK => {
            let twin = all.iter().find(|s| {
                s.number < 3 && (s.inode, s.device, access(s)) == (fd.inode, fd.device, access(fd))
            });
            twin.map_or(DescriptorKind::Lost, |twin| stdio(record, twin.number))
        }
        _ => DescriptorKind::Lost,
    }
}

fn stdio(record: &mut Descriptor, number: u32) -> DescriptorKind {
    record.value = u64::from(number);
    DescriptorKind::Stdio
}

/// Consoles (major 4), /dev/tty and its kin (5), and the pseudo-terminals of devpts (136 to 143).
fn terminal(fd: &Fd) -> bool {
    matches!(nix::sys::stat::major(fd.rdev), 4 | 136..=143)
        || fd.rdev == nix::sys::stat::makedev(5, 0)
}

/// A descriptor of the restarting process that will become one of the program.
pub struct Restored {
    /// Its record.
    pub record: Descriptor,
    /// What it is now; None for what the restarter's 0, 1 or 2 becomes.
    pub file: Option<OwnedFd>,
}

/// Where the restored descriptors come from, besides the file system.
pub trait Sources {
    /// The path of a descriptor.
    fn path(&self, record: &Descriptor) -> std::path::PathBuf;
    /// The content of a file without a name.
    fn content(&self, index: u32) -> Result<Vec<u8>>;
    /// A descriptor of a shared object.
    fn object(&self, index: u32) -> Result<OwnedFd>;
}

/// Opens everything the program had open; warnings are sentences.
///
/// # Errors
/// All files that are missing or forbidden, at once.
pub fn open_all(
    records: &[Descriptor],
    sources: &dyn Sources,
    warnings: &mut Vec<String>,
) -> Result<Vec<Restored>> {
    let mut restored: Vec<Restored> = Vec::new();
    let mut failures = Vec::new();
    let above = records.iter().map(|r| r.fd + 1).max().unwrap_or(0).max(3) as i32;
    for record in records {
        let leader = restored.iter().find(|r| r.record.fd == record.shared_with);
        let opened = match leader.and_then(|l| l.file.as_ref()) {
            Some(file) if record.shared_with != record.fd => duplicate(file, above).map(Some),
            _ => open_one(record, sources, warnings)
                .and_then(|file| file.map(|f| duplicate(&f, above)).transpose()),
        };
        match opened {
            Ok(file) => restored.push(Restored { record: *record, file }),
            Err(e) => failures.push(format!("descriptor {}: {e}", record.fd)),
        }
    }
    restored.retain(|r| r.record.kind != DescriptorKind::Lost as u32);
    if failures.is_empty() { Ok(restored) } else { Err(Error::new(failures.join("; "))) }
}

/// A duplicate at a number that no restored descriptor will have.
fn duplicate(file: &OwnedFd, above: i32) -> Result<OwnedFd> {
    let fd = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(above))
        .because(|| "cannot duplicate a descriptor (RLIMIT_NOFILE?)")?;
    Ok(own(fd))
}

fn open_one(
    record: &Descriptor,
    sources: &dyn Sources,
    warnings: &mut Vec<String>,
) -> Result<Option<OwnedFd>> {
    let file = match record.kind {
        k if k == DescriptorKind::Path as u32 => {
            open_path(record, &sources.path(record), warnings)?
        }
        k if k == DescriptorKind::Content as u32 => {
            let content = sources.content(record.content)?;
            nameless(&sources.path(record), &content, record)?
        }
        k if k == DescriptorKind::Object as u32 => sources.object(record.content)?,
        _ => return Ok(None),
    };
    if record.flags as i32 & libc::O_PATH == 0 && record.mode & libc::S_IFMT == libc::S_IFREG {
        let mut file = File::from(file);
        file.seek(SeekFrom::Start(record.position))
            .because(|| format!("cannot seek in {}", sources.path(record).display()))?;
        return Ok(Some(file.into()));
    }
    Ok(Some(file))
}

fn open_path(record: &Descriptor, path: &Path, warnings: &mut Vec<String>) -> Result<OwnedFd> {
    let flags =
        OFlag::from_bits_retain(record.flags as i32 & KEPT) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let file = nix::fcntl::open(path, flags, Mode::empty())
        .because(|| format!("cannot open {}", path.display()))?;
    let stat =
        nix::sys::stat::fstat(&file).because(|| format!("cannot stat {}", path.display()))?;
    if (stat.st_mode ^ record.mode) & libc::S_IFMT != 0 {
        return Err(Error::new(format!("{} is another kind of file now", path.display())));
    }
    let size = stat.st_size.cast_unsigned();
    if record.mode & libc::S_IFMT == libc::S_IFREG && size < record.size {
        warnings.push(format!(
            "{} is shorter than at the checkpoint ({size} bytes, it had {})",
            path.display(),
            record.size
        ));
    }
    Ok(file)
}

/// A file without a name: where its name once was, else in a directory for temporary files, else
/// in memory.
fn nameless(path: &Path, content: &[u8], record: &Descriptor) -> Result<OwnedFd> {
    let access = OFlag::from_bits_retain(record.flags as i32 & (KEPT & !libc::O_ACCMODE));
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | access;
    let mode = Mode::from_bits_truncate(record.mode & 0o7777);
    let own = path.parent().filter(|dir| dir.is_absolute());
    let dirs = own.into_iter().chain([Path::new("/tmp"), Path::new("/dev/shm")]);
    let mut opened = dirs.filter_map(|dir| nix::fcntl::open(dir, flags, mode).ok());
    let file = match opened.next() {
        Some(file) => file,
        None => memfd("ckpt", content.len() as u64)?,
    };
    let mut file = File::from(file);
    file.write_all(content).because(|| "cannot restore a deleted file")?;
    Ok(file.into())
}

/// Memory with a descriptor (memfd_create(2)) of `size` bytes.
pub fn memfd(name: &str, size: u64) -> Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let name = std::ffi::CString::new(name).unwrap_or_default();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(name.as_c_str(), flags).because(|| "cannot make a memfd")?;
    let file = File::from(fd);
    file.set_len(size).because(|| "cannot make room in a memfd")?;
    Ok(file.into())
}

/// Moves a descriptor of ours to a number above those of the program.
pub fn move_above(file: OwnedFd, records: &[Descriptor]) -> Result<OwnedFd> {
    let above = records.iter().map(|r| r.fd + 1).max().unwrap_or(0).max(3) as i32;
    duplicate(&file, above)
}

/// Gives every restored descriptor its number and closes all others but `kept`. From here on
/// standard error is the program's.
pub fn install(restored: Vec<Restored>, kept: &[i32]) {
    let mut wanted = Vec::new();
    // The restarter's own three first move out of the way, for they may be wanted elsewhere.
    let above = restored.iter().map(|r| r.record.fd + 1).max().unwrap_or(0).max(3) as i32;
    let std: Vec<Option<OwnedFd>> = (0..3).map(|fd| duplicate_raw(fd, above)).collect();
    for Restored { record, file } in restored {
        let source = match (&file, std.get(record.value as usize)) {
            (Some(file), _) => Some(file.as_raw_fd()),
            (None, Some(Some(standard))) => Some(standard.as_raw_fd()),
            _ => None,
        };
        let Some(source) = source else { continue };
        place(source, record.fd as i32, record.cloexec != 0);
        if file.is_some() {
            restore_flags(record.fd as i32, record.flags as i32);
        }
        wanted.push(record.fd as i32);
        drop(file);
    }
    drop(std);
    wanted.extend_from_slice(kept);
    close_others(&mut wanted);
}

fn place(from: i32, to: i32, cloexec: bool) {
    let flags = if cloexec { OFlag::O_CLOEXEC } else { OFlag::empty() };
    let from = borrowed(from);
    let mut to = std::mem::ManuallyDrop::new(own(to));
    let _ = nix::unistd::dup3(from, &mut to, flags);
}

/// O_APPEND, O_NONBLOCK and their kin of files that were not opened with them (content, objects).
fn restore_flags(fd: i32, flags: i32) {
    let flags =
        OFlag::from_bits_retain(flags & (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT));
    let _ = fcntl(borrowed(fd), FcntlArg::F_SETFL(flags));
}

fn close_others(kept: &mut [i32]) {
    kept.sort_unstable();
    let mut next = 0u32;
    for fd in kept.iter().map(|fd| fd.cast_unsigned()) {
        if fd > next {
            close_range(next, fd - 1);
        }
        next = next.max(fd + 1);
    }
    close_range(next, u32::MAX);
}

fn duplicate_raw(fd: i32, above: i32) -> Option<OwnedFd> {
    fcntl(borrowed(fd), FcntlArg::F_DUPFD_CLOEXEC(above)).ok().map(own)
}

fn borrowed(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: used for single calls that fail with EBADF where there is no such descriptor.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: either fresh from fcntl, or wrapped so that it is never dropped.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn close_range(first: u32, last: u32) {
    // SAFETY: what is closed has no owner any more: the process is about to become another.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Gives up ownership of a descriptor that the restorer will close.
pub fn leak(file: OwnedFd) -> i32 {
    file.into_raw_fd()
}
