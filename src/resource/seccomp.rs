// SPDX-License-Identifier: LGPL-2.1-only
//! Filters of system calls, and strict mode (seccomp(2)).
//!
//! A restored thread gets them last, when all others of its process are there, too: behind that it makes no call but
//! rt_sigreturn(2), which a checkpoint has found to be allowed, and futex(2) if all filters allow that. Threads that obey the same filters have them from one
//! (SECCOMP_FILTER_FLAG_TSYNC), so that the program can give all of them another.

use super::plan::{Arena, Orders, Step};
use super::{Gathered, Target, scheduling};
use crate::error::Result;
use crate::proc::status::CAP_SYS_ADMIN;
use crate::ptrace::filters::{self, Call};
use crate::ptrace::sandbox::{self, Sandbox};
use ckpt_abi::image::{Filter, ProcessRecord, STRICT, Thread, filter_flag, thread_flag};
use ckpt_abi::op::{OpKind, flag};
use nix::libc;
use zerocopy::IntoBytes;

const SET_MODE_STRICT: u64 = 0;
const SET_MODE_FILTER: u64 = 1;
const FLAG_TSYNC: u64 = 1;
/// Speculation is as the thread's other attributes say, which are restored by themselves.
const FLAG_SPEC_ALLOW: u64 = 4;

/// Notes what a thread is locked in; what a restart could not make again is in the way.
pub(crate) fn save(
    target: &Target<'_>,
    index: usize,
    record: &mut Thread,
    gathered: &mut Gathered,
) {
    let thread = &target.frozen.threads[index];
    let all = match &thread.sandbox {
        Sandbox::None => return,
        Sandbox::Strict => {
            record.filter = STRICT;
            return;
        }
        Sandbox::Filters(all) => all,
    };
    let at = target.region.control.run;
    let made = |number, arguments| Call { number, at, arguments };
    // Who has neither gets what a restart has until they are installed.
    let has_rights = thread
        .look(target.frozen.pid)
        .is_ok_and(|status| status.no_new_privs || status.may(CAP_SYS_ADMIN));
    let mut refused = match () {
        () if all.iter().any(filters::Filter::asks_others) => {
            Some("leave calls to another process (SECCOMP_RET_USER_NOTIF)")
        }
        () if !filters::allow(all, &made(libc::SYS_rt_sigreturn, [0; 6])) => {
            Some("forbid rt_sigreturn(2), by which a restart would enter it")
        }
        () if !has_rights && !filters::allow(all, &made(libc::SYS_capset, [0; 6])) => Some(
            "forbid capset(2), by which a restart would take away what it needs to install them",
        ),
        () => None,
    };
    let mut before = 0;
    for (nth, filter) in all.iter().enumerate() {
        let flags = FLAG_SPEC_ALLOW | if filter.logs { u64::from(filter_flag::LOG) } else { 0 };
        let by_prctl = [libc::PR_SET_SECCOMP as u64, SET_MODE_FILTER + 1, at, 0, 0, 0];
        let earlier = all.get(..nth).unwrap_or_default();
        let allows = |number, arguments| filters::allow(earlier, &made(number, arguments));
        let how = match () {
            () if allows(libc::SYS_seccomp, [SET_MODE_FILTER, flags, at, 0, 0, 0]) => 0,
            () if !filter.logs && allows(libc::SYS_prctl, by_prctl) => filter_flag::BY_PRCTL,
            () => {
                refused = refused.or(Some("can be installed in no order that they allow"));
                0
            }
        };
        let flags = how | if filter.logs { filter_flag::LOG } else { 0 };
        before = number(gathered, before, flags, filter.program.as_bytes());
    }
    record.filter = before;
    if let Some(why) = refused {
        let whose = sandbox::named(target.process(), thread.tid);
        gathered.obstacles.push(format!("{whose} has seccomp filters that {why}"));
    }
}

/// The number of a filter behind another, from 1; equal ones are one.
fn number(gathered: &mut Gathered, before: u32, flags: u32, program: &[u8]) -> u32 {
    let is_it = |old: &Filter| {
        (old.before, old.flags) == (before, flags)
            && gathered.filter_code.get(range(old)) == Some(program)
    };
    if let Some(known) = gathered.filters.iter().position(is_it) {
        return known as u32 + 1;
    }
    let (start, len) = (gathered.filter_code.len() as u64, program.len() as u64);
    gathered.filter_code.extend_from_slice(program);
    gathered.filters.push(Filter { before, flags, start, len });
    gathered.filters.len() as u32
}

fn range(filter: &Filter) -> std::ops::Range<usize> {
    filter.start as usize..filter.start.saturating_add(filter.len) as usize
}

