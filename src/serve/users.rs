// SPDX-License-Identifier: LGPL-2.1-only
//! Who may ask, and where what is theirs lies.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::channel::KEY;
use super::claim::Claim;
use super::store::{Limits, Store};
use crate::error::{Because, Error, Result};
use crate::image::key;
use crate::settings::server::check_stored;

/// Whose keys are known.
pub(crate) enum Keys {
    /// Anybody may do anything.
    None,
    /// All who have this one are the same.
    One([u8; KEY]),
    /// A directory with the key of each user, whose name the file has.
    Each(PathBuf),
}

/// Somebody who has a key.
#[derive(Clone)]
pub struct User {
    /// The name; empty where there is but one.
    pub name: String,
    /// The key; None: everybody is this one.
    pub key: Option<[u8; KEY]>,
    /// What is stored.
    pub store: Arc<Store>,
}

/// The names and keys of a directory.
///
/// # Errors
/// A file holds no key, is not the user's alone, or two hold the same.
pub(crate) fn read(directory: &Path) -> Result<Vec<(String, [u8; KEY])>> {
    let shown = directory.display();
    let mut users: Vec<(String, [u8; KEY])> = Vec::new();
    for entry in fs::read_dir(directory).because(|| format!("cannot read {shown}"))?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || check_stored(&name).is_err() {
            continue;
        }
        let key = key::read(&entry.path())?;
        if let Some((other, _)) = users.iter().find(|(_, other)| *other == key) {
            return Err(Error::new(format!("{other} and {name} have the same key in {shown}"))
                .hint("make one for each with ckpt keygen FILE"));
        }
        users.push((name, key));
    }
    match users.is_empty() {
        true => Err(Error::new(format!("there is no key in {shown}"))
            .hint(format!("make one for each user: ckpt keygen {shown}/USER"))),
        false => Ok(users),
    }
}

/// The directory in which those of users are.
///
/// # Errors
/// It cannot be used, or another server uses it, for users or for all.
pub(super) fn claim(keys: &Keys, directory: &Path) -> Result<Option<Claim>> {
    if !matches!(keys, Keys::Each(_)) {
        return Ok(None);
    }
    make(directory)?;
    Claim::of(directory).map(Some)
}

fn make(place: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(place);
    made.because(|| format!("cannot make {}", place.display()))
}

/// All users, with the stores of those who are `known`.
///
/// # Errors
/// As [`read`], and a store cannot be opened.
pub(super) fn all(
    keys: &Keys,
    directory: &Path,
    limits: Limits,
    known: &[User],
) -> Result<Vec<User>> {
    let one = |name: String, key, place: &Path| -> Result<User> {
        let store = match known.iter().find(|user| user.name == name) {
            Some(user) => user.store.clone(),
            None => Arc::new(Store::open(place, limits)?),
        };
        Ok(User { name, key, store })
    };
    let keys = match keys {
        Keys::None => return Ok(vec![one(String::new(), None, directory)?]),
        Keys::One(key) => return Ok(vec![one(String::new(), Some(*key), directory)?]),
        Keys::Each(keys) => read(keys)?,
    };
    let user = |(name, key): (String, _)| {
        let place = directory.join(&name);
        make(&place)?;
        one(name, Some(key), &place)
    };
    keys.into_iter().map(user).collect()
}
