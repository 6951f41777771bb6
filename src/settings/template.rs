// SPDX-License-Identifier: LGPL-2.1-only
//! Names of checkpoints with placeholders: `%p`, `%n`, `%h` and `%%`.

use crate::proc::Pid;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{quoted, stream};
use crate::error::{Because, Error, Result};

/// A name with placeholders, all of which are known ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(PathBuf);

/// No checkpoint has this number or a higher one: else a file of that name would be the last.
const HIGHEST: u64 = 1_000_000_000_000;

/// What placeholders stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// `%p`: the process.
    pub pid: u32,
    /// `%h`: the host.
    pub host: OsString,
}

impl Values {
    /// For a process of this host.
    pub fn of(pid: Pid) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        Self { pid: pid.word(), host }
    }
}

impl Template {
    /// Reads a name.
    ///
    /// # Errors
    /// Unknown placeholders, and a `%n` that does not stand in the last component, just once.
    pub fn parse(name: &Path) -> Result<Self> {
        let bad = |what: &str| {
            let name = quoted(name.as_os_str());
            Error::new(format!("the checkpoint name {name} {what}"))
        };
        let (mut count, mut last_n) = (0, 0);
        for (at, letter) in placeholders(name.as_os_str().as_bytes()) {
            match letter {
                Some(b'p' | b'h' | b'%') => {}
                Some(b'n') => (count, last_n) = (count + 1, at),
                Some(letter) => {
                    let letter = char::from(letter);
                    return Err(bad(&format!("has the unknown placeholder '%{letter}'"))
                        .hint("%p is the process id, %n a count, %h the host, %% a percent sign"));
                }
                None => return Err(bad("ends with a single '%'; write %% for a percent sign")),
            }
        }
        let bytes = name.as_os_str().as_bytes();
        let slash = match stream::is_one(bytes) {
            true => 0,
            false => bytes.iter().rposition(|b| *b == b'/').unwrap_or(0),
        };
        if count > 1 || (count == 1 && last_n < slash) {
            return Err(bad("may have one %n, and only behind its last slash"));
        }
        Ok(Self(name.into()))
    }

    /// The text as it was given, with any `%` as itself.
    pub fn escape(text: &OsStr) -> OsString {
        let bytes = text.as_bytes().iter();
        let doubled = bytes.flat_map(|&b| std::iter::repeat_n(b, 1 + usize::from(b == b'%')));
        OsString::from_vec(doubled.collect())
    }

    /// Whether each checkpoint has a number in its name.
    pub fn is_counted(&self) -> bool {
        placeholders(self.0.as_os_str().as_bytes()).any(|(_, letter)| letter == Some(b'n'))
    }

    /// Whether the name differs from process to process.
    pub fn has_pid(&self) -> bool {
        placeholders(self.0.as_os_str().as_bytes()).any(|(_, letter)| letter == Some(b'p'))
    }

    /// The name of checkpoint `count`.
    pub fn expand(&self, values: &Values, count: u64) -> PathBuf {
        let (before, after) = self.around(values);
        match after {
            Some(after) => {
                let count = count.to_string();
                OsString::from_vec([before, count.into_bytes(), after].concat()).into()
            }
            None => OsString::from_vec(before).into(),
        }
    }

    /// The checkpoints of this name that there are, the highest number first. Without `%n` it has
    /// number 0.
    ///
    /// # Errors
    /// The directory is there and cannot be looked through (EACCES).
    pub fn existing(&self, values: &Values) -> Result<Vec<(u64, PathBuf)>> {
        if stream::is_one(self.0.as_os_str().as_bytes()) {
            return Ok(Vec::new());
        }
        let (before, after) = self.around(values);
        let before = PathBuf::from(OsString::from_vec(before));
        if after.is_none() {
            let there =
                before.try_exists().because(|| format!("cannot look for {}", before.display()));
            return there.map(|there| if there { vec![(0, before)] } else { Vec::new() });
        }
        let whole = before.as_os_str().as_bytes();
        let directory =
            whole.iter().rposition(|b| *b == b'/').map_or(".".as_bytes(), |slash| &whole[..=slash]);
        let mut found: Vec<(u64, PathBuf)> = Vec::new();
        let entries = match std::fs::read_dir(OsStr::from_bytes(directory)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            entries => entries.because(|| {
                let directory = String::from_utf8_lossy(directory);
                format!("cannot look for checkpoints in {directory}")
            })?,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if let Some(number) = self.number(values, path.as_os_str().as_bytes()) {
                found.insert(found.partition_point(|(other, _)| *other > number), (number, path));
            }
        }
        Ok(found)
    }

