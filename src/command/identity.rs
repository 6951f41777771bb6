// SPDX-License-Identifier: LGPL-2.1-only
//! Whether a checkpoint is one of the run that is about to begin.

use crate::error::{Because, Error, Result};
use crate::image::hash;
use crate::image::read::Image;
use crate::inject::launch;
use crate::restart::{self, phase1_check};
use ckpt_abi::image::{ProcessRecord, SectionKind};
use goblin::elf64::header::{ELFMAG, Header};
use goblin::elf64::program_header::{PT_NOTE, ProgramHeader};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// What a run is recognised by, as numbers: the content of its executable, its arguments, and the directory
/// that it began in. All 0: of a program that ckpt did not start.
pub(super) struct Identity {
    numbers: [u64; 3],
    command: String,
    args: Vec<OsString>,
    directory: OsString,
    script: bool,
}

impl Identity {
    /// Of a run that is about to begin in `directory`.
    ///
    /// # Errors
    /// The executable cannot be read.
    pub(super) fn of(program: &OsStr, args: &[OsString], directory: &Path) -> Result<Self> {
        let (executable, script) = match launch::executable(program) {
            Some(path) => content(&path).because(|| format!("cannot read {}", path.display()))?,
            // The launch says so.
            None => (0, false),
        };
        let joined = args.join(OsStr::from_bytes(&[0]));
        let all = [&[program.to_owned()], args].concat();
        Ok(Self {
            numbers: [
                executable.max(1),
                hash(joined.as_bytes()).max(1),
                hash(directory.as_os_str().as_bytes()).max(1),
            ],
            command: shown(&all.join(OsStr::new(" "))),
            args: args.to_vec(),
            directory: directory.into(),
            script,
        })
    }

    /// The numbers, for the region.
    pub(super) fn numbers(&self) -> [u64; 3] {
        self.numbers
    }

    /// In what a checkpoint differs from this run; nothing where it is one of it.
    ///
    /// # Errors
    /// The checkpoint cannot be read.
    pub(super) fn differences(&self, image: &Image) -> Result<Vec<String>> {
        let process: ProcessRecord = image.process(0).record(SectionKind::Process)?;
        let arguments = image.text(process.arguments);
        let saved =
            shown(OsStr::from_bytes(arguments.as_bytes().trim_ascii_end())).replace("\\u{0}", " ");
        let command = format!("its command line is {saved}, not {}", self.command);
        let launched = launched(image);
        if launched == [0; 3] {
            return Ok(if self.has(&arguments) { Vec::new() } else { vec![command] });
        }
        let differs = |at: usize| launched[at] != self.numbers[at];
        let mut differences = Vec::new();
        if differs(1) {
            differences.push(command);
        }
        if differs(0) {
            let program = shown(&image.text(process.program));
            differences.push(format!("the program is another, or was changed (it was {program})"));
        }
        if differs(2) {
            let here = shown(&self.directory);
            differences.push(format!("it began in another directory than {here}"));
        }
        Ok(differences)
    }

    /// Whether a checkpoint is one of another command line.
    ///
    /// # Errors
    /// The checkpoint cannot be read.
    pub(super) fn is_other_command(&self, image: &Image) -> Result<bool> {
        let process: ProcessRecord = image.process(0).record(SectionKind::Process)?;
        let launched = launched(image);
        Ok(match launched[1] {
            0 => !self.has(&image.text(process.arguments)),
            saved => saved != self.numbers[1],
        })
    }

    /// Whether these are the saved arguments; those of a script stand behind its interpreter's.
    fn has(&self, saved: &OsStr) -> bool {
        let words: Vec<&[u8]> = saved.as_bytes().split(|b| *b == 0).collect();
        let words = words.strip_suffix(&[&b""[..]]).unwrap_or(&words);
        let own: Vec<&[u8]> = self.args.iter().map(|arg| arg.as_bytes()).collect();
        words.ends_with(&own) && (self.script || words.len() == own.len() + 1)
    }
}

/// The numbers that the program was launched with; 0 where the checkpoint has none that can be read.
fn launched(image: &Image) -> [u64; 3] {
    let options = restart::Options::default();
    let saved = phase1_check::check(image, &options.map_path);
    let config = saved.and_then(|(_, saved)| phase1_check::config(&saved, &options));
    config.map_or([0; 3], |config| config.launched)
}

/// A number for the content of an executable: its build id, else all of it; and whether it is a script.
fn content(path: &Path) -> std::io::Result<(u64, bool)> {
    let mut file = File::open(path)?;
    let mut head = Vec::new();
    // Mostly it stands in the first page.
    for len in [1 << 12, 1 << 16] {
        head.resize(len, 0);
        let len = file.read_at(&mut head, 0)?;
        head.truncate(len);
        if let Some(id) = build_id(&head) {
            return Ok((hash(id), false));
        }
    }
    let (mut sum, mut piece) = (Xxh3::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((sum.digest(), head.starts_with(b"#!"))),
            n => sum.update(&piece[..n]),
        }
    }
}

/// The note of the linker (NT_GNU_BUILD_ID) in the first bytes of a file.
fn build_id(head: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let header = Header::from_bytes(head.first_chunk()?);
    if !head.starts_with(ELFMAG) {
        return None;
    }
    let (at, size) = (usize::try_from(header.e_phoff).ok()?, usize::from(header.e_phentsize));
    let headers = head.get(at..)?.get(..size * usize::from(header.e_phnum))?;
    if size != size_of::<ProgramHeader>() {
        return None;
    }
    let headers = ProgramHeader::from_bytes(headers, usize::from(header.e_phnum));
    headers.iter().filter(|h| h.p_type == PT_NOTE).find_map(|note| {
        let start = usize::try_from(note.p_offset).ok()?;
        let mut rest = head.get(start..start.checked_add(usize::try_from(note.p_filesz).ok()?)?)?;
        while rest.len() >= 12 {
            let word = |at: usize| rest.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
            let (name, len, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
            let begin = 12 + name.next_multiple_of(4);
            let description = rest.get(begin..begin.checked_add(len)?)?;
            if kind == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") {
                return Some(description);
            }
            rest = rest.get(begin + len.next_multiple_of(4)..)?;
        }
        None
    })
}

fn shown(text: &OsStr) -> String {
    crate::settings::quoted(text)
}

/// Refuses to let the default name of a program replace the checkpoint of another command line.
///
/// # Errors
/// There is such a checkpoint.
pub(super) fn refuse_to_replace(identity: &Identity, name: &Path) -> Result<()> {
    let Ok(image) = Image::open(name) else { return Ok(()) };
    if let Some(why) = image.locked() {
        return Err(why.clone().hint("choose another name with -n, or say --replace"));
    }
    if !identity.is_other_command(&image).unwrap_or(false) {
        return Ok(());
    }
    let process: ProcessRecord = image.process(0).record(SectionKind::Process)?;
    let saved = image.text(process.arguments);
    let saved = shown(&saved).replace("\\u{0}", " ");
    let sentence = format!(
        "{} is the checkpoint of {saved}, which {} would replace",
        name.display(),
        identity.command
    );
    Err(Error::new(sentence).hint("choose another name with -n, or say --replace"))
}
