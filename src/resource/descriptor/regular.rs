// SPDX-License-Identifier: LGPL-2.1-only
//! Files with a name, opened again by it.

use super::open::{self, by_path, seek};
use super::{Kind, Look, Loss, Opening, Origin, Saving, access, file_type, only_names};
use crate::error::{Because, Error, Result};
use crate::proc::{attributes, fds::Fd};
use crate::rights::file_user;
use ckpt_abi::image::{Descriptor, ObjectKind};
use nix::fcntl::{AtFlags, OFlag};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat, geteuid};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

pub(super) const KIND: Kind = Kind { recognise, save, open: again };

/// [`Descriptor::extra`] of a file whose content is in the image as well.
pub(crate) const EMBEDDED: u32 = 1;

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    let file = file_type(fd.mode) == libc::S_IFREG || only_names(fd.flags);
    file && look.path(fd).is_some()
}

/// Whether who writes there is told of pressure as long as it has that description (PSI).
fn is_pressure(path: &OsStr) -> bool {
    let path = path.as_encoded_bytes();
    path.starts_with(b"/proc/pressure/")
        || path.starts_with(b"/sys/fs/cgroup/") && path.ends_with(b".pressure")
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.path = look.path(fd).map_or_else(|| fd.target.clone(), Into::into);
    if only_names(fd.flags) {
        return Ok(());
    }
    if !is_permitted(fd, Path::new(&saving.path)) {
        let path = saving.path.display();
        saving.say(format!(
            "the right to open {path} as it is open now: its owner and mode allow it no more, so a restart \
             will need the file's permissions changed"
        ));
    }
    if access(fd.flags) != libc::O_RDONLY
        && let Some(letter) = attributes::forbids(Path::new(&saving.path), fd.flags)
    {
        let path = saving.path.display();
        saving.say(format!(
            "the right to open {path} as it is open now: nobody may while chattr +{letter} holds, so a restart will need \
             chattr -{letter} before"
        ));
    }
    if access(fd.flags) != libc::O_RDONLY && is_pressure(&saving.path) {
        let path = saving.path.display();
        saving.say(format!("what {path} is to tell it (a trigger)"));
    }
    if look.embed == 0 {
        return Ok(());
    }
    if fd.size > look.embed {
        let (path, size) = (saving.path.display(), fd.size);
        saving.losses.push(Loss::Large(format!("{path} ({size} bytes)")));
        return Ok(());
    }
    saving.record.extra = EMBEDDED;
    saving.file = Some(ObjectKind::Embedded);
    Ok(())
}

/// Whether the program's user could open the file once more. Programs make files with O_CREAT and a mode that
/// forbids them to write, or open them before they give up privileges. A file of one's own is no matter:
/// [`with_permission`]. For another user than ourselves only the mode can tell.
fn is_permitted(fd: &Fd, path: &Path) -> bool {
    let wanted = match access(fd.flags) {
        libc::O_RDONLY => AccessFlags::R_OK,
        libc::O_WRONLY => AccessFlags::W_OK,
        _ => AccessFlags::R_OK | AccessFlags::W_OK,
    };
    let own = std::fs::symlink_metadata(path).is_ok_and(|m| m.uid() == geteuid().as_raw());
    own || faccessat(nix::fcntl::AT_FDCWD, path, wanted, AtFlags::AT_EACCESS)
        != Err(nix::errno::Errno::EACCES)
}

fn again(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    if record.extra == EMBEDDED && !path.exists() {
        let file = absent(record, &path, opening)?;
        seek(&file, record, &path)?;
        return Ok(Origin::Own(file));
    }
    let file = match opening.by_path(record, &path) {
        Ok(file) => file,
        Err(e) => match (standard_twin(record), opening.acting(|| with_permission(record, &path))?)
        {
            (_, Some(file)) => file,
            (Some(number), None) => return Ok(Origin::Standard(number)),
            (None, None) => return Err(e),
        },
    };
    let stat =
        nix::sys::stat::fstat(&file).because(|| format!("cannot stat {}", path.display()))?;
    let size = stat.st_size.cast_unsigned();
    refuse_emptied(record, &path, size)?;
    if file_type(record.mode) == libc::S_IFREG && size < record.size {
        opening.warnings.push(format!(
            "{} is shorter than at the checkpoint ({size} bytes, it had {})",
            path.display(),
            record.size
        ));
    }
    seek(&file, record, &path)?;
    Ok(Origin::Own(file))
}

