// SPDX-License-Identifier: LGPL-2.1-only
//! The painter: a process that, once the program runs, has it show itself at its new terminal, and ends.
//!
//! # Safety
//! The children are made by a bare clone(2) in a process with one thread, so they may do all that their parent may.
#![allow(unsafe_code)]

use super::mapping;
use super::skeleton::make::end;
use crate::inject::monitor;
use crate::proc::fork::fork;
use crate::proc::{Pid, Process};
use crate::resource::descriptor::numbers::close_others;
use crate::resource::descriptor::pty::screen::Front;
use nix::libc;
use nix::unistd::setsid;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd};

/// Makes it, if it is of any use and the program does not meet it: where orphans come to this process and that becomes
/// the program (`alone`) it would. It waits for the end of this value in every process.
pub(super) fn start(front: Option<&Front>, alone: bool) -> Option<PipeWriter> {
    let front = front.filter(|front| front.is_blank() && !(alone && monitor::adopts()))?;
    let (line, kept) = std::io::pipe().ok()?;
    let restarter = Pid::own();
    let before = mapping::block_all_signals();
    let between = fork(0).ok()?;
    let Some(between) = between else {
        drop(kept);
        let painter = fork(libc::SIGCHLD);
        if matches!(painter, Ok(None)) {
            live(front, restarter, line);
        }
        end(0)
    };
    // SAFETY: waits for the child that was just made.
    unsafe { libc::waitpid(between.get(), std::ptr::null_mut(), libc::__WCLONE) };
    mapping::set_signals(before);
    Some(kept)
}

fn live(front: &Front, restarter: Pid, mut line: PipeReader) -> ! {
    // No dumper takes it for one of the program's.
    let _ = nix::sys::prctl::set_name(c"ckpt-assist");
    let _ = setsid();
    // Whoever reads from the starter's descriptors waits for their end.
    close_others(vec![front.as_fd().as_raw_fd(), line.as_raw_fd()]);
    let restarter = Process::glimpse(restarter);
    let _ = line.read(&mut [0]);
    if let Ok(restarter) = restarter {
        front.repaint(&restarter);
    }
    end(0)
}
