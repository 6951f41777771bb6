// SPDX-License-Identifier: LGPL-2.1-only
//! Which process ids a restarted program has (`--ids`).
//!
//! Several processes know each other by their ids (the shell's `$!`, wait(2), locks, files with process ids), so a tree
//! has its own again wherever that is possible; where it is not, new ones after a sentence, or none (`keep`). One process alone takes the id of whoever restarts it, as execve(2) would
//! leave it: what knows that id outside (a batch system, a shell) goes on knowing it, and nothing of the world that
//! namespaces take away is missing. Its thread ids are kept where the kernel grants them, else corrected where the C
//! libraries have them.

use super::phase1_check::Saved;
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::image::read::Image;
use crate::settings::quoted;
use ckpt_abi::image::{SectionKind, SystemV};
use std::ffi::OsStr;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ids {
    /// Those that it had, of several processes; a new one, of one.
    #[default]
    Auto,
    /// Those that it had.
    Keep,
    /// New ones.
    New,
}

impl Ids {
    /// Reads a word of the user.
    ///
    /// # Errors
    /// One that is not known.
    pub(crate) fn parse(word: &OsStr) -> Result<Self> {
        let all = [Self::Auto, Self::Keep, Self::New].into_iter();
        all.into_iter().find(|ids| word == ids.word()).ok_or_else(|| {
            Error::new(format!("{} is not known; there are keep, new and auto", quoted(word)))
        })
    }

    /// How it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Keep => "keep",
            Self::New => "new",
        }
    }

    /// The tree as which the processes of an image restart; None: the restarter becomes the only one.
    ///
    /// # Errors
    /// A damaged image.
    pub(super) fn tree(self, image: &Image, all: &[Saved<'_>]) -> Result<Option<Tree>> {
        let furnished = self != Self::New && image.records::<SystemV>(SectionKind::SystemV).is_ok();
        let one = match Tree::of_image(image)? {
            Some(tree) if furnished || self == Self::Keep || !tree.can_be_us() => {
                return Ok(Some(tree));
            }
            _ => all.first(),
        };
        // Who has the id already needs nothing else for it.
        let has_it =
            |saved: &Saved<'_>| saved.process.pid == std::process::id() && saved.threads.len() == 1;
        // System V objects need the namespace of a tree.
        let kept = one.filter(|saved| furnished || (self == Self::Keep && !has_it(saved)));
        Ok(kept.map(|saved| Tree::of_one(saved.process.pid)))
    }
}
