// SPDX-License-Identifier: LGPL-2.1-only
//! State that an image cannot hold and a restart cannot give: it is named, so that nobody takes it for saved.

use super::looked::LookedThread;
use super::runtime::loaded::Loaded;
use super::{Gathered, Target, privileges};

/// Names what the process goes without, of whose `threads` this was seen, and refuses what cannot be left out.
#[inline(never)]
pub(crate) fn name(target: &Target<'_>, threads: &[LookedThread], gathered: &mut Gathered) {
    alone(target, threads, gathered);
    if counts_cpu_time(target) {
        gathered.losses.push(
            "the CPU time that it has used, or its children, which it may look at: clock(3), times(2) and getrusage(2) begin at 0 again"
                .into(),
        );
    }
}

/// Refuses threads that do not share what all threads of the process get back together, and names what else they
/// have of their own.
fn alone(target: &Target<'_>, threads: &[LookedThread], gathered: &mut Gathered) {
    let frozen = &target.frozen;
    let Some(first) = threads.first() else { return };
    let Ok(main) = frozen.status(first.tid) else { return };
    for looked in threads.iter().skip(1) {
        let tid = looked.tid;
        let [files, directory] = looked.apart;
        if files {
            let text = format!("thread {tid} has descriptors of its own (unshare(2), CLONE_FILES)");
            gathered.obstacles.push(text);
        }
        if directory {
            gathered.obstacles.push(format!(
                "thread {tid} has a working directory and a umask of its own (unshare(2), CLONE_FS)"
            ));
        }
        let mut say = |what: &str| {
            gathered.losses.push(format!("{what} that thread {tid} has of its own"));
        };
        if !looked.left.is_empty() {
            say(&format!("the namespaces ({})", looked.left.join(", ")));
        }
        let Ok(status) = frozen.status(tid) else { continue };
        if (main.uid, main.gid, &main.groups) != (status.uid, status.gid, &status.groups) {
            say("the user and group ids");
        }
        if privileges::sets(&main) != privileges::sets(&status) {
            say("the capabilities");
        }
    }
}

/// Whether a program that has used some imports a function that tells how much: a tenth of a second, an interpreter half
/// of one, children that have ended a whole one. Libraries are asked only where the executable is nothing but their front: others import such functions for all
/// who use them.
fn counts_cpu_time(target: &Target<'_>) -> bool {
    const TENTH: u64 = 10;
    const HALF: u64 = 50;
    const FUNCTIONS: [&str; 5] =
        ["clock", "times", "getrusage", "clock_getcpuclockid", "pthread_getcpuclockid"];
    const INTERPRETERS: [&str; 4] = ["libpython", "libperl", "liblua", "libruby"];
    // Of those that are an executable.
    const ENTRIES: [&str; 4] = ["Py_BytesMain", "perl_run", "lua_newstate", "ruby_run_node"];
    const WHOLE: u64 = 100;
    let used = target.rest.map_or(0, |rest| rest.cpu_time);
    let much = target.rest.map_or(0, |rest| rest.childrens_cpu_time) >= WHOLE;
    let interprets = |it: &Loaded| match it.path.is_empty() {
        true => it.names(target.memory, &ENTRIES),
        false => INTERPRETERS.iter().any(|name| it.file_name().starts_with(name)),
    };
    let speaks = |it: &Loaded| it.path.is_empty() || interprets(it);
    let mut speakers = target.loaded.iter().filter(|it| speaks(it));
    (used >= TENTH || much)
        && speakers.any(|it| {
            it.names(target.memory, &FUNCTIONS) && (used >= HALF || much || !interprets(it))
        })
}
