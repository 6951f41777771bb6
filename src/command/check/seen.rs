// SPDX-License-Identifier: LGPL-2.1-only
//! What `ckpt check PID` has seen, in the words of a checkpoint; for programs by process, descriptor, address and path.

use crate::command::facts::Facts;
use crate::dump::phase4_refuse::names_it;
use crate::dump::survey::Survey;
use crate::proc::{Pid, Process};
use crate::ptrace::forest;
use crate::resource::kinds;
use crate::resource::losses;

/// Adds all of it.
pub(super) fn add(found: Survey, facts: &mut Facts) {
    let Survey { obstacles, losses, unasked } = found;
    let thing = |(pid, what): (Option<Pid>, &str)| described(pid, what);
    let said = |what: &str, pid: Option<Pid>| match pid.and_then(name) {
        // A refusal names it by itself.
        Some(_) if pid.is_some_and(|pid| names_it(pid, what)) => kinds::advised(what),
        Some(name) => {
            format!("process {} ({name}): {}", pid.unwrap_or(Pid::NONE), kinds::advised(what))
        }
        None => kinds::advised(what),
    };
    let sentences = obstacles.iter().map(|it| said(&it.what, it.pid)).collect();
    let things = obstacles.iter().map(|it| thing((it.pid, &it.what))).collect();
    facts.add_told("obstacles", sentences, things);
    let sentences = losses.sentences.iter().map(|loss| kinds::advised(loss)).collect();
    let things = losses.each.iter().map(|(pid, what)| thing((*pid, what))).collect();
    facts.add_told("losses", sentences, things);
    if !unasked.is_empty() {
        let whose = losses::names(&unasked);
        facts.add(
            "not_asked",
            format!(
                "{whose}: without a payload their threads cannot be asked, so {} would only show at a checkpoint",
                "their securebits, process and thread keyrings, a sandbox (Landlock), memory segments (modify_ldt(2), set_thread_area(2)), \
                 dispatched system calls and what is just under way"
            ),
        );
    }
}

fn name(pid: Pid) -> Option<String> {
    forest::named(pid).map(|(_, name)| name)
}

/// One of them, taken apart.
fn described(pid: Option<Pid>, what: &str) -> Facts {
    let mut facts = Facts::default();
    if let Some(pid) = pid {
        facts.add("process", u64::from(pid.word()));
        facts.add("name", name(pid).unwrap_or_default());
    }
    facts.add("what", what.to_owned());
    if let Some(number) = descriptor(what) {
        facts.add("descriptor", number);
    }
    if let Some(address) = word_after(what, "0x") {
        facts.add("address", format!("0x{address}"));
    }
    let link = pid.zip(descriptor(what)).and_then(|(pid, number)| link(pid, number));
    if let Some(path) = path(what, link.as_deref()) {
        facts.add("path", path);
    }
    if let Some(advice) = kinds::advice(what) {
        facts.add("advice", advice.to_owned());
    }
    facts
}

/// The number of the descriptor that a sentence is about.
fn descriptor(what: &str) -> Option<u64> {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let after = |head: &str| what.split_once(head).and_then(|(_, rest)| digits(rest).parse().ok());
    after("descriptor ").or_else(|| after("cannot open again: "))
}

fn word_after<'a>(what: &'a str, head: &str) -> Option<&'a str> {
    let (_, rest) = what.split_once(head)?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
    Some(&rest[..end]).filter(|word| !word.is_empty())
}

/// What a descriptor shows.
fn link(pid: Pid, number: u64) -> Option<String> {
    let target = std::fs::read_link(Process::glimpse(pid).ok()?.fd(number as u32)).ok()?;
    Some(target.to_string_lossy().trim_end_matches(" (deleted)").to_owned())
}

/// The path that a sentence names: what the descriptor shows that it is about (`link`), else the longest that there is,
/// for names may have spaces in them.
fn path(what: &str, link: Option<&str>) -> Option<String> {
    let mut starts = what.match_indices('/').map(|(at, _)| at);
    let start = starts.find(|at| *at == 0 || matches!(what.as_bytes()[at - 1], b' ' | b'('))?;
    let rest = &what[start..];
    if let Some(link) = link.filter(|link| rest.starts_with(link)) {
        return Some(link.to_owned());
    }
    let ends = rest.match_indices([' ', ':', ',', ')', ';']).map(|(at, _)| at);
    let all: Vec<_> = ends.chain([rest.len()]).map(|end| &rest[..end]).collect();
    let there = all.iter().rev().find(|path| std::fs::symlink_metadata(path).is_ok());
    there.or(all.first()).map(|path| (*path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_taken_apart() {
        let what = "descriptors that a restart cannot open again: 5 (/dev/pts/3: a terminal)";
        assert_eq!((descriptor(what), path(what, None).as_deref()), (Some(5), Some("/dev/pts/3")));
        let what = "it uses a GPU (/dev/nvidia0, descriptor 12)";
        assert_eq!(
            (descriptor(what), path(what, None).as_deref()),
            (Some(12), Some("/dev/nvidia0"))
        );
        let what = "it fills the memory at 0x7f00 by itself (userfaultfd(2))";
        assert_eq!((descriptor(what), path(what, None)), (None, None));
        assert_eq!(word_after(what, "0x"), Some("7f00"));
        let what = "the lock on /no/such file, any more (3), which";
        assert_eq!(path(what, Some("/no/such file, any")).as_deref(), Some("/no/such file, any"));
        assert_eq!(path(what, Some("/another")).as_deref(), Some("/no/such"));
        let dir = std::env::temp_dir().join(format!("a b, c {}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let said = path(&format!("what has {} in it", dir.display()), None);
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(said.as_deref(), dir.to_str());
    }
}
