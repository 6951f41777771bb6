//! File descriptors.
//!
//! What was a terminal, pipe or socket under 0, 1 or 2, and every descriptor that shares one of
//! those, becomes what the restarter has there. Files are opened again by their path, at their
//! offset; files without a name travel in the image. The rest is a declared loss.

use super::{Content, Gathered, Stream, Target, epoll, kernel_objects, numbers, pipes};
use crate::error::{Because, Error, Result};
use crate::proc::{self, fds::Fd};
use crate::ptrace::raw;
use ckpt_abi::image::{Descriptor, DescriptorKind, Object, ObjectKind, TimerDescriptor};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

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
    let (mut lost, mut large) = (Vec::new(), Vec::new());
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
        record.kind = kind(fd, &fds, target, gathered, &mut record) as u32;
        if record.kind == DescriptorKind::Lost as u32 {
            lost.push(format!("{} ({})", fd.number, fd.target.display()));
        }
        match embeds(&record, target.region.control.config.embed) {
            Some(true) => record.extra = EMBEDDED,
            Some(false) => large.push(format!("{} ({} bytes)", fd.target.display(), record.size)),
            None => {}
        }
        if earlier.is_none() {
            save_content(pid, fd, &fds, &mut record, gathered)?;
        }
        gathered.descriptors.push(record);
    }
    if !large.is_empty() {
        gathered
            .losses
            .push(format!("files above the limit of --embed-files: {}", large.join(", ")));
    }
    if !lost.is_empty() {
        gathered.losses.push(format!("descriptors that will be closed: {}", lost.join(", ")));
    }
    Ok(())
}

/// What the image has to carry for a descriptor besides its record.
fn save_content(
    pid: i32,
    fd: &Fd,
    all: &[Fd],
    record: &mut Descriptor,
    gathered: &mut Gathered,
) -> Result<()> {
    let mut index = fd.number;
    let bytes = match record.kind {
        k if k == DescriptorKind::Content as u32 => {
            return save_file(pid, fd, ObjectKind::Deleted, record, gathered);
        }
        k if k == DescriptorKind::Path as u32 && record.extra == EMBEDDED => {
            return save_file(pid, fd, ObjectKind::Embedded, record, gathered);
        }
        k if k == DescriptorKind::Timer as u32 => {
            kernel_objects::save_timer(fd).as_bytes().to_vec()
        }
        k if k == DescriptorKind::Epoll as u32 => epoll::save(fd).as_bytes().to_vec(),
        k if k == DescriptorKind::Pipe as u32 => {
            let reads = |f: &&Fd| f.inode == fd.inode && f.flags as i32 & libc::O_ACCMODE == 0;
            index = all.iter().find(reads).map_or(fd.number, |reader| reader.number);
            let why = || format!("cannot look into the pipe behind descriptor {index}");
            let ours = raw::take_descriptor(pid, index as i32).because(why)?;
            let (bytes, capacity) = pipes::peek(&ours)?;
            record.value = capacity;
            bytes
        }
        _ => return Ok(()),
    };
    record.content = index;
    if gathered.contents.iter().all(|c| c.index != index) {
        gathered.contents.push(Content { index, bytes });
    }
    Ok(())
}

/// Makes an object of the file behind a descriptor, whose content travels in the image.
fn save_file(
    pid: i32,
    fd: &Fd,
    kind: ObjectKind,
    record: &mut Descriptor,
    gathered: &mut Gathered,
) -> Result<()> {
    record.content = gathered.objects.len() as u32;
    gathered.objects.push(Object {
        kind: kind as u32,
        mode: fd.mode,
        size: fd.size,
        inode: fd.inode,
        device: fd.device,
        name: record.path,
        ..Object::new_zeroed()
    });
    let path = format!("/proc/{pid}/fd/{}", fd.number).into();
    gathered.streams.push(Stream { object: record.content, path });
    Ok(())
}

