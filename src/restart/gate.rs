// SPDX-License-Identifier: LGPL-2.1-only
//! A restart whose program still runs on another machine: it [fills](super::early) memory from the image that comes here,
//! and waits before its last steps until it is told to take them, when all that can fail here has been done.
//!
//! It is asked for by [`VARIABLE`] with the numbers of two descriptors: a line, and the file of the image. On the line
//! comes, with each image that is whole for now, whether it is the last, how many parts of the file have changed since the
//! one before, and where each begins and ends (8 bytes each). A byte says that it is done; behind the last one another
//! byte says that the program may go on. The restorer says with a third byte, as one of its last orders, that it does:
//! neither execve(2) nor an end right behind it takes that back.

use super::MapPath;
use super::early::Early;
use super::phase1_check::{Saved, check_all};
use super::pooled::Kept;
use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::resource::descriptor::numbers;
use ckpt_abi::image::Descriptor;
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// It is in no program's environment: that is the saved one.
pub(crate) const VARIABLE: &str = "CKPT_GATE";

/// The line to whoever says so.
pub(crate) struct Gate {
    line: UnixStream,
    /// What is there of memory, and what has changed since; when that is there, too, what the restart takes over.
    early: RefCell<(Early, Vec<(u64, u64)>)>,
    kept: RefCell<Kept>,
}

impl Gate {
    /// That of a line.
    pub(crate) fn of(line: UnixStream) -> Self {
        Self { line, early: RefCell::default(), kept: RefCell::default() }
    }

    /// Waits until the last image is there, and fills memory from those before it; `name` is what it is called.
    ///
    /// # Errors
    /// Whoever says so is gone, an image is damaged, or there is no memory.
    pub(crate) fn image(&self, file: &File, name: &Path) -> Result<Image> {
        let mut early = Early::default();
        loop {
            let head = self.words(2)?;
            let words = self.words(2 * head[1] as usize)?;
            let changed: Vec<_> = words.as_chunks::<2>().0.iter().map(|[a, b]| (*a, *b)).collect();
            let file = file.try_clone().because(|| "cannot open the image")?;
            let image = Image::from_file(file, name)?;
            if head[0] != 0 {
                self.early.replace((early, changed));
                return Ok(image);
            }
            let (_, all) = check_all(&image, &MapPath::default())?;
            early.bring(&image, &all, &changed)?;
            (&self.line).write_all(&[1]).because(given_up)?;
        }
    }

    /// Fills memory from the last image, of which all is checked.
    ///
    /// # Errors
    /// The image is damaged, or there is no memory.
    pub(super) fn fill(&self, image: &Image, all: &[Saved<'_>]) -> Result<()> {
        let (mut early, changed) = self.early.take();
        early.bring(image, all, &changed)?;
        self.kept.replace(early.keep());
        Ok(())
    }

    fn words(&self, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; 8 * count];
        (&self.line).read_exact(&mut bytes).because(given_up)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// What of the memory is there.
    pub(super) fn kept(&self) -> Kept {
        self.kept.take()
    }

    /// The number of a line on which the restorer says that the program goes on, and which it closes; none of the program's.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub(super) fn line(&self, records: &[Descriptor]) -> Result<i32> {
        let line = self.line.as_fd().try_clone_to_owned().because(given_up)?;
        numbers::move_aside(line, records).map(numbers::leak)
    }

    /// Says that everything is ready, and waits.
    ///
    /// # Errors
    /// It is not to go on: whoever says so is gone.
    pub(super) fn pass(&self) -> Result<()> {
        (&self.line).write_all(&[1]).because(given_up)?;
        match (&self.line).read(&mut [0]) {
            Ok(1) => Ok(()),
            _ => Err(Error::new("the program is not to go on here")),
        }
    }
}

fn given_up() -> &'static str {
    "the program is not to go on here"
}
