// SPDX-License-Identifier: LGPL-2.1-only
//! Which descendants of a program its checkpoints leave out.

use super::quoted;
use crate::error::{Error, Result};
use crate::proc::Pid;
use ckpt_abi::region::WITHOUT_LEN;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What stands between two words.
const BETWEEN: &[u8] = b",";
/// Longest name that the kernel keeps of a process (TASK_COMM_LEN, without its NUL).
const LONGEST_COMM: usize = 15;

/// Names and process ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Without(Vec<OsString>);

impl Without {
    /// Adds the words of a value, which stand between commas.
    ///
    /// # Errors
    /// An empty word, or more than there is room for in a process.
    pub(super) fn parse(said: &mut Option<Self>, value: &OsStr) -> Result<()> {
        let mut all = said.take().unwrap_or_default();
        for word in value.as_bytes().split(|byte| BETWEEN.contains(byte)) {
            if word.is_empty() || word.contains(&0) {
                let sentence = format!("{} names no process to be left out", quoted(value));
                return Err(Error::new(sentence).hint("say its name or its process id"));
            }
            all.0.push(OsStr::from_bytes(word).to_owned());
        }
        if all.written().len() >= WITHOUT_LEN {
            let sentence =
                format!("the names to be left out have more than {} bytes", WITHOUT_LEN - 1);
            return Err(
                Error::new(sentence).hint("the process id of their common parent is shorter")
            );
        }
        *said = Some(all);
        Ok(())
    }

    /// The words as one value.
    pub(super) fn written(&self) -> OsString {
        let words: Vec<&[u8]> = self.0.iter().map(|word| word.as_bytes()).collect();
        OsString::from_vec(words.join(BETWEEN))
    }

    pub(super) fn put(&self, field: &mut [u8; WITHOUT_LEN]) {
        let written = self.written();
        *field = [0; WITHOUT_LEN];
        field.iter_mut().zip(written.as_bytes()).for_each(|(to, from)| *to = *from);
    }

    /// Reads what was put into a field; None of an empty one.
    ///
    /// # Errors
    /// What nobody can have put there.
    pub(super) fn from_bytes(field: &[u8; WITHOUT_LEN]) -> Result<Option<Self>> {
        let end = field.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| Error::new("the names to be left out have no end"))?;
        let mut said = None;
        if end > 0 {
            Self::parse(&mut said, OsStr::from_bytes(&field[..end]))?;
        }
        Ok(said)
    }

    /// The process ids among the words become what `inner` says.
    pub(crate) fn with_ids(mut self, inner: impl Fn(Pid) -> Pid) -> Self {
        for word in &mut self.0 {
            if let Some(pid) = word.to_str().and_then(|word| word.parse().ok()) {
                *word = inner(pid).to_string().into();
            }
        }
        self
    }

    /// Whether a process of this id and name (comm) is meant.
    pub(crate) fn means(&self, pid: Pid, comm: &OsStr) -> bool {
        let of = |word: &OsString| {
            let bytes = word.as_bytes();
            let number = word.to_str().is_some_and(|word| word.parse() == Ok(pid));
            number || bytes.get(..LONGEST_COMM).unwrap_or(bytes) == comm.as_bytes()
        };
        self.0.iter().any(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(values: &[&str]) -> Result<Without> {
        let mut said = None;
        values.iter().try_for_each(|value| Without::parse(&mut said, OsStr::new(value)))?;
        Ok(said.unwrap_or_default())
    }

    #[test]
    fn words_are_names_and_ids() {
        let without = parsed(&["tail,12", "a-name-of-many-letters"]).unwrap();
        let means = |pid, comm: &str| without.means(Pid::new(pid), OsStr::new(comm));
        assert!(means(5, "tail") && means(12, "x") && means(5, "a-name-of-many-"));
        assert!(!means(5, "tai") && !means(1, "12x") && !means(5, "a-name"));
        let mut field = [0; WITHOUT_LEN];
        without.put(&mut field);
        assert_eq!(Without::from_bytes(&field).unwrap(), Some(without.clone()));
        assert_eq!(Without::from_bytes(&[0; WITHOUT_LEN]).unwrap(), None);
        assert!(Without::from_bytes(&[b'x'; WITHOUT_LEN]).is_err());
        let inner = without.with_ids(|pid| Pid::new(pid.get() + 1));
        assert!(
            inner.means(Pid::new(13), OsStr::new("x"))
                && !inner.means(Pid::new(12), OsStr::new("x"))
        );
    }

    #[test]
    fn what_names_nobody_is_refused() {
        for value in ["", ",", "a,,b"] {
            assert!(parsed(&[value]).is_err(), "{value:?}");
        }
        assert!(parsed(&[&"x".repeat(WITHOUT_LEN)]).is_err());
    }
}
