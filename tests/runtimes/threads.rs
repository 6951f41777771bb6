// SPDX-License-Identifier: LGPL-2.1-only
//! Threads of the standard library: channels, scoped threads, condition variables with time-outs, park,
//! thread-local destructors and caught panics; one line for each step.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

static DROPPED: AtomicU64 = AtomicU64::new(0);

struct Counted(u64);

impl Drop for Counted {
    fn drop(&mut self) {
        DROPPED.fetch_add(self.0, Ordering::SeqCst);
    }
}

thread_local! {
    static LOCAL: RefCell<Counted> = const { RefCell::new(Counted(0)) };
}

fn part(seed: u64) -> u64 {
    let mut x = seed;
    let mut map: HashMap<u64, Vec<u64>> = HashMap::new();
    for i in 0..20_000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        map.entry(x >> 52).or_default().push(i);
    }
    let mut keys: Vec<_> = map.into_iter().collect();
    keys.sort();
    keys.iter().fold(x, |sum, (key, list)| sum.wrapping_mul(31) ^ key ^ list.len() as u64)
}

fn work(jobs: &Mutex<Receiver<u64>>, results: &Sender<(u64, u64)>) {
    loop {
        let job = jobs.lock().expect("no panic").recv();
        let Ok(job) = job else { return };
        results.send((job, part(job))).expect("the main thread listens");
    }
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let (send_job, jobs) = channel();
    let (send_result, results) = channel();
    let jobs = Arc::new(Mutex::new(jobs));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (jobs, results) = (jobs.clone(), send_result.clone());
            thread::spawn(move || work(&jobs, &results))
        })
        .collect();
    let bell = Arc::new((Mutex::new(0_u64), Condvar::new()));
    let rung = bell.clone();
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(1));
            *rung.0.lock().expect("no panic") += 1;
            rung.1.notify_all();
        }
    });
    let mut total = 0_u64;
    for step in 0..150 {
        (0..4).for_each(|i| send_job.send(step * 4 + i + 1).expect("workers listen"));
        let mut values: Vec<_> = (0..4).map(|_| results.recv().expect("a result")).collect();
        values.sort();
        total = values.iter().fold(total, |sum, (_, v)| sum.wrapping_mul(31).wrapping_add(*v));
        let ticks = bell.0.lock().expect("no panic");
        let before = *ticks;
        drop(bell.1.wait_timeout_while(ticks, Duration::from_secs(10), |now| *now == before));
        thread::scope(|scope| {
            let parked = scope.spawn(|| {
                LOCAL.with(|l| l.borrow_mut().0 = 1);
                thread::park();
            });
            parked.thread().unpark();
            // The end of the scope does not wait for thread-local destructors, this does.
            parked.join().expect("no panic");
        });
        let caught = catch_unwind(|| assert!(total == 1, "{total}")).is_err();
        println!("{step} {total} {caught} {}", DROPPED.load(Ordering::SeqCst));
    }
    drop(send_job);
    workers.into_iter().for_each(|w| w.join().expect("a worker"));
}
