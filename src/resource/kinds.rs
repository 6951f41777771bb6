// SPDX-License-Identifier: LGPL-2.1-only
//! The kinds of obstacles and losses by a piece of their sentences, and what a user can do about each. `docs/saved.md` has
//! a line for every piece; a test holds both, and the sentences, together.

use crate::ptrace::freeze::WITHOUT_RINGS;

/// What is in the way, and the way out.
const REFUSED: &[(&str, &str)] = &[
    ("it uses a GPU", "let it give the GPU back first, or compute without one"),
    ("it maps device memory", "let it close the device first"),
    ("it maps a kernel object", WITHOUT_RINGS),
    ("works for it in the kernel", WITHOUT_RINGS),
    ("it uses asynchronous I/O (io_setup(2))", "try again when its requests are done"),
    ("somebody probes it (uprobes)", "end the probes (perf probe --del, bpftrace), start it anew"),
    ("memory that nobody else may read (memfd_secret(2))", "let it give that memory back first"),
    (
        "by itself (userfaultfd(2))",
        "let it end that first, or start it without; after a restart with --lazy, try again later",
    ),
    ("it has a shadow stack", "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"),
    ("runs 32-bit code", "use a 64-bit build of it"),
    (
        "memory segments of its own (modify_ldt(2))",
        "no emulator of 16-bit or 32-bit code can be saved",
    ),
    ("memory segments of its own (set_thread_area(2))", "no emulator of 32-bit code can be saved"),
    ("tagged addresses", "start it without (a sanitizer's option)"),
    ("dispatches its system calls", "start it without the emulator that does so (Wine)"),
    ("has descriptors of its own (unshare(2)", "let that thread end first"),
    ("a umask of its own", "let that thread end first"),
    (
        "lies under guard pages",
        "let it take the guards away first, or have less than 32 MiB under them",
    ),
    (
        "shares its memory (vfork(2)",
        "it can be saved when that has ended or has executed a program",
    ),
    ("in a way that a restart cannot make again", "leave one of both out (--without)"),
    ("that a restart cannot make again", "leave it out (--without)"),
    ("has been sent urgent data", "try again when it has read that"),
    ("which a restart can only give from Linux 6.15 on", "save it under Linux 6.15 or later"),
    ("descriptors (SCM_RIGHTS)", "try again when it has read that"),
    ("nobody has accepted yet", "try again when that is accepted"),
    ("before it accepted the connection", "try again when it has"),
    ("that was gone before it was accepted", "try again when it has accepted that"),
    ("has no room for all that was sent to it", "try again when it has read"),
    ("has installed seccomp filters", ""),
    ("seccomp's strict mode", ""),
    ("has locked itself in (seccomp(2)) while the checkpoint began", "try again"),
    ("has seccomp filters that", "start it without its sandbox, if it has an option for that"),
    ("traces it already", ""),
    (
        "is asked when others open files (FAN_CLASS_CONTENT)",
        "let it close that first: while it stood still nobody could open files there",
    ),
];

/// What a restart goes without, and what to do where that matters.
const DECLARED: &[(&str, &str)] = &[
    (
        "descriptors that a restart cannot open again",
        "let the program close them, or start what has their other ends below ckpt, too",
    ),
    (
        "connections to others, which a restart finds reset",
        "the program has to connect again, as after any failure of the network",
    ),
    ("requests of asynchronous I/O", "save it when it has made none, or start it without"),
    ("files above the limit of --embed-files", "keep these files, or raise the limit"),
    ("child processes: ", "save them, too (no --alone, no --without)"),
    ("what may belong to the job", ""),
    ("what is written to the pipe of standard input", "let its input come from a file"),
    ("the CPU time that it has used", "start its measurements anew after a restart"),
    ("huge pages of hugetlbfs", "it is only slower"),
    ("the extended attributes of ", "let it set them again after a restart"),
    ("has expired since its signal waits", ""),
    ("NUMA policies", "start the restart with numactl"),
    ("its user and group ids", "restart it as that user, in jobs of one user"),
    ("the user and group ids", ""),
    ("its capabilities", "restart it as one who has them"),
    ("the capabilities", ""),
    ("its own namespaces", "restart it in such (unshare(1), nsenter(1))"),
    ("the namespaces (", ""),
    ("its own control groups", "move it there again after a restart"),
    ("its securebits", "restart it below setpriv --securebits"),
    ("process or thread keyring", "let it fetch its keys anew"),
    ("the sandbox that it has locked itself in (Landlock(7))", "restart it in one"),
    ("SCHED_FLAG_UTIL_CLAMP", "set it again (uclampset)"),
    ("its root directory", "restart it in that (chroot(8))"),
    ("to a mutex that it is just taking", ""),
    ("has slept or waited already", ""),
    ("System V objects", "start all that use them below one ckpt"),
    ("uses it, too, so a restart finds it as it is then", "start all that use it below one ckpt"),
    ("the lock on ", "let it lock files that it has open by name"),
    ("POSIX timers, if there are any", "save it under a kernel with CONFIG_CHECKPOINT_RESTORE"),
    ("the clock of POSIX timer", ""),
    ("a SIGTERM that came", ""),
    ("what inotify descriptor", "let it look at its files anew after a restart"),
    ("what fanotify descriptor", "let it mark its files anew after a restart"),
    ("the notices of changes in", "let it ask for them anew after a restart"),
    ("signals for another process or thread about", ""),
    ("the line discipline of /dev/pts/", ""),
    ("what is under way in /dev/pts/", ""),
    ("what the device ", "let it set the device up anew after a restart"),
    ("its supplementary groups", "restart it as one who has them"),
    ("what is in the pipe of standard input", "let its input come from a file"),
    ("(F_SETOWN), which nobody may look for here", "start the restart as root"),
    ("the messages in the message queue", ""),
    ("is to tell it", "let it ask for that again after a restart"),
    ("the place of ", ""),
    ("the right to open ", ""),
    ("what epoll descriptor ", ""),
    ("of CPU time of process", ""),
    ("the BPF program that descriptor", "let it attach that again after a restart"),
    ("its process id 1", ""),
    ("connections of others that wait to be accepted", "they are closed"),
    ("messages of others that wait at", ""),
    ("descriptors that others have sent to descriptor", "let it ask for them again"),
    ("what waits at descriptor", ""),
    ("the sources of multicast groups", "let it choose them anew after a restart"),
    ("the groups that packet socket", "let it join them anew after a restart"),
    ("who has sent what waits to be read", ""),
    ("an empty message that waits at", ""),
    ("an error that ", ""),
    (
        "was opened apart from descriptor",
        "start the container with the right to trace (--cap-add SYS_PTRACE)",
    ),
];

