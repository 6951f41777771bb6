// SPDX-License-Identifier: LGPL-2.1-only
//! What is known of earlier checkpoints on its way from a dumper to the monitor.

use super::{Interval, Older, PageSet, Rolling, Tracker};
use crate::error::{Because, Result};
use crate::proc::line;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

impl Rolling {
    /// Gives it to the other end of a line.
    ///
    /// # Errors
    /// There is no memory, or nobody at the other end.
    pub(crate) fn give(&self, line: &UnixDatagram) -> Result<()> {
        let why = || "cannot tell the monitor of a checkpoint";
        let mut words = Vec::new();
        let (last, number) = self.last.map_or(([0; 2], 0), |(id, number)| (id, number));
        let older = self.older.as_ref().and_then(|older| Some((older.id()?, older.path())));
        let (id, path) =
            older.map_or(([0; 2], &b""[..]), |(id, path)| (id, path.as_os_str().as_bytes()));
        words.extend([
            last[0],
            last[1],
            number,
            id[0],
            id[1],
            self.older_generation,
            path.len() as u64,
        ]);
        words.extend([self.expected, self.restless, u64::from(self.mark)]);
        words.extend([self.intervals.len() as u64, self.before.len() as u64]);
        words.extend_from_slice(self.before.as_flattened());
        for Interval { generation, when, pages, whole } in &self.intervals {
            words.extend([*generation, pages.words().len() as u64, whole.len() as u64]);
            words.extend(when);
            words.extend_from_slice(pages.words());
            words.extend_from_slice(whole.as_flattened());
        }
        let memory = nix::sys::memfd::memfd_create(c"ckpt", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let mut memory = File::from(memory.because(why)?);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write_all(&bytes).and_then(|()| memory.write_all(path)).because(why)?;
        let tracker =
            self.tracker.as_ref().map(|tracker| std::os::fd::AsFd::as_fd(tracker).as_raw_fd());
        let fds: Vec<_> = std::iter::once(memory.as_raw_fd()).chain(tracker).collect();
        line::send(line, &fds).because(why)
    }

    /// What the other end has given.
    pub(crate) fn take(line: &UnixDatagram) -> Option<Self> {
        let mut fds = line::receive(line).ok()?.into_iter();
        let memory = File::from(fds.next()?);
        let mut bytes = vec![0; memory.metadata().ok()?.len() as usize];
        memory.read_exact_at(&mut bytes, 0).ok()?;
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next();
        let [dev, ino, number, old_dev, old_ino, older_generation, path_len] =
            std::array::from_fn(|_| next());
        let [expected, restless, mark, count, large] = std::array::from_fn(|_| next());
        let before: Vec<_> = (0..large?).map_while(|_| Some([next()?, next()?])).collect();
        let mut intervals = Vec::new();
        let mut used = 12 + 2 * before.len();
        for _ in 0..count? {
            let (generation, len, areas) = (next()?, next()?, next()?);
            let when = [next()?, next()?];
            let pages: Vec<u64> = (0..len).map_while(|_| next()).collect();
            let whole: Vec<_> = (0..areas).map_while(|_| Some([next()?, next()?])).collect();
            used += 5 + pages.len() + 2 * whole.len();
            let pages = PageSet::from_words(&pages);
            intervals.push(Interval { generation, when, pages, whole });
        }
        let path = bytes.get(8 * used..8 * used + path_len? as usize)?.to_vec();
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        let last = Some(([dev?, ino?], number?)).filter(|(_, number)| *number != 0);
        Some(Self {
            all: false,
            moves: false,
            exact: false,
            before,
            older: Older::hold(path, [old_dev?, old_ino?]),
            older_generation: older_generation?,
            last,
            tracker: fds.next().map(Tracker::of),
            mark: mark? as u32,
            intervals,
            found: Vec::new(),
            expected: expected?,
            restless: restless?,
            room: Vec::new(),
            flags: None,
            confirms: None,
        })
    }
}
