// SPDX-License-Identifier: LGPL-2.1-only
//! Work on many things by a few threads abreast, which end with it.

use nix::sched::{CpuSet, sched_getaffinity};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

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
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(things.len())));
    let run = || {
        while let Some((index, thing)) = take(things, &next) {
            let result = work(thing);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..processors().min(most).min(things.len() / few.max(1)) {
            // Where there may be no more of them (RLIMIT_NPROC), those that are there do it.
            if thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn take<'a, T>(things: &'a [T], next: &AtomicUsize) -> Option<(usize, &'a T)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    things.get(index).map(|thing| (index, thing))
}

/// How many processors this thread may run on, in one system call: the standard library looks for limits of control
/// groups, too, which do not forbid to be on several for a moment.
fn processors() -> usize {
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
}
