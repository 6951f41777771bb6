// SPDX-License-Identifier: LGPL-2.1-only
//! ckpt as the parent of the program that it starts, where only an ancestor may trace all of its processes (Yama).
//!
//! It stands for the program as a restarter does for its tree, and serves the dumpers ([`Forebear`]). A restarter of a tree
//! in namespaces of its own cannot: who has left its PID namespace to its children makes no threads (clone(2), EINVAL). So
//! it is such a child itself, and announces the root.

use super::counted;
use super::make::end;
use super::namespaces;
use super::proxy::{self, Proxy};
use super::witness::Witness;
use crate::error::{Because, FAILED, Result};
use crate::proc::Pid;
use crate::proc::forebear;
use crate::proc::fork::fork;
use crate::ptrace::forebear::{self as served, Forebear};
use crate::resource::descriptor::numbers::close_others;
use crate::restart::mapping;
use nix::libc;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

/// Where a restarter announces the root of its tree.
static LINE: Mutex<Option<PipeWriter>> = Mutex::new(None);

/// Takes that line, for whoever has no use of it.
pub(crate) fn line() -> Option<PipeWriter> {
    LINE.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Names the root of a tree to the process that stays, if there is one.
pub(crate) fn announce(root: Pid) {
    if let Some(mut line) = line() {
        let _ = line.write_all(&root.get().to_ne_bytes());
    }
}

/// Stays, if that is of any use here, and nobody does so already for the same process; whoever becomes it is `alone`, or
/// has us in front of it anyhow.
///
/// # Errors
/// Those of [`stay`].
pub(crate) fn stay_if_needed(is_served: bool, alone: bool) -> Result<()> {
    let for_yama = forebear::is_needed() && !forebear::may_trace_all() && !is_served;
    match for_yama || alone && is_in_young_container() {
        true => stay(),
        false => Ok(()),
    }
}

/// Whether a process of this one's id could not have it again in the next container: every restarter there has it. Ids
/// that small are given once, before the first turn.
fn is_in_young_container() -> bool {
    let own = Pid::own();
    own == Pid::INIT || own.get() < counted::FIRST && namespaces::offered().is_err()
}

/// Makes the process that becomes the program, and returns in that alone.
///
/// # Errors
/// No process can be made, or nobody could be served.
fn stay() -> Result<()> {
    let what = || "cannot start the program beside ckpt, which stays as its parent under Yama";
    let mask = mapping::block_all_signals();
    let told = proxy::expect_children();
    let mut witness = Witness::start()?;
    if Pid::own().get() < counted::FIRST {
        counted::pass_reserved();
    }
    let (mut hear, mut tell) = std::io::pipe().because(what)?;
    let (announced, line) = std::io::pipe().because(what)?;
    let Some(root) = fork(libc::SIGCHLD).because(what)? else {
        drop((witness, tell, announced));
        *LINE.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
        proxy::tell_of_children(told);
        mapping::set_signals_but(mask, 0);
        // It begins when it can be saved.
        if hear.read_exact(&mut [0]).is_err() {
            // Who was to stay is gone.
            end(FAILED.into());
        }
        return Ok(());
    };
    witness.guard(root);
    // Orphans of the tree stay below us, where we may trace them.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    // Its name is anybody's to have.
    let forebear = Forebear::of(root);
    if let Err(e) = &forebear {
        eprintln!("ckpt: {e}; only its checkpoint signal saves the program");
    }
    drop(line);
    let mut kept = witness.numbers().to_vec();
    kept.extend([tell.as_raw_fd(), announced.as_raw_fd()]);
    kept.extend(forebear.as_ref().map(Forebear::number));
    // Whoever reads from the program waits for its end.
    close_others(kept);
    let _ = std::env::set_current_dir("/");
    forebear.map_or(Ok(()), Forebear::serve)?;
    serve_announced(announced)?;
    let _ = tell.write_all(&[1]);
    drop(tell);
    Proxy { root, init: None, witness, rendezvous: None, governs: false }.stand()
}

/// Serves the dumpers inside of the namespaces of a tree, whose root is announced when it is there.
fn serve_announced(mut line: PipeReader) -> Result<()> {
    served::thread(move || {
        let mut root = [0; 4];
        if line.read_exact(&mut root).is_ok() {
            let _ = Forebear::inside(Pid::new(i32::from_ne_bytes(root))).and_then(Forebear::serve);
        }
    })
}