/// The numbers of a thread's filters, the first installed first.
fn chain(all: &[Filter], last: u32) -> Vec<u32> {
    let mut chain = Vec::new();
    let mut next = last;
    while let Some(filter) = next.checked_sub(1).and_then(|index| all.get(index as usize)) {
        chain.push(next);
        next = filter.before;
    }
    chain.reverse();
    chain
}

/// Whether a thread has given up what it takes to install its filters: then it gives up capabilities behind them.
pub(crate) fn is_late(thread: &Thread, process: &ProcessRecord) -> bool {
    is_roots(std::slice::from_ref(thread)) && process.capabilities[0] >> CAP_SYS_ADMIN & 1 == 0
}

/// Whether only who has CAP_SYS_ADMIN may put these filters in place again.
pub(crate) fn is_roots(threads: &[Thread]) -> bool {
    let free = |thread: &Thread| {
        thread.filter == 0
            || thread.filter == STRICT
            || thread.flags & thread_flag::NO_NEW_PRIVS != 0
    };
    !threads.iter().all(free)
}

/// What filters of an image cannot be.
pub(crate) fn nonsense(threads: &[Thread], all: &[Filter], code: &[u8]) -> Option<&'static str> {
    let is_there = |thread: &Thread| thread.filter == STRICT || thread.filter as usize <= all.len();
    let mut sane = all.iter().enumerate();
    let sane = sane.all(|(index, filter)| {
        let has_len = filter.len % 8 == 0 && filter.len / 8 <= u64::from(u16::MAX);
        filter.before as usize <= index && has_len && code.get(range(filter)).is_some()
    });
    (!sane || !threads.iter().all(is_there)).then_some("a seccomp filter is damaged")
}

/// How many bytes it takes to lock threads in.
pub(crate) fn room(threads: &[Thread], all: &[Filter], code: &[u8]) -> u64 {
    let orders = 64 * (all.len() as u64 + 8) * threads.len() as u64;
    match threads.iter().all(|thread| thread.filter == 0) {
        true => 0,
        false => code.len() as u64 + 192 * (all.len() as u64 + 4) + orders,
    }
}

/// The way into what the threads of a process are locked in.
pub(crate) struct Lock<'a> {
    all: &'a [Filter],
    /// Where the struct sock_fprog of each filter is.
    programs: Vec<u64>,
    /// The filters that the main thread gives all.
    shared: Vec<u32>,
    /// Words for the meetings: all are there, the main thread has given them its filters, all have theirs.
    words: [u64; 3],
    threads: u64,
    meeting: Meeting,
}

/// How threads that are locked in wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// By futex(2), which all filters allow.
    Sleep,
    /// Without a call.
    Spin,
    /// Not at all: real-time threads that spin would keep those that they wait for from the CPUs for ever.
    Never,
}

impl Meeting {
    fn of(threads: &[Thread], parsed: &[filters::Filter], words: &[u64]) -> Self {
        // futex_wait and futex_wake of the payload.
        let calls = |word: &u64| [[*word, 0, 1, 0, 0, 0], [*word, 1, i32::MAX as u64, 0, 0, 0]];
        let allowed = |arguments: [u64; 6]| {
            let call = Call { number: libc::SYS_futex, at: arguments[0], arguments };
            filters::allow(parsed, &call)
        };
        let is_strict = threads.iter().any(|thread| thread.filter == STRICT);
        match () {
            () if !is_strict && words.iter().flat_map(calls).all(allowed) => Self::Sleep,
            () if threads.iter().any(scheduling::is_real_time) => Self::Never,
            () => Self::Spin,
        }
    }
}