    /// The number in a name, with its folders, of this kind; None for what is another.
    pub fn number(&self, values: &Values, name: &[u8]) -> Option<u64> {
        let (before, after) = self.around(values);
        let rest = name.strip_prefix(&before[..])?;
        let Some(after) = after else { return rest.is_empty().then_some(0) };
        let digits = std::str::from_utf8(rest.strip_suffix(&after[..])?).ok()?;
        let number = digits.parse::<u64>().ok().filter(|n| *n < HIGHEST)?;
        (number.to_string() == digits).then_some(number)
    }

    /// What stands before `%n` and behind it, with all else filled in; None where there is none.
    fn around(&self, values: &Values) -> (Vec<u8>, Option<Vec<u8>>) {
        let (mut before, mut after) = (Vec::new(), None);
        let mut bytes = self.0.as_os_str().as_bytes().iter();
        while let Some(&byte) = bytes.next() {
            let out = after.as_mut().unwrap_or(&mut before);
            if byte != b'%' {
                out.push(byte);
                continue;
            }
            match bytes.next() {
                Some(b'p') => out.extend_from_slice(values.pid.to_string().as_bytes()),
                Some(b'h') => out.extend_from_slice(values.host.as_bytes()),
                Some(b'n') => after = Some(Vec::new()),
                _ => out.push(b'%'),
            }
        }
        (before, after)
    }
}

/// Where each `%` stands, and the letter behind it.
fn placeholders(bytes: &[u8]) -> impl Iterator<Item = (usize, Option<u8>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + bytes.get(at..)?.iter().position(|b| *b == b'%')?;
        at = start + 2;
        Some((start, bytes.get(start + 1).copied()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> std::result::Result<Template, String> {
        Template::parse(Path::new(text)).map_err(|e| e.to_string())
    }

    fn values() -> Values {
        Values { pid: 7, host: "node".into() }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let expand = |text: &str| template(text).unwrap().expand(&values(), 12);
        assert_eq!(expand("/a/x.ckpt"), Path::new("/a/x.ckpt"));
        assert_eq!(expand("/%h/x.%p.%n.ckpt"), Path::new("/node/x.7.12.ckpt"));
        assert_eq!(expand("%%n%%%n%%"), Path::new("%n%12%"));
    }

    #[test]
    fn unknown_placeholders_are_refused() {
        assert!(template("a%d").unwrap_err().contains("'%d'"));
        assert!(template("a%").unwrap_err().contains("%%"));
        for text in ["%n/x", "%n%n", "/a/%n/b"] {
            assert!(template(text).unwrap_err().contains("one %n"), "{text}");
        }
    }

    #[test]
    fn escaped_text_is_itself() {
        for text in ["50%", "%n%p", "a%%b", "plain"] {
            let escaped = Template::escape(OsStr::new(text));
            let template = Template::parse(Path::new(&escaped)).unwrap();
            assert_eq!(template.expand(&values(), 1), Path::new(text));
            assert!(!template.is_counted());
        }
    }

    #[test]
    fn existing_ones_are_found_by_number() {
        let dir = std::env::temp_dir().join(format!("ckpt-template-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        for name in [
            "x.7.1000000000000.c",
            "x.7.2.c",
            "x.7.10.c",
            "x.7.03.c",
            "x.7..c",
            "x.8.4.c",
            "x.7.5.d",
        ] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let found = template(dir.join("x.%p.%n.c").to_str().unwrap()).unwrap().existing(&values());
        let found = found.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let names: Vec<_> = found.iter().map(|(n, p)| (*n, p.file_name().unwrap())).collect();
        assert_eq!(names, [(10, OsStr::new("x.7.10.c")), (2, OsStr::new("x.7.2.c"))]);
    }
}
