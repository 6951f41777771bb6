// SPDX-License-Identifier: LGPL-2.1-only
//! Directories: opened by their path, at their position, which for most file systems is a mark that stays
//! valid for the same directory. One that was removed is made anew, and removed again: it holds nothing.

use super::open::{by_path, place, seek};
use super::spot::Spot;
use super::{Kind, Look, Opening, Origin, Saving, file_type};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::libc;
use nix::unistd::{UnlinkatFlags, geteuid, mkdtemp};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// [`Descriptor::extra`] of one that was removed.
const REMOVED: u32 = 1;

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    file_type(fd.mode) == libc::S_IFDIR && (is_removed(fd) || look.path(fd).is_some())
}

fn is_removed(fd: &Fd) -> bool {
    fd.deleted && fd.target.as_encoded_bytes().starts_with(b"/")
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    match look.path(fd) {
        Some(path) => saving.path = path.into(),
        None => saving.record.extra = REMOVED,
    }
    Ok(())
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    if record.extra == REMOVED {
        if opening.sources.is_rehearsal() {
            return by_path(record, Path::new("/")).map(Origin::Own);
        }
        let id = (record.device, record.inode);
        let named = removed(&path, Some((id, record.mode)))?;
        return by_path(record, &place(&named)).map(Origin::Own);
    }
    let file = opening.by_path(record, &path)?;
    seek(&file, record, &path)?;
    Ok(Origin::Own(file))
}

/// Device and inode number.
type Id = (u64, u64);

/// One that was made anew.
struct Again {
    path: PathBuf,
    /// Which it was, once a descriptor has told.
    id: Option<Id>,
    file: OwnedFd,
}

/// Those that were made: of one directory, descriptors and working directories stay the same.
static MADE: Mutex<Vec<Again>> = Mutex::new(Vec::new());

/// A directory that was removed: at its place, else among temporary files. Which it was, and its mode, is known of
/// descriptors; a working directory is any of its name.
///
/// # Errors
/// None can be made.
pub(crate) fn removed(path: &Path, known: Option<(Id, u32)>) -> Result<OwnedFd> {
    let why = || format!("cannot make the removed directory {} again", path.display());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let id = known.map(|(id, _)| id);
    let same = |it: &Again| it.path == path && (it.id == id || it.id.is_none() || id.is_none());
    let found = match made.iter().position(same) {
        Some(found) => found,
        None => {
            let file = make(path).because(why)?;
            made.push(Again { path: path.to_path_buf(), id, file });
            made.len() - 1
        }
    };
    let again = &mut made[found];
    if let Some((_, mode)) = known {
        again.id = id;
        // fchmod(2) takes no O_PATH descriptor.
        let _ = fs::set_permissions(place(&again.file), fs::Permissions::from_mode(mode & 0o7777));
    }
    again.file.try_clone().because(why)
}

/// Makes one and removes it again. Root makes none where another user could put something else in its place.
fn make(path: &Path) -> nix::Result<OwnedFd> {
    let safe = |spot: &Spot| !geteuid().is_root() || spot.is_ours_alone();
    let spot = Spot::of(path).ok().filter(safe);
    if let Some(spot) = spot.filter(|spot| spot.make_directory().is_ok())
        && let Ok(made) = taken(&spot)
    {
        return Ok(made);
    }
    taken(&Spot::of(&mkdtemp("/tmp/ckpt-XXXXXX")?)?)
}

fn taken(spot: &Spot) -> nix::Result<OwnedFd> {
    let made = spot.ours(libc::S_IFDIR);
    spot.remove(UnlinkatFlags::RemoveDir)?;
    made
}
