// SPDX-License-Identifier: LGPL-2.1-only
//! What the root of a tree has of its restarter, and what it has begun itself: session and process group.

use super::Options;
use super::phase1_check::Saved;
use super::skeleton::corefile;
use super::tree::{Tree, Who};
use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::proc::Pid;
use crate::resource::descriptor::kind;
use crate::resource::descriptor::pty::screen::{Front, reads_keys};
use crate::resource::{kinship, losses};
use ckpt_abi::image::{Descriptor, DescriptorKind, Member, SectionKind, member_flag, process_flag};
use ckpt_abi::region::GROUP_LEFT;
use nix::libc;
use nix::unistd::{getpgrp, getppid, setpgid, setsid};

impl Tree {
    /// Whether it is one process that this one can become: it begins its session, or its group, as that did. Who leads a
    /// group begins no session (setsid(2)).
    pub(super) fn can_be_us(&self) -> bool {
        match &self.members[..] {
            [one] => one.terminal == 0 && !self.governs() && (one.session == 0 || !leads()),
            _ => false,
        }
    }

    /// Begins the session or the group of the only process of an image.
    pub(super) fn begin(image: &Image) -> Result<()> {
        let Some(Self { members }) = Self::of_image(image)? else { return Ok(()) };
        let own = Pid::NONE.nix();
        match &members[..] {
            [one] if one.session != 0 => setsid().map(drop).because(|| "cannot begin a session"),
            [one] if one.group != 0 && !leads() => {
                setpgid(own, own).because(|| "cannot begin a process group")
            }
            _ => Ok(()),
        }
    }

    /// Has the restarter's group for that which the root leads, where that leads one, too: both were begun for the job by
    /// whoever started it (a shell with job control). False where it is another's, as below a script.
    pub(super) fn takes_group(&mut self) -> bool {
        let Some(Member { pid, session: 0, group, .. }) = self.members.first().copied() else {
            return false;
        };
        let takes = pid == group
            && leads()
            && !self.governs()
            && self.members.iter().all(|member| member.group != 0);
        for member in self.members.iter_mut().filter(|member| takes && member.group == group) {
            member.group = 0;
        }
        takes
    }

    /// Whether the root has a group of its own, to which it takes the terminal back.
    pub(super) fn governs(&self) -> bool {
        self.members.first().is_some_and(|root| root.flags & member_flag::GOVERNS != 0)
    }

    /// Who has left a core file, and will seem not to have.
    pub(super) fn cores(&self) -> Option<String> {
        let left = |m: &&Member| {
            m.flags & member_flag::DEAD != 0 && libc::WCOREDUMP(m.status.cast_signed())
        };
        let all: Vec<_> = self.members.iter().filter(left).map(kinship::named).collect();
        let why = (!all.is_empty()).then(corefile::obstacle).flatten()?;
        let all = losses::names(&all);
        Some(format!(
            "what has ended with a core file ({all}) is told to its parent without that: {why}"
        ))
    }
}

impl Who<'_> {
    /// The session and the group in which it is started, as it sees those that the restarter is in.
    pub(super) fn begun(self, here: [u32; 2]) -> [u32; 2] {
        match self.member().is_some() && getppid() == Pid::NONE.nix() {
            true => here.map(|id| if id == GROUP_LEFT { id } else { 0 }),
            false => here,
        }
    }
}

/// Whether this process leads its process group.
fn leads() -> bool {
    getpgrp() == Pid::own().nix()
}

/// The terminal for a program that had one; said where there is none, and refused where that is of no use.
pub(super) fn front(
    image: &Image,
    all: &[Saved<'_>],
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<Option<Front>> {
    let Ok(screen) = image.record(SectionKind::Screen) else { return Ok(None) };
    if options.no_tty {
        return Ok(None);
    }
    let by_name = |record: &Descriptor| kind(record) == DescriptorKind::Terminal;
    let opened = all.iter().flat_map(|saved| &saved.descriptors).any(by_name);
    let stopped = |saved: &Saved<'_>| saved.process.flags & process_flag::STOPPED != 0;
    let front = Front::find(screen, opened, !all.iter().any(stopped));
    if front.is_none() && reads_keys(&screen) {
        let text = "the program reads keys from a terminal, as editors and shells do, and there is none here";
        return Err(Error::new(text)
            .hint("restart it at a terminal (script -c, ssh -t), or without one by --no-tty"));
    }
    if front.is_none() {
        warnings.push("the program ran at a terminal, and there is none here: its standard streams are those of this restart (--no-tty says no more of it)".into());
    }
    Ok(front)
}
