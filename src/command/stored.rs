// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt ls`, `ckpt get`, `ckpt put` and `ckpt rm`

use super::facts::{Facts, json_list};
use crate::error::{Because, Result, printable};
use crate::image::file::FileSink;
use crate::image::read::Image;
use crate::progress::{self, Screen};
use crate::serve::client::Client;
use crate::serve::log::date;
use crate::serve::protocol::PIECE;
use crate::settings::server::{ServerName, Transfer};
use crate::units;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Lists a folder, or what fits a pattern.
#[inline(never)]
pub(super) fn list(folder: &ServerName, transfer: &Transfer, json: bool) -> Result<u8> {
    let path = folder.path();
    let wild = path.find(['*', '?']);
    let above = wild.map_or(path, |at| path[..at].rsplit_once('/').map_or("", |(above, _)| above));
    let mut entries = Client::connect(folder, transfer)?.list(above)?;
    if wild.is_some() {
        entries.retain(|entry| fits(path.trim_end_matches('/'), &entry.name));
    }
    let (mut lines, mut objects) = (String::new(), Vec::new());
    for entry in entries {
        let mut facts = Facts::default();
        facts.add("name", folder.sibling(entry.name.clone()).to_string());
        facts.add_bytes("bytes", entry.len);
        facts.add("time", date(entry.time));
        objects.push(facts.json());
        let name = printable(&entry.name);
        lines.push_str(&format!("{:>10}  {}  {name}\n", units::size(entry.len), date(entry.time)));
    }
    super::print(&if json { json_list(&objects) } else { lines })
}

/// Whether a name, or a folder that it is in, fits a pattern.
fn fits(pattern: &str, name: &str) -> bool {
    let mut letters = pattern.chars();
    match letters.next() {
        None => name.is_empty() || name.starts_with('/'),
        Some('*') => {
            let part = name.find('/').unwrap_or(name.len());
            let ends = name[..part].char_indices().map(|(at, _)| at).chain([part]);
            ends.into_iter().any(|end| fits(letters.as_str(), &name[end..]))
        }
        Some(letter) => name.chars().next().is_some_and(|other| {
            let same = letter == other || letter == '?' && other != '/';
            same && fits(letters.as_str(), &name[other.len_utf8()..])
        }),
    }
}

/// Fetches an image into a file.
#[inline(never)]
pub(super) fn get(name: &ServerName, file: Option<PathBuf>, transfer: &Transfer) -> Result<u8> {
    let last = name.path().rsplit('/').next().unwrap_or_default();
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    let mut file = here.join(file.unwrap_or_else(|| last.into()));
    if file.is_dir() {
        file.push(last);
    }
    let mut sink = FileSink::create(&file)?;
    Client::connect(name, transfer)?.get(name.path(), &mut sink)?;
    Ok(0)
}

/// Sends a file.
#[inline(never)]
pub(super) fn put(file: &Path, name: &ServerName, transfer: &Transfer) -> Result<u8> {
    let why = || format!("cannot read {}", file.display());
    let mut source = File::open(file).because(why)?;
    let meta = source.metadata().because(why)?;
    let copy = source.try_clone().because(why)?;
    Image::from_file(copy, file).map_err(|e| e.hint("only whole checkpoints are sent"))?;
    let mut put = Client::connect(name, transfer)?.put(name.path())?;
    let _shown = progress::begin(file.display().to_string(), Some(meta.len()), Screen::Own);
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    loop {
        match fill(&mut source, &mut piece).because(why)? {
            0 => break,
            n => {
                put.piece(at, &piece[..n])?;
                at += n as u64;
                progress::add(n as u64);
            }
        }
    }
    put.seal(at)?;
    Ok(0)
}

/// Reads until the buffer is full or the file ends.
fn fill(source: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match source.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Removes an image.
#[inline(never)]
pub(super) fn remove(name: &ServerName, transfer: &Transfer) -> Result<u8> {
    Client::connect(name, transfer)?.remove(name.path())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("*", "a"),
            ("*", "a/b"),
            ("a*", "a"),
            ("a*c", "abbc"),
            ("a?c", "aéc"),
            ("a/*.ckpt", "a/x.1.ckpt"),
            ("*/x", "job/x"),
            ("job-?", "job-7/x"),
            ("a*", "a*"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("a*", "ba"),
            ("a?", "a"),
            ("a?c", "a/c"),
            ("*/x", "a/b/x"),
            ("a*c", "ab"),
            ("a*", "b/a"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }
}
