// SPDX-License-Identifier: LGPL-2.1-only
//! Work on many things by a few threads abreast, which end with it.

use nix::sched::{CpuSet, sched_getaffinity};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};

/// More would wait for each other: the kernel makes texts of /proc under locks.
const MOST: usize = 4;
const STACK: usize = 256 << 10;

/// What comes of `work` on each of the things, in their order. `few` of them are as much work as a thread costs.
pub(crate) fn each<T: Sync, R: Send>(
    things: &[T],
    few: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    by_at_most(MOST, things, few, work)
}

/// The same by so many threads, for work that does not ask the kernel.
pub(crate) fn by_at_most<T: Sync, R: Send>(
    most: usize,
    things: &[T],
    few: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    // Each has a place of its own: one lock for all would be asked for as often as there are things.
    let done: Vec<Mutex<Option<R>>> = things.iter().map(|_| Mutex::new(None)).collect();
    let one = |index: usize| {
        let result = work(&things[index]);
        *done[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    };
    by_number(processors().min(most).min(things.len() / few.max(1)), things.len(), &one);
    let done = done.into_iter();
    done.filter_map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// Work on so many things by so many threads, the one that asks among them.
fn by_number(threads: usize, things: usize, work: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let run = || {
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < things);
        std::iter::from_fn(take).for_each(work);
    };
    thread::scope(|scope| {
        join_in(scope, threads, &run);
        run();
    });
}

/// The same for work that may fail: nothing is begun any more when some has.
///
/// # Errors
/// The first in the order of the things, of those that were begun.
pub(crate) fn try_by_at_most<T: Sync, E: Send>(
    most: usize,
    things: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let is_over = AtomicBool::new(false);
    let work = |thing: &T| match is_over.load(Ordering::Relaxed) {
        true => Ok(()),
        false => work(thing).inspect_err(|_| is_over.store(true, Ordering::Relaxed)),
    };
    by_at_most(most, things, 1, work).into_iter().collect()
}

/// Has so many threads, with the one that asks, do the same.
fn join_in<'scope>(scope: &'scope Scope<'scope, '_>, all: usize, run: &'scope (impl Fn() + Sync)) {
    for _ in 1..all {
        // Where there may be no more of them (RLIMIT_NPROC), those that are there do it.
        if thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run).is_err() {
            break;
        }
    }
}

/// What comes of some work that another thread does meanwhile; None where there may be no more of them.
pub(crate) fn beside<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: &'scope (impl Fn() -> R + Sync),
) -> Option<ScopedJoinHandle<'scope, R>> {
    thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).ok()
}

/// Work that another thread does.
pub(crate) struct Aside<R> {
    thread: thread::JoinHandle<()>,
    done: Arc<Mutex<Option<R>>>,
}

