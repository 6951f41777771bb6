// SPDX-License-Identifier: LGPL-2.1-only
//! Whose turn it is: the protocol between everybody who may want a checkpoint of a process.
//!
//! Five may: a thread that took the checkpoint signal, one in the C API, `ckpt save`, the monitor, and whoever was
//! started by one of these. All that they have to agree on is one word in the program, [`Turn`], in a page that a
//! fork(2) gives to the child empty (MADV_WIPEONFORK): a child begins with nobody's turn, however its parent was met.
//! Nobody changes the word but by [`step`], a pure function; so each change is one store, or none.
//!
//! ```text
//!            Ask                Start              Leave             Left
//!   Idle ──────────▶ Starting ────────▶ Holding ─────────▶ Leaving ──────▶ Writing
//!    ▲  ▲  Claim (from outside) ──────────▲ │                 │               │
//!    │  └──────────────────────────── End, Lost, Fail ◀──────┴───────────────┘
//!    └─ Release ── Answered ◀── the same, where a thread keeps the turn until it has read the answer
//!   Restoring ── Resume ──▶ Idle or Answered
//! ```
//!
//! - A thread of the program changes the word by compare-and-exchange: from Idle, from Starting (its own), from
//!   Answered (its own), and from any state whose dumper has ended.
//! - A dumper changes it through process_vm_writev(2), which is no atomic exchange: so it does so only while every
//!   thread of the program stands still ([`Event::Claim`], [`Event::Leave`]), or from a state that is its own and that
//!   no thread touches while it lives ([`Event::Left`], [`Event::End`]).
//! - In Holding threads may be stopped by the dumper, and in Leaving some of them still: only in Writing may somebody
//!   kill it. That is why Leaving and Writing are two states; and the thread that waits for its dumper is set free by
//!   Leaving, because only what it finds when it is let go can wake it.
//! - A dumper is known by its id and the time it was started at, so that a number that was given to somebody else
//!   names nobody.

use crate::codes;

codes! {
    /// How far a checkpoint is.
    Phase: u8 {
        /// Nobody takes one.
        Idle = 0,
        /// A thread of the program is about to start a dumper.
        Starting = 1,
        /// The dumper is at work; it may hold threads.
        Holding = 2,
        /// It lets the threads go.
        Leaving = 3,
        /// All run; it only writes.
        Writing = 4,
        /// It is over; the thread that asked has not read the answer yet.
        Answered = 5,
        /// The process is being restarted; the restorer sets it back.
        Restoring = 6,
    }
}

codes! {
    /// Who asked for it.
    By: u8 {
        /// A signal.
        Signal = 0,
        /// The C API: a checkpoint, or an answer of an assistant.
        Call = 1,
        /// `ckpt save`.
        Order = 2,
        /// The monitor.
        Period = 3,
    }
}

/// A process, also after its number was given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Process id in the program's PID namespace, below 2^22 (PID_MAX_LIMIT).
    pub pid: u32,
    /// When it was started, in clock ticks on the program's CLOCK_BOOTTIME, modulo 2^32 (proc_pid_stat(5), field
    /// 22); 0: not known yet.
    pub start: u32,
}

impl Task {
    /// Nobody.
    pub const NONE: Self = Self { pid: 0, start: 0 };

    /// Whether a process of this id that was started then is this one. Offsets of time namespaces are rounded, hence
    /// the ticks of grace.
    #[must_use]
    pub const fn is(self, pid: u32, start: u32) -> bool {
        let apart = self.start.wrapping_sub(start);
        let near = apart <= 2 || apart >= u32::MAX - 1;
        self.pid == pid && (self.start == 0 || start == 0 || near)
    }
}

