// SPDX-License-Identifier: LGPL-2.1-only
//! Letting go of threads, for good or until the next attempt to stop them all.
//!
//! A stop shows, unless somebody sees to it. Where a thread waits, the kernel goes on with the call by itself, and the next
//! stop finds restart_syscall(2), which tells neither the call nor its time-out: what the first has found is remembered.
//! Where it has cut a call short, the thread would see less done than it had asked for: the rest it makes in the payload,
//! which nobody has found yet, so it stands there until the next attempt.

use super::freeze::Frozen;
use super::interrupted;
use super::memory::Memory;
use super::raw::{self, State};
use super::rest;
use super::stopping::Moving;
use super::thread::StoppedThread;
use crate::order;
use nix::libc;
use std::time::{Duration, Instant};

/// How long letting go waits for a thread that runs and has to stop before it can be let go.
const LETTING_GO: Duration = Duration::from_millis(20);

impl Frozen {
    /// Lets all go on after an attempt that has failed but those whose call it has cut short.
    pub(super) fn give_up(&mut self) {
        let is_cut = self.cut();
        let (cut, others) = std::mem::take(&mut self.threads).into_iter().partition(is_cut);
        self.threads = others;
        self.let_go();
        self.threads = cut;
    }

    /// Whether the stop has cut a thread's call short.
    fn cut(&self) -> impl Fn(&StoppedThread) -> bool + use<> {
        let (pid, memory) = (self.pid, Memory::open(&self.process).ok());
        move |thread| {
            let memory = memory.as_ref();
            memory.is_some_and(|memory| rest::is_cut(pid, &thread.regs, thread.since, memory))
        }
    }

    /// Lets all go on that stand still, the first before all others: a signal to the process that it ignores is nothing only
    /// where nobody traces that one, or the thread whose child has ended (kernel/signal.c, sig_ignored), else it ends the call of
    /// some thread that runs. Those for whom that would be EINTR, which the kernel does not take back, go last.
    pub(super) fn let_go(&mut self) {
        let main = self.pid.main_thread();
        let rank = |thread: &StoppedThread| {
            let is_prone = interrupted::answered_eintr(&thread.regs);
            u64::from(thread.tid != main) + u64::from(thread.tid != main && is_prone)
        };
        let mut threads = std::mem::take(&mut self.threads);
        order::by_key(&mut threads, |thread| (rank(thread), thread.tid.word().into()));
        threads.into_iter().for_each(|thread| self.let_one_go(thread));
    }

    fn let_one_go(&mut self, thread: StoppedThread) {
        self.seized.remove(thread.tid);
        if interrupted::has_restart_block(&thread.regs) {
            self.earlier.insert(thread.tid, (thread.regs, thread.since));
        }
        thread.release();
    }

    /// Waits a moment for those that move, and lets each go as soon as it stands still; but for those that the stop has
    /// cut short, where another attempt follows.
    pub(super) fn meet_moving(&mut self, another: bool) {
        let deadline = Instant::now() + LETTING_GO;
        for moving in &self.moving {
            let _ = raw::interrupt(moving.tid);
        }
        while !self.moving.is_empty() {
            let left = std::mem::take(&mut self.moving);
            for moving in left {
                match raw::wait(moving.tid, false) {
                    Ok(State::Running) => self.moving.push(moving),
                    Ok(State::Stopped { signal, event }) => {
                        self.meet(moving, signal, event, another);
                    }
                    Ok(State::Ended) | Err(_) => {}
                }
            }
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn meet(&mut self, moving: Moving, signal: i32, event: i32, another: bool) {
        let tid = moving.tid;
        if event == raw::EVENT_CLONE {
            self.welcome(tid);
        }
        let stopped_by = if signal == libc::SIGTRAP { 0 } else { signal };
        let stopped = StoppedThread::read(tid, stopped_by).ok();
        let stopped = stopped.filter(|_| event == raw::EVENT_STOP && !moving.stranger);
        let Some(mut thread) = stopped else {
            self.seized.remove(tid);
            let signal = if event == 0 && signal & 0x80 == 0 { signal } else { 0 };
            return StoppedThread::dismiss(tid, signal);
        };
        thread.look_at_mask(&self.process);
        thread.since = moving.look.map(|look| look.since(&self.process, tid));
        thread.recall(self.earlier.get(&tid));
        match another && self.cut()(&thread) {
            true => self.threads.push(thread),
            false => self.let_one_go(thread),
        }
    }

    pub(super) fn release(&mut self) {
        self.threads.iter_mut().for_each(StoppedThread::start_home);
        self.renew_notes();
        self.meet_moving(false);
        self.let_go();
    }
}