impl<R> Aside<R> {
    /// Waits for it.
    pub(crate) fn join(self) -> Option<R> {
        let _ = self.thread.join();
        self.done.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The same as [`beside`] of work that has all that it needs.
pub(crate) fn aside<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Option<Aside<R>> {
    let done = Arc::default();
    let theirs: Arc<Mutex<Option<R>>> = Arc::clone(&done);
    let all = move || *theirs.lock().unwrap_or_else(PoisonError::into_inner) = Some(work());
    Some(Aside { thread: start(Box::new(all))?, done })
}

/// One thread for all kinds of work: the code of each would be another.
fn start(work: Box<dyn FnOnce() + Send>) -> Option<thread::JoinHandle<()>> {
    thread::Builder::new().stack_size(STACK).spawn(work).ok()
}

/// Things that are worked on, a few at a time, and what came of it and is to be taken in their order.
struct Line<I, R, E> {
    things: I,
    begun: usize,
    taken: usize,
    ready: Vec<(usize, Vec<R>)>,
    /// Nothing is begun any more.
    is_over: bool,
    failed: Option<E>,
    /// How many wait until something is otherwise.
    waiting: usize,
}

/// A [`Line`] among threads.
struct Shared<I, R, E, W, F, L> {
    line: Mutex<Line<I, R, E>>,
    /// Most of it that is begun and not yet taken, each as many things as weigh `enough`: to hand over tens of thousands
    /// of small ones by themselves takes longer than the work.
    ahead: usize,
    enough: u64,
    weigh: W,
    /// Of who takes.
    take: Mutex<F>,
    finish: L,
    is_changed: Condvar,
}

impl<I, R, T, E, W, F, L> Shared<I, R, E, W, F, L>
where
    I: Iterator,
    W: Fn(&I::Item) -> u64,
    F: FnMut(R) -> Result<T, E>,
    L: Fn(T) -> Result<(), E>,
{
    fn line(&self) -> MutexGuard<'_, Line<I, R, E>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The system is asked for it only where somebody waits.
    fn tell(&self, line: &Line<I, R, E>) {
        if line.waiting > 0 {
            self.is_changed.notify_all();
        }
    }

    /// Works on the next few things.
    fn go_on<'a>(
        &'a self,
        mut line: MutexGuard<'a, Line<I, R, E>>,
        work: &dyn Fn(I::Item) -> R,
    ) -> MutexGuard<'a, Line<I, R, E>> {
        let (mut few, mut weight) = (Vec::new(), 0);
        while few.is_empty() || weight < self.enough {
            let Some(thing) = line.things.next() else { break };
            weight += (self.weigh)(&thing);
            few.push(thing);
        }
        if few.is_empty() {
            line.is_over = true;
            self.tell(&line);
            return line;
        }
        let index = line.begun;
        line.begun += 1;
        drop(line);
        let mut results = Vec::new();
        few.into_iter().for_each(|thing| results.push(work(thing)));
        let mut line = self.line();
        line.ready.push((index, results));
        self.tell(&line);
        line
    }

    /// Takes what is next if it is ready and nobody takes, else works on something.
    fn join(&self, may_take: bool, work: &dyn Fn(I::Item) -> R) {
        let mut line = self.line();
        while line.failed.is_none() {
            let wanted = line.taken;
            let next = line.ready.iter().position(|(index, _)| *index == wanted);
            if let Some(at) = next.filter(|_| may_take)
                && let Ok(mut take) = self.take.try_lock()
            {
                let (_, results) = line.ready.swap_remove(at);
                drop(line);
                let mut taken = Vec::new();
                let mut done = results.into_iter().try_for_each(|result| {
                    taken.push(take(result)?);
                    Ok(())
                });
                line = self.line();
                line.taken += 1;
                if let Err(error) = done {
                    // In this lock: nobody takes what follows one that was not taken.
                    line.failed.get_or_insert(error);
                    taken.clear();
                }
                drop(take);
                self.tell(&line);
                drop(line);
                done = taken.into_iter().try_for_each(&self.finish);
                line = self.line();
                if let Err(error) = done {
                    line.failed.get_or_insert(error);
                    self.tell(&line);
                }
            } else if !line.is_over && line.begun - line.taken < self.ahead {
                line = self.go_on(line, work);
            } else if line.is_over && (!may_take || line.begun == line.taken) {
                return;
            } else {
                line.waiting += 1;
                line = self.is_changed.wait(line).unwrap_or_else(PoisonError::into_inner);
                line.waiting -= 1;
            }
        }
    }
}