/// The word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// How far it is.
    pub phase: Phase,
    /// Who asked.
    pub by: By,
    /// Whether a thread of the program keeps the turn until it has read the answer ([`Event::Release`]).
    pub kept: bool,
    /// The dumper, from Holding to Writing.
    pub task: Task,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread of the program wants to start a dumper.
    Ask {
        /// For whom.
        by: By,
        /// Until [`Event::Release`].
        kept: bool,
    },
    /// The dumper that it starts is this one.
    Start(Task),
    /// None could be started. One that was named says [`Event::End`], or is [`Event::Lost`]: who finds out late that
    /// there is no keeper must not take the turn of a dumper that has dismissed it.
    Fail,
    /// A dumper takes the turn, every thread standing still. One that the program has started finds its own.
    Claim {
        /// For whom.
        by: By,
        /// The dumper.
        task: Task,
        /// Whether a thread that it sends to the program's callbacks keeps the turn.
        kept: bool,
    },
    /// This dumper is about to let the threads go.
    Leave(Task),
    /// It has.
    Left(Task),
    /// It is done.
    End(Task),
    /// Somebody has seen that the dumper is gone.
    Lost,
    /// The thread that keeps the turn gives it up.
    Release,
    /// A restart fills the process.
    Restore,
    /// It is done.
    Resume,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The checkpoint at work does for it, or has to be waited for.
    Busy(Task),
    /// The dumper has to end first: at once if told so (it only writes a periodic checkpoint), or else by itself.
    After(Task, bool),
    /// It may be different in a moment.
    Soon,
    /// The process is being restarted.
    Restoring,
    /// The turn is not the caller's.
    NotYours,
}

impl Turn {
    /// Nobody's.
    pub const IDLE: Self =
        Self { phase: Phase::Idle, by: By::Signal, kept: false, task: Task::NONE };

    /// As it stands in memory: phase (4 bits, so that a futex on the low half sees each change), who (3), kept (1),
    /// process id (24), start (32). Zero is [`Turn::IDLE`].
    #[must_use]
    pub const fn word(self) -> u64 {
        let pid = (self.task.pid & 0xff_ffff) as u64;
        self.phase as u64
            | (self.by as u64) << 4
            | (self.kept as u64) << 7
            | pid << 8
            | (self.task.start as u64) << 32
    }

    /// What stands in memory. What no [`step`] has made is nobody's turn.
    #[must_use]
    pub fn of(word: u64) -> Self {
        let (phase, by) = (Phase::try_from((word & 15) as u8), By::try_from((word >> 4 & 7) as u8));
        let (Ok(phase), Ok(by)) = (phase, by) else { return Self::IDLE };
        let task = Task { pid: (word >> 8 & 0xff_ffff) as u32, start: (word >> 32) as u32 };
        Self { phase, by, kept: word >> 7 & 1 == 1, task }
    }

    /// Whether a dumper is named.
    #[must_use]
    pub const fn has_task(self) -> bool {
        matches!(self.phase, Phase::Holding | Phase::Leaving | Phase::Writing)
    }

    const fn is_of(self, task: Task) -> bool {
        self.has_task() && self.task.is(task.pid, task.start)
    }

    const fn over(self) -> Self {
        match self.kept {
            true => Self { phase: Phase::Answered, task: Task::NONE, ..self },
            false => Self::IDLE,
        }
    }
}

/// What the caller of [`step`] has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether [`Turn::task`] lives; only asked where one is named.
    pub lives: bool,
    /// Whether the program's own checkpoints end it, so that one that lets it go on does not do instead.
    pub ends: bool,
}

/// The next state, or why there is none.
///
/// # Errors
/// [`Denied`].
pub const fn step(turn: Turn, event: Event, seen: Seen) -> Result<Turn, Denied> {
    match event {
        Event::Ask { by, kept } => ask(turn, by, kept, seen),
        Event::Start(task) => match turn.phase {
            Phase::Starting => Ok(Turn { phase: Phase::Holding, task, ..turn }),
            _ => Err(Denied::NotYours),
        },
        Event::Fail => match turn.phase {
            Phase::Starting => Ok(turn.over()),
            _ => Err(Denied::NotYours),
        },
        Event::Claim { by, task, kept } => {
            claim(turn, Turn { phase: Phase::Holding, by, kept, task }, seen)
        }
        Event::Leave(task) if turn.is_of(task) => Ok(Turn { phase: Phase::Leaving, ..turn }),
        Event::Left(task) if turn.is_of(task) => Ok(Turn { phase: Phase::Writing, ..turn }),
        Event::End(task) if turn.is_of(task) => Ok(turn.over()),
        Event::Leave(_) | Event::Left(_) | Event::End(_) => Err(Denied::NotYours),
        Event::Lost if turn.has_task() && !seen.lives => Ok(turn.over()),
        Event::Lost => Err(Denied::NotYours),
        Event::Release => match turn.phase {
            Phase::Answered => Ok(Turn::IDLE),
            Phase::Holding | Phase::Leaving | Phase::Writing if turn.kept && !seen.lives => {
                Ok(Turn::IDLE)
            }
            // The dumper has answered and will say in a moment that it is done.
            Phase::Holding | Phase::Leaving | Phase::Writing if turn.kept => Err(Denied::Soon),
            _ => Err(Denied::NotYours),
        },
        Event::Restore => Ok(Turn { phase: Phase::Restoring, task: Task::NONE, ..turn }),
        Event::Resume => Ok(turn.over()),
    }
}

