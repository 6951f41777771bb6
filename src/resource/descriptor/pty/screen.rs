// SPDX-License-Identifier: LGPL-2.1-only
//! The terminal at which a job runs in the foreground, and whose other end is somebody else's: its settings are in the
//! image, and a restart gives them to the terminal at which it is executed (an editor's, a shell's line editor's).
//!
//! In the background nothing is saved or set: the settings are those of whoever is in the foreground.
//!
//! # Safety
//! The one call sends signals.
#![allow(unsafe_code)]

use super::super::{Tables, open, terminal};
use super::settings::{set_foreground, set_termios, set_window, termios, window};
use crate::proc::fork::fork;
use crate::proc::{Pid, Process, front};
use crate::ptrace::borrowed;
use crate::resource::kinship::numbers;
use ckpt_abi::image::{Member, Screen, Termios};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::killpg;
use nix::sys::stat::Mode;
use nix::unistd::{getpgrp, isatty, tcgetpgrp};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use zerocopy::FromZeros;

/// What shells call sane (stty(1)): lines are edited, shown and translated, keys send signals.
const INPUT: u32 = libc::ICRNL | libc::IXON;
const OUTPUT: u32 = libc::OPOST | libc::ONLCR;
const LOCAL: u32 = libc::ISIG
    | libc::ICANON
    | libc::IEXTEN
    | libc::ECHO
    | libc::ECHOE
    | libc::ECHOK
    | libc::ECHOCTL
    | libc::ECHOKE;
/// Characters that line editors switch off: ^O, ^V.
const USUAL: [(usize, u8); 2] = [(libc::VDISCARD, 15), (libc::VLNEXT, 22)];

/// The terminal of the processes of a checkpoint, if they are in its foreground.
pub(crate) struct Outer {
    tty: OwnedFd,
    pub(crate) record: Screen,
}

impl Outer {
    /// Looks for it. That they are in the foreground is `known`, where a terminal has asked for the checkpoint.
    pub(crate) fn look(
        root: &Process,
        tables: &Tables,
        members: &[Member],
        known: bool,
    ) -> Option<Self> {
        let stat = root.main_stat().ok()?;
        let device = terminal::given(&stat, tables);
        if device == 0 || super::number_of(device).is_some_and(|number| tables.ptys().has(number)) {
            return None;
        }
        let (pid, fd) = tables
            .everywhere()
            .find(|(_, fd)| super::survey::is_character(fd) && fd.rdev == device)?;
        let tty = borrowed::take(pid, fd.number.cast_signed()).ok()?;
        let termios = termios(&tty).ok()?;
        let foreground = match stat.tpgid {
            group if group == stat.pgrp => members.first().map_or(0, |root| root.group),
            Pid::NONE => return None,
            group => members.iter().map(|member| member.group).find(|it| *it == group.word())?,
        };
        let is_known = known || stat.tpgid != Pid::NONE || front::is_noted();
        let window = window(&tty).unwrap_or_default();
        let record = Screen { foreground, window, termios, ..Screen::new_zeroed() };
        (is_known || !is_taken(&record)).then_some(Self { tty, record })
    }

    /// Makes it usable for whoever comes next: its processes end with a checkpoint, and put nothing back themselves.
    pub(crate) fn calm(&self) {
        if !is_taken(&self.record) {
            return;
        }
        let mut calm = self.record.termios;
        calm.input |= INPUT;
        calm.output |= OUTPUT;
        calm.local |= LOCAL;
        for (at, char) in USUAL {
            calm.chars[at] = if calm.chars[at] == 0 { char } else { calm.chars[at] };
        }
        let _ = set_termios(&self.tty, &calm);
    }
}

/// Whether a program reads keys as they are pressed: without a terminal it is of no use.
pub(crate) fn reads_keys(screen: &Screen) -> bool {
    screen.termios.local & libc::ICANON == 0
}

/// Whether it does, or has keys not shown.
fn is_taken(screen: &Screen) -> bool {
    let all = libc::ICANON | libc::ECHO;
    screen.termios.local & all != all
}

/// The terminal of a restart.
pub(crate) struct Front {
    tty: OwnedFd,
    screen: Screen,
    is_front: bool,
    /// Whether everybody runs: SIGCONT does nothing but tell then.
    all_run: bool,
    /// Its settings and foreground group before.
    before: (Option<Termios>, Pid),
}