impl<'a> Lock<'a> {
    /// Prepares it; None: no thread is locked in.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn prepare(
        threads: &[Thread],
        all: &'a [Filter],
        code: &[u8],
        arena: &mut Arena,
    ) -> Result<Option<Self>> {
        if threads.iter().all(|thread| thread.filter == 0) {
            return Ok(None);
        }
        let mut programs = Vec::new();
        for filter in all {
            let at = arena.bytes(code.get(range(filter)).unwrap_or_default())?;
            programs.push(arena.value(&[filter.len / 8, at])?);
        }
        let words = [arena.value(&0u32)?, arena.value(&0u32)?, arena.value(&0u32)?];
        let bytes = |filter: &Filter| code.get(range(filter)).unwrap_or_default();
        let parsed: Vec<_> =
            all.iter().map(|filter| filters::Filter::from_bytes(bytes(filter))).collect();
        let meeting = Meeting::of(threads, &parsed, &words);
        let mut lock = Self {
            all,
            programs,
            shared: Vec::new(),
            words,
            threads: threads.len() as u64,
            meeting,
        };
        if meeting != Meeting::Never {
            lock.shared = shared(threads, all);
            lock.shared.truncate(lock.allowed(&parsed));
        }
        Ok(Some(lock))
    }

    /// How many of the shared filters those before them let the main thread give to all.
    fn allowed(&self, parsed: &[filters::Filter]) -> usize {
        let is_refused = |nth: &usize| {
            let earlier = self.shared.get(..*nth).unwrap_or_default().iter();
            let earlier = earlier.filter_map(|number| parsed.get(*number as usize - 1)).cloned();
            let args = self.shared.get(*nth).and_then(|number| self.arguments(*number, FLAG_TSYNC));
            let call = |arguments: [u64; 6]| Call {
                number: libc::SYS_seccomp,
                at: arguments[2],
                arguments,
            };
            !args.is_some_and(|args| filters::allow(&earlier.collect::<Vec<_>>(), &call(args)))
        };
        (0..self.shared.len()).find(is_refused).unwrap_or(self.shared.len())
    }

    /// Orders that lock a thread in, and the `last` of its others behind that.
    pub(crate) fn close(&self, thread: &Thread, is_main: bool, last: &Orders, orders: &mut Orders) {
        // Nobody is in a call that it may not make when it gets filters from another.
        self.meet(0, orders);
        if is_main {
            self.shared.iter().for_each(|number| self.install(*number, FLAG_TSYNC, orders));
        }
        self.meet(1, orders);
        match thread.filter {
            STRICT => orders.call(Step::Filter, libc::SYS_seccomp, &[SET_MODE_STRICT, 0, 0]),
            last => {
                let own = chain(self.all, last);
                let rest = own.get(self.shared.len()..).unwrap_or_default();
                rest.iter().for_each(|number| self.install(*number, 0, orders));
            }
        }
        orders.extend(last);
        self.meet(2, orders);
    }

    fn meet(&self, word: usize, orders: &mut Orders) {
        let (kind, last) = match self.meeting {
            Meeting::Sleep => (OpKind::Barrier, 0),
            Meeting::Spin => (OpKind::Turn, 1),
            Meeting::Never => return,
        };
        orders.push(kind, 0, Step::Filter, 0, &[self.words[word], self.threads, last]);
    }

    /// What of seccomp(2) installs a filter.
    fn arguments(&self, number: u32, more: u64) -> Option<[u64; 6]> {
        let index = (number as usize).wrapping_sub(1);
        let (filter, program) = (self.all.get(index)?, self.programs.get(index)?);
        let flags = u64::from(filter.flags & filter_flag::LOG) | FLAG_SPEC_ALLOW | more;
        Some([SET_MODE_FILTER, flags, *program, 0, 0, 0])
    }

    fn install(&self, number: u32, more: u64, orders: &mut Orders) {
        let index = (number as usize).wrapping_sub(1);
        let (Some(filter), Some(&program)) = (self.all.get(index), self.programs.get(index)) else {
            return;
        };
        if filter.flags & filter_flag::BY_PRCTL != 0 {
            let args = [libc::PR_SET_SECCOMP as u64, SET_MODE_FILTER + 1, program];
            orders.call(Step::Filter, libc::SYS_prctl, &args);
            return;
        }
        if let Some(args) = self.arguments(number, more) {
            let nr = libc::SYS_seccomp as u64;
            orders.push(OpKind::Syscall, flag::EXACT, Step::Filter, nr, &args);
        }
    }
}

/// The filters that all threads have: of several the main one gives them to the others, if it may.
fn shared(threads: &[Thread], all: &[Filter]) -> Vec<u32> {
    let Some((main, others)) = threads.split_first() else { return Vec::new() };
    let privileges = |thread: &Thread| thread.flags & thread_flag::NO_NEW_PRIVS;
    let like = |thread: &Thread| thread.filter != STRICT && privileges(thread) == privileges(main);
    let is_alone = others.is_empty() || main.flags & thread_flag::ENDED != 0;
    if is_alone || !threads.iter().all(like) {
        return Vec::new();
    }
    let mut shared = chain(all, main.filter);
    for thread in others {
        let own = chain(all, thread.filter);
        let same = shared.iter().zip(own).take_while(|(a, b)| *a == b).count();
        shared.truncate(same);
    }
    let by_prctl = |number: &u32| {
        let filter = all.get((*number as usize).wrapping_sub(1));
        filter.is_none_or(|filter| filter.flags & filter_flag::BY_PRCTL != 0)
    };
    let free = shared.iter().position(by_prctl).unwrap_or(shared.len());
    shared.truncate(free);
    shared
}
