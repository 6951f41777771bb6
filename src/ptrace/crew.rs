// SPDX-License-Identifier: LGPL-2.1-only
//! Threads that make the same list of calls abreast ([`super::list`]), with few system calls of ours for each: what they
//! were is written into their slots at once, what they have answered is read at once, and they stop where they can be given
//! back. Who cannot do so is asked by itself ([`super::call`]).

use super::call::Caller;
use super::dispatch;
use super::lend::{self, Desk, Lent};
use super::list::{List, Piece, Replies};
use super::memory::Memory;
use super::raw::{self, RseqConfiguration};
use super::sequence::{SEQUENCE, leave_sequence};
use super::thread::StoppedThread;
use crate::error::{Because, Result};
use crate::proc::Tid;
use ckpt_abi::region::SLOT_LIST;
use nix::errno::Errno;

/// What there is to know of a thread that was asked.
pub(crate) struct Told {
    /// Its answers.
    pub replies: Replies,
    /// Its extended state before.
    pub xstate: Vec<u8>,
    /// Its restartable sequences.
    pub rseq: RseqConfiguration,
}

/// Asks as many threads, from the first on, as have a slot that nobody has, and are able to be asked so; all are as they
/// were then. None: the first has to be asked by itself.
///
/// # Errors
/// One is gone.
pub(crate) fn ask(
    threads: &mut [StoppedThread],
    list: &List,
    memory: &Memory,
    desk: &Desk,
) -> Result<Vec<Told>> {
    let pieces = list.pieces();
    let [piece] = &pieces[..] else { return Ok(Vec::new()) };
    let mut slots = lend::unused(memory, desk)?;
    let able = threads.iter().take(slots.len()).map_while(sequences);
    let rseqs: Vec<RseqConfiguration> = able.collect();
    slots.truncate(rseqs.len());
    let threads = &mut threads[..rseqs.len()];
    if threads.is_empty() {
        return Ok(Vec::new());
    }
    leave_sequences(threads, &rseqs, memory);
    let len = note(threads, &slots, piece, memory)?;
    let mut outcome = Ok(());
    let mut begun = 0;
    for (thread, slot) in threads.iter_mut().zip(&slots) {
        let tid = thread.tid;
        outcome = Caller::at(thread, desk, *slot)
            .begin_noted(*slot)
            .because(|| format!("cannot borrow thread {tid}"));
        // One that was not let run never stops.
        if outcome.is_err() {
            break;
        }
        begun += 1;
    }
    // What has begun has to be met, whatever fails.
    for (thread, slot) in threads.iter_mut().zip(&slots).take(begun) {
        let tid = thread.tid;
        let met = Caller::at(thread, desk, *slot).await_any_bell();
        outcome = outcome.and(answered(tid, met));
    }
    let lists: Vec<u64> = slots.iter().map(|slot| slot + SLOT_LIST).collect();
    let answers = outcome.and_then(|()| {
        let mut answers = memory.read_each(&lists, len)?;
        for ((thread, slot), bytes) in threads.iter_mut().zip(&slots).zip(&mut answers) {
            // The same signal from elsewhere has stopped it before the end. Where it came behind the last call, the thread is
            // given back without having sent its own.
            if !piece.is_done(bytes) {
                let mut caller = Caller::at(thread, desk, *slot);
                let met = caller.go_on().and_then(|()| caller.await_bell());
                answered(thread.tid, met)?;
                memory.read(slot + SLOT_LIST, bytes)?;
            }
        }
        Ok(answers)
    });
    let states = threads.iter_mut().map(|thread| thread.xstate.take().unwrap_or_default());
    let states: Vec<_> = states.collect();
    let mut back = Ok(());
    // One that has failed may be lent. Who is not lent stays as it is.
    for thread in threads {
        let (tid, taken) = (thread.tid, thread.take_back());
        back = back.and(taken.because(|| format!("cannot give thread {tid} its registers back")));
    }
    let answers = answers.and_then(|answers| back.map(|()| answers))?;
    let told = answers.iter().zip(states).zip(rseqs).map(|((bytes, xstate), rseq)| {
        let mut replies = Replies::default();
        replies.take(piece, bytes);
        Told { replies, xstate, rseq }
    });
    Ok(told.collect())
}

fn answered(tid: Tid, met: std::result::Result<(), Errno>) -> Result<()> {
    met.because(|| format!("thread {tid} cannot make system calls for us"))
}

/// The restartable sequences of a thread that can be asked so.
fn sequences(thread: &StoppedThread) -> Option<RseqConfiguration> {
    let is_able = thread.bell() != 0 && thread.lent == Lent::No && !dispatch::is_on(thread.tid);
    // Before Linux 5.13 it takes more calls to find them.
    is_able.then(|| raw::rseq_configuration(thread.tid).ok()).flatten()
}

/// [`leave_sequence`], where any of the threads is in one.
fn leave_sequences(threads: &mut [StoppedThread], rseqs: &[RseqConfiguration], memory: &Memory) {
    let all = || rseqs.iter().map(|rseq| rseq.pointer).filter(|area| *area != 0);
    let places: Vec<u64> = all().map(|area| area.wrapping_add(SEQUENCE)).collect();
    let read = memory.read_each(&places, size_of::<u64>());
    if read.is_ok_and(|words| words.iter().flatten().all(|byte| *byte == 0)) {
        return;
    }
    for (thread, rseq) in threads.iter_mut().zip(rseqs).filter(|(_, rseq)| rseq.pointer != 0) {
        leave_sequence(memory, rseq.pointer, &mut thread.regs);
    }
}

/// Writes down what the threads are, each in its slot, which is still said to be nobody's, and the list behind it; the bytes
/// of that.
fn note(
    threads: &mut [StoppedThread],
    slots: &[u64],
    piece: &Piece<'_>,
    memory: &Memory,
) -> Result<usize> {
    let (mut notes, mut lists) = (Vec::new(), Vec::new());
    for (thread, slot) in threads.iter_mut().zip(slots) {
        notes.push(lend::written(thread, *slot, memory)?);
        lists.push(piece.bytes(slot + SLOT_LIST).0);
    }
    let pieces = slots.iter().zip(&notes).zip(&lists);
    let pieces =
        pieces.flat_map(|((slot, note), list)| [(*slot, &note[..]), (slot + SLOT_LIST, &list[..])]);
    memory.write_each(&pieces.collect::<Vec<_>>())?;
    Ok(lists.first().map_or(0, Vec::len))
}
