// SPDX-License-Identifier: LGPL-2.1-only
//! Sentences on an output that is a program's: whoever reads it may have stopped (a pager, ^S, a connection that hangs),
//! and nobody who says something there may come to stand still with it.

use crate::error::printable;
use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// How long, in milliseconds, a reader may be behind. Waited for once.
const PATIENCE: u8 = 100;

static IS_SLOW: AtomicBool = AtomicBool::new(false);

/// Whether an output takes a line within that time, in milliseconds. A pipe that does has room for [`PIPE_BUF`] bytes, and a
/// terminal that is not stopped for any (pipe(7), tty_poll in drivers/tty/n_tty.c).
pub(crate) fn takes_words(output: BorrowedFd<'_>, patience: u8) -> bool {
    let mut polled = [PollFd::new(output, PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::from(patience)) == Ok(1) && polled[0].any() == Some(true)
}

/// Writes a sentence where a program writes its own, as far as that is read; whether it was.
pub(crate) fn say(output: BorrowedFd<'_>, sentence: &str) -> bool {
    let is_slow = IS_SLOW.load(Ordering::Relaxed);
    let takes = takes_words(output, if is_slow { 0 } else { PATIENCE });
    IS_SLOW.store(!takes, Ordering::Relaxed);
    let line = format!("ckpt: {}", printable(sentence));
    let mut line = line.into_bytes();
    line.truncate(PIPE_BUF - 1);
    line.push(b'\n');
    takes && nix::unistd::write(output, &line).is_ok()
}