/// [`Descriptor::extra`] of a file with a name whose content is in the image as well.
pub const EMBEDDED: u32 = 1;

/// Whether a file with a name travels along for machines that do not have it: false when it is too
/// large, None when it is no such file or none shall travel.
fn embeds(record: &Descriptor, limit: u64) -> Option<bool> {
    let is_file = record.kind == DescriptorKind::Path as u32
        && record.mode & libc::S_IFMT == libc::S_IFREG
        && record.flags as i32 & libc::O_PATH == 0;
    (is_file && limit != 0).then_some(record.size <= limit)
}

/// Whether two descriptors are one open file description.
fn same(pid: i32, a: &Fd, b: &Fd) -> bool {
    if (a.device, a.inode, a.flags) != (b.device, b.inode, b.flags) {
        return false;
    }
    // Without kcmp(2) (CONFIG_KCMP), what looks the same is taken for the same.
    raw::same_file(pid, a.number, b.number).unwrap_or(a.position == b.position)
}

fn kind(
    fd: &Fd,
    all: &[Fd],
    target: &Target<'_>,
    gathered: &Gathered,
    record: &mut Descriptor,
) -> DescriptorKind {
    match fd.target.as_encoded_bytes() {
        b"anon_inode:[eventfd]" => {
            kernel_objects::save_event(fd, record);
            return DescriptorKind::Event;
        }
        b"anon_inode:[signalfd]" => {
            kernel_objects::save_signal(fd, record);
            return DescriptorKind::Signal;
        }
        b"anon_inode:[timerfd]" => return DescriptorKind::Timer,
        b"anon_inode:[eventpoll]" => return DescriptorKind::Epoll,
        _ => {}
    }
    match fd.mode & libc::S_IFMT {
        libc::S_IFREG if fd.deleted || fd.nlink == 0 => {
            let memory = ObjectKind::Memory as u32;
            let shared = |o: &Object| o.kind == memory && o.inode == fd.inode;
            let object = gathered.objects.iter().position(shared);
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
        libc::S_IFCHR => {
            standard(fd, all, target).map_or(DescriptorKind::Path, |n| stdio(record, n))
        }
        libc::S_IFIFO | libc::S_IFSOCK => match standard(fd, all, target) {
            Some(number) => stdio(record, number),
            None if pipes::is_whole(fd, all) => DescriptorKind::Pipe,
            None => DescriptorKind::Lost,
        },
        _ => DescriptorKind::Lost,
    }
}

/// Which of 0, 1 and 2 a terminal, pipe or socket is: its own number, that of a standard stream it
/// is a duplicate of, or that of one which it was when the program began: shells keep their
/// standard output under a high number while a command is redirected.
fn standard(fd: &Fd, all: &[Fd], target: &Target<'_>) -> Option<u32> {
    if fd.number < 3 {
        return Some(fd.number);
    }
    let access = |f: &Fd| u64::from(f.flags) & libc::O_ACCMODE as u64;
    let tty = fd.mode & libc::S_IFMT == libc::S_IFCHR;
    let twin = |s: &&Fd| {
        let same = (s.device, s.inode, access(s)) == (fd.device, fd.inode, access(fd));
        s.number < 3 && (same || tty && s.rdev == fd.rdev && s.mode & libc::S_IFMT == libc::S_IFCHR)
    };
    let at_start = [fd.device, fd.inode, access(fd)];
    let then = target.region.control.standard.iter().position(|s| *s == at_start);
    all.iter().find(twin).map(|twin| twin.number).or(then.map(|n| n as u32))
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
    /// What is in a descriptor of a small kind.
    fn content(&self, index: u32) -> Result<Vec<u8>>;
    /// Gives a new file the size and the content of an object.
    fn fill(&self, object: u32, file: &File) -> Result<()>;
    /// A descriptor of a shared object.
    fn object(&self, index: u32) -> Result<OwnedFd>;
}

/// A file that could not be opened, and that the program may not want.
#[derive(Clone)]
pub struct Missing {
    /// Its record.
    pub record: Descriptor,
    /// Why it could not be.
    pub errno: i32,
    /// Where it was.
    pub path: std::path::PathBuf,
}

/// Opens everything the program had open; warnings are sentences. Where `missing` is given,
/// regular files that cannot be opened go there, and /dev/null takes their numbers.
///
/// # Errors
/// All files that are missing or forbidden, at once.
pub fn open_all(
    records: &[Descriptor],
    sources: &dyn Sources,
    warnings: &mut Vec<String>,
    mut missing: Option<&mut Vec<Missing>>,
) -> Result<Vec<Restored>> {
    let mut restored: Vec<Restored> = Vec::new();
    let mut failures = Vec::new();
    let above = numbers::above(records);
    let mut pipes = pipes::Made::new();
    for record in records {
        let leader = restored.iter().find(|r| r.record.fd == record.shared_with);
        let opened = match leader.and_then(|l| l.file.as_ref()) {
            Some(file) if record.shared_with != record.fd => {
                numbers::duplicate(file, above).map(Some)
            }
            _ => open_one(record, sources, &mut pipes, warnings)
                .and_then(|file| file.map(|f| numbers::duplicate(&f, above)).transpose()),
        };
        match opened {
            Ok(file) => restored.push(Restored { record: *record, file }),
            Err(e) if replaceable(record) && missing.is_some() => {
                let path = sources.path(record);
                let missed = Missing { record: *record, errno: e.errno(), path };
                missing.as_deref_mut().into_iter().for_each(|list| list.push(missed.clone()));
            }
            Err(e) => failures.push(format!("descriptor {}: {e}", record.fd)),
        }
    }
    restored.retain(|r| r.record.kind != DescriptorKind::Lost as u32);
    for Missing { record, .. } in missing.into_iter().flatten() {
        restored.push(Restored { record: *record, file: Some(placeholder(above)?) });
    }
    if failures.is_empty() { Ok(restored) } else { Err(Error::new(failures.join("; "))) }
}

/// Keeps the number of a missing file: what the restart callbacks open must not get it.
fn placeholder(above: i32) -> Result<OwnedFd> {
    let null = File::open("/dev/null").because(|| "cannot open /dev/null")?;
    numbers::duplicate(&null.into(), above)
}

/// Whether the program's restart callbacks may name another file in the place of this one.
fn replaceable(record: &Descriptor) -> bool {
    record.kind == DescriptorKind::Path as u32 && record.mode & libc::S_IFMT == libc::S_IFREG
}

fn open_one(
    record: &Descriptor,
    sources: &dyn Sources,
    pipes: &mut pipes::Made,
    warnings: &mut Vec<String>,
) -> Result<Option<OwnedFd>> {
    let file = match record.kind {
        k if k == DescriptorKind::Path as u32 => {
            let path = sources.path(record);
            match record.extra == EMBEDDED && !path.exists() {
                true => absent(record, &path, sources, warnings)?,
                false => open_path(record, &path, warnings)?,
            }
        }
        k if k == DescriptorKind::Content as u32 => {
            nameless(&sources.path(record), sources, record)?
        }
        k if k == DescriptorKind::Object as u32 => sources.object(record.content)?,
        k if k == DescriptorKind::Event as u32 => kernel_objects::open_event(record)?,
        k if k == DescriptorKind::Signal as u32 => kernel_objects::open_signal(record)?,
        k if k == DescriptorKind::Epoll as u32 => epoll::open()?,
        k if k == DescriptorKind::Timer as u32 => {
            let bytes = sources.content(record.content)?;
            let saved = TimerDescriptor::read_from_bytes(&bytes);
            kernel_objects::open_timer(&saved.map_err(|_| Error::new("a damaged timerfd"))?)?
        }
        k if k == DescriptorKind::Pipe as u32 => open_pipe(record, sources, pipes)?,
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

fn open_pipe(
    record: &Descriptor,
    sources: &dyn Sources,
    made: &mut pipes::Made,
) -> Result<OwnedFd> {
    let ends = match made.entry(record.inode) {
        Entry::Occupied(ends) => ends.into_mut(),
        Entry::Vacant(none) => {
            none.insert(pipes::make(&sources.content(record.content)?, record.value)?)
        }
    };
    let reads = record.flags as i32 & libc::O_ACCMODE == libc::O_RDONLY;
    let end = if reads { &ends.0 } else { &ends.1 };
    end.try_clone().because(|| "cannot duplicate a pipe")
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

/// Cuts the files that the program has open for writing and that have grown since the checkpoint
/// back to their length at the checkpoint, or says which they are.
///
/// # Errors
/// A file that cannot be cut; those before it are.
pub fn cut(restored: &[Restored], truncate: bool) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for Restored { record, file } in restored {
        let writes = record.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY
            && record.flags as i32 & libc::O_PATH == 0;
        let regular = record.mode & libc::S_IFMT == libc::S_IFREG;
        let by_path = record.kind == DescriptorKind::Path as u32;
        let Some(file) = file.as_ref().filter(|_| writes && regular && by_path) else { continue };
        let path =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)));
        let path = path.unwrap_or_default();
        let size = nix::sys::stat::fstat(file).map_or(0, |stat| stat.st_size.cast_unsigned());
        if size <= record.size {
            continue;
        }
        if truncate {
            nix::unistd::ftruncate(file, record.size.cast_signed()).because(|| {
                format!("cannot cut {} back to {} bytes", path.display(), record.size)
            })?;
        } else {
            warnings.push(format!(
                "{} has grown since the checkpoint ({size} bytes, it had {}); --truncate-files cuts it back",
                path.display(),
                record.size
            ));
        }
    }
    warnings.dedup();
    Ok(warnings)
}

