// SPDX-License-Identifier: LGPL-2.1-only
//! What the restorer keeps open to the last: to say which of its orders has failed, and the program's executable.

use super::phase1_check::Saved;
use super::phase3_open::Opened;
use super::tree::Membership;
use crate::error::{Because, Result};
use crate::resource::descriptor::{inotify, numbers};
use crate::resource::plan::{Arena, Orders, Step};
use ckpt_abi::op::{ListHead, SPELLED};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What is needed to explain an order that fails: nothing of this process is left then but the arena.
pub(super) struct Failure {
    /// The executable that makes a sentence of the report.
    stub: Option<OwnedFd>,
    /// Our standard error: the program's own may be elsewhere.
    complaints: Option<OwnedFd>,
}

impl Failure {
    pub(super) fn prepare(saved: &Saved<'_>) -> Result<Self> {
        let stub = File::open("/proc/self/exe").because(|| "cannot open our own executable")?;
        let stub = numbers::move_aside(stub.into(), &saved.descriptors)?;
        let complaints = std::io::stderr().as_fd().try_clone_to_owned().ok();
        let complaints = complaints.and_then(|fd| numbers::move_aside(fd, &saved.descriptors).ok());
        // It outlives the execution of the stub; what the program gets is closed before.
        let kept = complaints.as_ref().map(|fd| fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())));
        let complaints = complaints.filter(|_| matches!(kept, Some(Ok(_))));
        Ok(Self { stub: Some(stub), complaints })
    }

    /// A failure without a sentence of its own.
    pub(super) fn none() -> Self {
        Self { stub: None, complaints: None }
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = i32> {
        let complaints = self.complaints.as_ref().map(AsRawFd::as_raw_fd);
        self.stub.as_ref().map(AsRawFd::as_raw_fd).into_iter().chain(complaints)
    }

    /// The head of the orders, but for the first: what happens when one of them fails.
    pub(super) fn head(&self, arena: &mut Arena, member: Option<&Membership>) -> Result<ListHead> {
        let report = arena.room((size_of::<u64>() + SPELLED + 1) as u64, 64)?;
        let complaints = self.complaints.as_ref().map_or(2, AsRawFd::as_raw_fd);
        let mut text = |word: &str| arena.bytes(format!("{word}\0").as_bytes());
        let letters = report + size_of::<u64>() as u64;
        let words = [text("ckpt")?, text("__report")?, letters, text(&complaints.to_string())?, 0];
        Ok(ListHead {
            ops: 0,
            report,
            exec_fd: self.stub.as_ref().map_or(-1, |stub| stub.as_raw_fd().into()),
            argv: arena.value(&words)?,
            envp: arena.value(&0u64)?,
            empty: arena.value(&0u64)?,
            told: arena.value(&member.map_or(0, |member| member.page()[2]))?,
        })
    }
}

/// The program's own executable, for /proc/PID/exe where we have the privilege to set it.
pub(super) fn original(saved: &Saved<'_>) -> Result<Option<OwnedFd>> {
    let file = File::open(&saved.exe).ok();
    file.map(|f| numbers::move_aside(f.into(), &saved.descriptors)).transpose()
}

/// Orders that close what the restorer needed, before anybody else may look at the process (pidfd_getfd(2)): the image holds the
/// memory of others, too; the numbers, and which of them is our standard error.
pub(super) fn close(
    orders: &mut Orders,
    failure: Failure,
    exe: Option<OwnedFd>,
    opened: &Opened,
    arena: &mut Arena,
) -> Result<[Vec<i32>; 2]> {
    let Failure { stub, complaints } = failure;
    let said = complaints.iter().map(AsRawFd::as_raw_fd).collect();
    let all = stub.into_iter().chain(complaints).chain(exe);
    let kept: Vec<i32> = all.map(numbers::leak).collect();
    for fd in &kept {
        orders.call(Step::Descriptor, libc::SYS_close, &[fd.unsigned_abs().into()]);
    }
    // Nothing of ours is open or mapped any more, and no other process goes on yet.
    orders.extend(&inotify::forget(&opened.descriptors, &opened.led, arena)?);
    Ok([kept, said])
}