/// The way out of what a sentence says, if that does not say it itself.
pub(crate) fn advice(what: &str) -> Option<&'static str> {
    let mut all = REFUSED.iter().chain(DECLARED);
    let (_, advice) = all.find(|(piece, _)| what.contains(piece))?;
    Some(*advice).filter(|advice| !advice.is_empty())
}

/// The sentence with the way out.
pub(crate) fn advised(what: &str) -> String {
    match advice(what) {
        Some(advice) => format!("{what} ({advice})"),
        None => what.to_owned(),
    }
}

/// Whether a sentence has the piece of a kind.
#[cfg(test)]
pub(crate) fn is_known(what: &str) -> bool {
    REFUSED.iter().chain(DECLARED).any(|(piece, _)| what.contains(piece) || piece.contains(what))
}

/// The kinds as a table of docs/messages.md.
#[cfg(test)]
pub(crate) fn table() -> String {
    let mut table = "| words | what it is | way out |\n|---|---|---|\n".to_owned();
    for (kinds, verdict) in [(REFUSED, "in the way"), (DECLARED, "not saved")] {
        for (piece, advice) in kinds {
            let advice = if advice.is_empty() { "the sentence says it" } else { advice };
            table.push_str(&format!("| \"{piece}\" | {verdict} | {advice} |\n"));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// The program's own sources.
    fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => sources(&path, all),
                path if path.ends_with("kinds.rs") => {}
                path => all.push(path),
            }
        }
    }

    /// Without the line ends that a literal goes over.
    fn text(path: &Path) -> String {
        let text = std::fs::read_to_string(path).unwrap();
        text.split("\\\n").map(str::trim_start).collect()
    }

    /// The beginnings of what is pushed or said, up to its first value, with some text in them.
    fn pushed(text: &str) -> Vec<String> {
        const WAYS: [&str; 5] =
            ["losses.push(", "obstacles.push(", "passing.push(", "saving.say(", "        say("];
        let code = text.split("#[cfg(test)]").next().unwrap();
        let mut all = Vec::new();
        for way in WAYS {
            for (at, _) in code.match_indices(way) {
                let rest = &code[at + way.len()..];
                let call = &rest[..rest.find(';').unwrap_or(rest.len())];
                let Some((_, literal)) = call.split_once('"') else { continue };
                let literal = literal.split('"').next().unwrap();
                // Items of lists, and what another sentence goes on with, have no text of their own.
                let is_part = literal.starts_with('{') && literal.len() < 25;
                let is_part = is_part || call.trim_start().starts_with("lost(");
                all.extend(
                    (!is_part && !literal.starts_with("{what}")).then(|| literal.to_owned()),
                );
            }
        }
        all
    }

    #[test]
    fn every_sentence_is_of_a_kind() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut all = Vec::new();
        sources(&top.join("src/resource"), &mut all);
        sources(&top.join("src/dump"), &mut all);
        let kinds = || REFUSED.iter().chain(DECLARED);
        let unknown: Vec<_> = all
            .iter()
            .flat_map(|path| pushed(&text(path)))
            .filter(|said| !kinds().any(|(piece, _)| said.contains(piece) || piece.contains(said)))
            .collect();
        assert!(unknown.is_empty(), "no kind in resource/kinds.rs: {unknown:#?}");
    }

    #[test]
    fn sentences_and_docs_have_every_kind() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut all = Vec::new();
        sources(&top.join("src"), &mut all);
        let said: Vec<String> = all.iter().map(|path| text(path)).collect();
        let docs = std::fs::read_to_string(top.join("docs/saved.md")).unwrap();
        for (kinds, verdict) in [(REFUSED, "| refused |"), (DECLARED, "| declared |")] {
            for (piece, _) in kinds {
                assert!(said.iter().any(|text| text.contains(piece)), "nobody says {piece}");
                let is = |line: &&str| line.contains(piece) && line.contains(verdict);
                assert!(docs.lines().any(|line| is(&line)), "docs/saved.md: {piece} {verdict}");
            }
        }
    }
}