/// A file that is not on this machine, from the image: made anew where the program writes it, else
/// without a name.
fn absent(
    record: &Descriptor,
    path: &Path,
    sources: &dyn Sources,
    warnings: &mut Vec<String>,
) -> Result<OwnedFd> {
    let flags = record.flags as i32;
    if flags & libc::O_ACCMODE != libc::O_RDONLY {
        let mode = Mode::from_bits_truncate(record.mode & 0o7777);
        let kept = OFlag::from_bits_retain(flags & KEPT);
        let new = kept | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        if let Ok(file) = nix::fcntl::open(path, new, mode) {
            let why = || format!("cannot write {}", path.display());
            let writer = File::options().write(true).open(path).because(why)?;
            sources.fill(record.content, &writer).because(why)?;
            return Ok(file);
        }
        warnings.push(format!(
            "{} cannot be made here, so what the program writes to it is lost",
            path.display()
        ));
    }
    nameless(path, sources, record)
}

/// A file without a name: where its name once was, else in a directory for temporary files, else
/// in memory.
fn nameless(path: &Path, sources: &dyn Sources, record: &Descriptor) -> Result<OwnedFd> {
    let access = OFlag::from_bits_retain(record.flags as i32 & (KEPT & !libc::O_ACCMODE));
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | access;
    let mode = Mode::from_bits_truncate(record.mode & 0o7777);
    let own = path.parent().filter(|dir| dir.is_absolute());
    let dirs = own.into_iter().chain([Path::new("/tmp"), Path::new("/dev/shm")]);
    let mut opened = dirs.filter_map(|dir| nix::fcntl::open(dir, flags, mode).ok());
    let file = match opened.next() {
        Some(file) => file,
        None => memfd("ckpt", 0)?,
    };
    let file = File::from(file);
    sources.fill(record.content, &file).because(|| "cannot restore a deleted file")?;
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