/// Refuses a file that was cut before the place where the program goes on in it: what is written there would stand
/// behind a hole of zeros, in an output that a shell has emptied (`> out`), say.
fn refuse_emptied(record: &Descriptor, path: &Path, size: u64) -> Result<()> {
    let appends = record.flags as i32 & (libc::O_APPEND | libc::O_PATH) != 0;
    let at = record.position;
    if appends || file_type(record.mode) != libc::S_IFREG || size >= at.min(record.size) {
        return Ok(());
    }
    let path = path.display();
    let sentence = format!("{path} has {size} bytes, and the program goes on at byte {at} of it");
    Err(Error::new(sentence).hint(format!(
        "bring its content back ('>> {path}' in a job script keeps it), or fill it up: truncate -s {at} {path}"
    )))
}

/// Which of the restarter's standard streams is the same file, open in the same way: it may be one that only
/// another user could open.
fn standard_twin(record: &Descriptor) -> Option<u32> {
    (0..3).find(|number| {
        let twin = open::standard(*number).and_then(|fd| {
            let stat = nix::sys::stat::fstat(fd).ok()?;
            let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).ok()?;
            Some((stat.st_dev, stat.st_ino, flags & libc::O_ACCMODE))
        });
        twin == Some((record.device, record.inode, access(record.flags)))
    })
}

/// Opens a file of our own whose mode forbids it, as it does after open(2) with O_CREAT and mode 0444: the mode
/// allows it for that moment.
fn with_permission(record: &Descriptor, path: &Path) -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let named = nix::fcntl::open(path, flags, Mode::empty()).ok()?;
    let stat = nix::sys::stat::fstat(&named).ok()?;
    let wanted = match access(record.flags) {
        libc::O_RDONLY => libc::S_IRUSR,
        libc::O_WRONLY => libc::S_IWUSR,
        _ => libc::S_IRUSR | libc::S_IWUSR,
    };
    // What the mode allowed at the checkpoint, somebody has forbidden since.
    let since = stat.st_mode != record.mode || stat.st_mode & wanted == wanted;
    if since || stat.st_uid != file_user() || stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return None;
    }
    let place = open::place(&named);
    let mode =
        |mode: u32| std::fs::set_permissions(&place, PermissionsExt::from_mode(mode & 0o7777));
    mode(stat.st_mode | wanted).ok()?;
    let file = by_path(record, &place).ok();
    let back = mode(stat.st_mode);
    back.ok().and(file)
}

/// A file that is not on this machine, from the image: made anew where the program writes it, else
/// without a name.
fn absent(record: &Descriptor, path: &Path, opening: &mut Opening<'_>) -> Result<OwnedFd> {
    if access(record.flags) != libc::O_RDONLY {
        let mode = Mode::from_bits_truncate(record.mode & 0o7777);
        let new = open::kept(record)
            | OFlag::O_CREAT
            | OFlag::O_EXCL
            | OFlag::O_CLOEXEC
            | OFlag::O_NOCTTY;
        let why = || format!("cannot write {}", path.display());
        let made = opening.acting(|| {
            let file = nix::fcntl::open(path, new, mode).ok()?;
            Some((file, File::options().write(true).open(path).because(why)))
        })?;
        if let Some((file, writer)) = made {
            let writer = writer?;
            opening.sources.fill(record.content, &writer).because(why)?;
            return Ok(file);
        }
        opening.warnings.push(format!(
            "{} cannot be made here, so what the program writes to it is lost",
            path.display()
        ));
    }
    opening.objects.make_late(record.content, opening.sources)?;
    opening.objects.description(record.content, record.flags)
}

/// Refuses what has become another kind of file since.
pub(super) fn check_type(file: &OwnedFd, record: &Descriptor, path: &Path) -> Result<()> {
    let stat = nix::sys::stat::fstat(file).because(|| format!("cannot stat {}", path.display()))?;
    match file_type(stat.st_mode ^ record.mode) {
        0 => Ok(()),
        _ => Err(Error::new(format!("{} is another kind of file now", path.display()))),
    }
}