impl Front {
    /// Finds the one at which this process was started: its own, if that is one of its standard streams or the program has
    /// `opened` it by a name, or else one that it has as such a stream.
    pub(crate) fn find(screen: Screen, opened: bool, all_run: bool) -> Option<Self> {
        let standard = [0, 1, 2].into_iter().filter_map(open::standard);
        let stream = standard.into_iter().find(|fd| isatty(fd).unwrap_or(false));
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let own = nix::fcntl::open("/dev/tty", flags, Mode::empty());
        if let Some(tty) = own.ok().filter(|_| opened || stream.is_some()) {
            let is_front = tcgetpgrp(&tty) == Ok(getpgrp());
            return Some(Self::of(tty, screen, is_front, all_run));
        }
        let tty = stream?.try_clone_to_owned().ok()?;
        Some(Self::of(tty, screen, true, all_run))
    }

    fn of(tty: OwnedFd, screen: Screen, is_front: bool, all_run: bool) -> Self {
        let before = (termios(&tty).ok(), Pid::new(getpgrp().as_raw()));
        Self { tty, screen, is_front, all_run, before }
    }

    /// Gives it the settings and the foreground group that the saved one had; all signals are blocked. What tells how bytes go
    /// over a line stays as it is.
    pub(crate) fn set(&self) {
        if !self.is_front {
            return;
        }
        if let Ok(here) = termios(&self.tty) {
            let Termios { control, speeds, .. } = here;
            let _ = set_termios(&self.tty, &Termios { control, speeds, ..self.screen.termios });
        }
        if self.screen.foreground != 0 {
            let group = numbers::here(Pid::of_word(self.screen.foreground));
            let _ = set_foreground(&self.tty, group);
        }
    }

    /// Takes that back where a restart has failed: settings that nobody has changed since, and the foreground from a group
    /// that is gone, or ours. All signals are blocked.
    pub(crate) fn give_back(&self) {
        let (Some(before), group) = &self.before else { return };
        if !self.is_front {
            return;
        }
        let modes = |it: &Termios| (it.input, it.output, it.local, it.chars);
        if termios(&self.tty).is_ok_and(|now| modes(&now) == modes(&self.screen.termios)) {
            let _ = set_termios(&self.tty, before);
        }
        let Ok(now) = tcgetpgrp(&self.tty) else { return };
        let is_gone = now.as_raw() > 0 && killpg(now, None) == Err(Errno::ESRCH);
        if now != group.nix() && (is_gone || now == getpgrp()) {
            let _ = set_foreground(&self.tty, *group);
        }
    }

    /// Whether somebody has to be told that the terminal shows nothing of it.
    pub(crate) fn is_blank(&self) -> bool {
        self.is_front && (is_taken(&self.screen) || self.has_another_size())
    }

    fn has_another_size(&self) -> bool {
        window(&self.tty).is_ok_and(|here| here[..2] != self.screen.window[..2])
    }

    /// Has the program show itself, once it runs. Many do so only if the size is another than before; so for a moment it
    /// is. The restarter is of the terminal's session: whoever is of another may not ask it for its foreground group. If
    /// that is gone, there is no program; then the terminal is given back.
    pub(crate) fn repaint(&self, restarter: &Process) {
        const MOMENT: Duration = Duration::from_millis(150);
        std::thread::sleep(MOMENT / 3);
        let stat = restarter.main_stat().ok().filter(|stat| !matches!(stat.state, 'Z' | 'X'));
        let Some(stat) = stat else { return self.give_back() };
        let group = stat.tpgid.get();
        let signal = |signal: i32| {
            if group > 1 {
                // SAFETY: sends a signal, which does nothing to who does not expect it.
                unsafe { libc::kill(-group, signal) };
            }
        };
        if self.all_run && is_taken(&self.screen) {
            signal(libc::SIGCONT);
            std::thread::sleep(MOMENT / 3);
        }
        let here = window(&self.tty).ok().filter(|here| here[1] > 1);
        match here {
            Some(here) if !self.has_another_size() => {
                let narrow = [here[0], here[1] - 1, here[2], here[3]];
                // Two put it back: one may be killed.
                let _ = fork(0);
                let _ = set_window(&self.tty, narrow);
                std::thread::sleep(MOMENT);
                if window(&self.tty) == Ok(narrow) {
                    let _ = set_window(&self.tty, here);
                }
            }
            _ => signal(libc::SIGWINCH),
        }
    }
}

impl AsFd for Front {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tty.as_fd()
    }
}

/// Lets a process group have the terminal of this session, if that is in the foreground `before`; all signals are
/// blocked.
pub(crate) fn pass(before: Pid, to: Pid) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    if let Ok(tty) = nix::fcntl::open("/dev/tty", flags, Mode::empty())
        && tcgetpgrp(&tty) == Ok(before.nix())
    {
        let _ = set_foreground(&tty, to);
    }
}