/// Works on things by a few threads, on `ahead` at most that are not taken yet, or on more small ones that `weigh` an eighth
/// of `few` together. What comes of it is taken in their order by one of them at a time, if `anyone` may, else by the one that
/// asks; who has taken something finishes it, beside the others. They come when things that weigh more than `few` were begun.
///
/// # Errors
/// One of `take` or `finish`: nothing is begun then any more.
pub(crate) fn in_order<T: Send, R: Send, L, E: Send>(
    things: impl Iterator<Item = T> + Send,
    ahead: usize,
    (few, weigh): (u64, impl Fn(&T) -> u64 + Sync),
    work: impl Fn(T) -> R + Sync,
    take: impl FnMut(R) -> Result<L, E> + Send,
    (anyone, finish): (bool, impl Fn(L) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let (begun, taken, ready) = (0, 0, Vec::new());
    let line = Line { things, begun, taken, ready, is_over: false, failed: None, waiting: 0 };
    let shared = Shared {
        line: Mutex::new(line),
        ahead,
        enough: few / 8,
        weigh: &weigh,
        take: Mutex::new(take),
        finish,
        is_changed: Condvar::new(),
    };
    let (help, begun) = (|| shared.join(anyone, &work), Cell::new(0));
    thread::scope(|scope| {
        let weighed = |thing: T| {
            let before = begun.get();
            begun.set(before + weigh(&thing));
            if before <= few && begun.get() > few {
                join_in(scope, processors().min(MOST), &help);
            }
            work(thing)
        };
        shared.join(true, &weighed);
    });
    let line = shared.line.into_inner().unwrap_or_else(PoisonError::into_inner);
    line.failed.map_or(Ok(()), Err)
}

/// How many processors this thread may run on, in one system call: the standard library looks for limits of control
/// groups, too, which do not forbid to be on several for a moment.
pub(crate) fn processors() -> usize {
    let Ok(set) = sched_getaffinity(nix::unistd::Pid::from_raw(0)) else { return 1 };
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_things() {
        for count in [0, 1, 2, 7, 100] {
            let things: Vec<usize> = (0..count).collect();
            let doubled: Vec<usize> = things.iter().map(|n| 2 * n).collect();
            assert_eq!(each(&things, 1, |n| 2 * n), doubled);
        }
    }

    #[test]
    fn nothing_is_begun_behind_a_failure() {
        let (things, begun) = ([(); 1000], AtomicUsize::new(0));
        let fail = |(): &()| {
            begun.fetch_add(1, Ordering::Relaxed);
            Err(())
        };
        assert_eq!(try_by_at_most(3, &things, fail), Err(()));
        assert!((1..=3).contains(&begun.into_inner()));
        assert_eq!(try_by_at_most(3, &things, |()| Ok::<(), ()>(())), Ok(()));
    }

    #[test]
    fn results_are_taken_in_order_until_one_is_refused() {
        let cases =
            [(0, 3, 0), (5, 1, 0), (100, 3, 10), (100, 16, 0), (100, 4, 1000), (100, 2, 30)];
        for (index, (count, ahead, few)) in cases.into_iter().cycle().take(12).enumerate() {
            let (mut taken, begun) = (Vec::new(), AtomicUsize::new(0));
            let work = |n: u64| {
                begun.fetch_add(1, Ordering::Relaxed);
                2 * n
            };
            let take = |n| {
                let ahead = (ahead * (few as usize / 8).max(1)).max(ahead);
                assert!(begun.load(Ordering::Relaxed) <= taken.len() + ahead);
                taken.push(n);
                if n == 120 { Err(n) } else { Ok(n) }
            };
            let finished = AtomicUsize::new(0);
            let finish = |n| {
                finished.fetch_add(n as usize, Ordering::Relaxed);
                Ok(())
            };
            let finish = (index % 2 == 0, finish);
            let result = in_order(0..count, ahead, (few, |_: &u64| 1), work, take, finish);
            assert_eq!(result, if count > 60 { Err(120) } else { Ok(()) });
            assert_eq!(taken, (0..count.min(61)).map(|n| 2 * n).collect::<Vec<_>>());
            if count <= 60 {
                assert_eq!(finished.into_inner() as u64, taken.iter().sum::<u64>());
            }
        }
    }

    #[test]
    fn what_cannot_be_finished_is_the_end() {
        for anyone in [false, true] {
            let taken = AtomicUsize::new(0);
            let take = |n: u64| {
                taken.fetch_add(1, Ordering::Relaxed);
                Ok(n)
            };
            let finish = |n| if n == 30 { Err(n) } else { Ok(()) };
            let result = in_order(0..1000, 4, (0, |_: &u64| 1), |n| n, take, (anyone, finish));
            assert_eq!(result, Err(30));
            // Each of the threads may have been about to take another.
            assert!((31..=31 + MOST).contains(&taken.into_inner()), "{anyone}");
        }
    }
}