const fn ask(turn: Turn, by: By, kept: bool, seen: Seen) -> Result<Turn, Denied> {
    let next = Turn { phase: Phase::Starting, by, kept, task: Task::NONE };
    match turn.phase {
        Phase::Idle => Ok(next),
        Phase::Starting => Err(Denied::Busy(Task::NONE)),
        Phase::Answered => Err(Denied::Soon),
        Phase::Restoring => Err(Denied::Restoring),
        _ if !seen.lives && turn.kept => Err(Denied::Soon),
        _ if !seen.lives => Ok(next),
        // It was begun before the signal.
        Phase::Writing if matches!(turn.by, By::Period) => Err(Denied::After(turn.task, true)),
        Phase::Writing if seen.ends => Err(Denied::After(turn.task, false)),
        Phase::Leaving if seen.ends || matches!(turn.by, By::Period) => Err(Denied::Soon),
        _ => Err(Denied::Busy(turn.task)),
    }
}

const fn claim(turn: Turn, next: Turn, seen: Seen) -> Result<Turn, Denied> {
    match turn.phase {
        Phase::Idle => Ok(next),
        Phase::Starting | Phase::Answered => Err(Denied::Soon),
        Phase::Restoring => Err(Denied::Restoring),
        // Its own: who asked, and who keeps the turn, stays.
        _ if turn.task.is(next.task.pid, next.task.start) => {
            Ok(Turn { phase: Phase::Holding, task: next.task, ..turn })
        }
        _ if !seen.lives && turn.kept => Err(Denied::Soon),
        _ if !seen.lives => Ok(next),
        _ if matches!(turn.by, By::Period) && !matches!(next.by, By::Period) => {
            Err(Denied::After(turn.task, true))
        }
        _ => Err(Denied::Busy(turn.task)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Task = Task { pid: 7, start: 700 };
    const OTHER: Task = Task { pid: 8, start: 800 };
    const LIVES: Seen = Seen { lives: true, ends: false };
    const DEAD: Seen = Seen { lives: false, ends: false };
    const ENDS: Seen = Seen { lives: true, ends: true };

    fn turn(phase: Phase, by: By, kept: bool) -> Turn {
        let task = match phase {
            Phase::Holding | Phase::Leaving | Phase::Writing => OURS,
            _ => Task::NONE,
        };
        Turn { phase, by, kept, task }
    }

    fn all() -> impl Iterator<Item = Turn> {
        let kinds = By::ALL.iter().copied().flat_map(|by| [(by, false), (by, true)]);
        kinds.flat_map(|(by, kept)| {
            Phase::ALL.iter().copied().map(move |phase| turn(phase, by, kept))
        })
    }

    #[test]
    fn words_say_everything() {
        assert_eq!(Turn::IDLE.word(), 0);
        for turn in all() {
            assert_eq!(Turn::of(turn.word()), turn);
        }
        let far = Task { pid: (1 << 22) - 1, start: u32::MAX };
        let turn = Turn { task: far, ..turn(Phase::Writing, By::Period, true) };
        assert_eq!(Turn::of(turn.word()), turn);
        assert_eq!(Turn::of(15), Turn::IDLE);
        assert_eq!(Turn::of(7 << 4 | 1), Turn::IDLE);
    }

    #[test]
    fn a_number_given_again_names_nobody() {
        assert!(OURS.is(7, 700) && OURS.is(7, 702) && OURS.is(7, 698) && OURS.is(7, 0));
        assert!(!OURS.is(7, 703) && !OURS.is(7, 697) && !OURS.is(8, 700));
        assert!(Task { pid: 7, start: u32::MAX }.is(7, 1), "ticks wrap around");
    }

    #[test]
    fn a_thread_asks() {
        for (by, kept) in By::ALL.iter().flat_map(|by| [(*by, false), (*by, true)]) {
            let asked = Event::Ask { by, kept };
            let next = turn(Phase::Starting, by, kept);
            for turn in all() {
                for seen in [LIVES, DEAD, ENDS] {
                    let expected = match turn.phase {
                        Phase::Idle => Ok(next),
                        Phase::Starting => Err(Denied::Busy(Task::NONE)),
                        Phase::Answered => Err(Denied::Soon),
                        Phase::Restoring => Err(Denied::Restoring),
                        _ if !seen.lives && turn.kept => Err(Denied::Soon),
                        _ if !seen.lives => Ok(next),
                        Phase::Writing if turn.by == By::Period => Err(Denied::After(OURS, true)),
                        Phase::Writing if seen.ends => Err(Denied::After(OURS, false)),
                        Phase::Leaving if turn.by == By::Period || seen.ends => Err(Denied::Soon),
                        _ => Err(Denied::Busy(OURS)),
                    };
                    assert_eq!(step(turn, asked, seen), expected, "{turn:?} {seen:?}");
                }
            }
        }
    }

    #[test]
    fn a_dumper_claims() {
        for (by, kept) in By::ALL.iter().flat_map(|by| [(*by, false), (*by, true)]) {
            let next = Turn { phase: Phase::Holding, by, kept, task: OTHER };
            for turn in all() {
                for seen in [LIVES, DEAD, ENDS] {
                    let expected = match turn.phase {
                        Phase::Idle => Ok(next),
                        Phase::Starting | Phase::Answered => Err(Denied::Soon),
                        Phase::Restoring => Err(Denied::Restoring),
                        _ if !seen.lives && turn.kept => Err(Denied::Soon),
                        _ if !seen.lives => Ok(next),
                        _ if turn.by == By::Period && by != By::Period => {
                            Err(Denied::After(OURS, true))
                        }
                        _ => Err(Denied::Busy(OURS)),
                    };
                    let claimed = Event::Claim { by, task: OTHER, kept };
                    assert_eq!(step(turn, claimed, seen), expected, "{turn:?} {seen:?} {by:?}");
                    if turn.has_task() {
                        let claimed = Event::Claim { by, task: OURS, kept };
                        let expected = Turn { phase: Phase::Holding, ..turn };
                        assert_eq!(step(turn, claimed, seen), Ok(expected), "its own");
                    }
                }
            }
        }
    }

    #[test]
    fn a_dumper_goes_its_way() {
        for before in all() {
            let over = match before.kept {
                true => turn(Phase::Answered, before.by, true),
                false => Turn::IDLE,
            };
            let may = |is: bool, next| if is { Ok(next) } else { Err(Denied::NotYours) };
            let to = |phase| Turn { phase, ..before };
            let (named, starts) = (before.has_task(), before.phase == Phase::Starting);
            let started = turn(Phase::Holding, before.by, before.kept);
            for seen in [LIVES, DEAD, ENDS] {
                for (event, expected) in [
                    (Event::Start(OURS), may(starts, started)),
                    (Event::Fail, may(starts, over)),
                    (Event::Leave(OURS), may(named, to(Phase::Leaving))),
                    (Event::Left(OURS), may(named, to(Phase::Writing))),
                    (Event::End(OURS), may(named, over)),
                    (Event::Leave(OTHER), Err(Denied::NotYours)),
                    (Event::Left(OTHER), Err(Denied::NotYours)),
                    (Event::End(OTHER), Err(Denied::NotYours)),
                    (Event::Lost, may(named && !seen.lives, over)),
                ] {
                    assert_eq!(
                        step(before, event, seen),
                        expected,
                        "{before:?} {event:?} {seen:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn who_keeps_it_gives_it_up() {
        for turn in all() {
            for seen in [LIVES, DEAD, ENDS] {
                let expected = match turn.phase {
                    Phase::Answered => Ok(Turn::IDLE),
                    _ if turn.has_task() && turn.kept && seen.lives => Err(Denied::Soon),
                    _ if turn.has_task() && turn.kept => Ok(Turn::IDLE),
                    _ => Err(Denied::NotYours),
                };
                assert_eq!(step(turn, Event::Release, seen), expected, "{turn:?} {seen:?}");
            }
        }
    }

    #[test]
    fn a_restart_brings_back_who_waits() {
        for before in all() {
            let restoring = turn(Phase::Restoring, before.by, before.kept);
            let over = match before.kept {
                true => turn(Phase::Answered, before.by, true),
                false => Turn::IDLE,
            };
            for seen in [LIVES, DEAD, ENDS] {
                assert_eq!(step(before, Event::Restore, seen), Ok(restoring), "{before:?}");
                assert_eq!(step(restoring, Event::Resume, seen), Ok(over), "{before:?}");
                assert_eq!(step(before, Event::Resume, seen), Ok(over), "{before:?}");
            }
        }
    }
}
