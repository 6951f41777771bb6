// SPDX-License-Identifier: LGPL-2.1-only
//! System calls that a stopped thread makes for us in one go.
//!
//! A call for which the thread is driven costs two stops, and on a busy machine each of them a turn of the scheduler. So
//! what is only asked is asked together: the payload makes the calls of a list (`payload/src/thunk.rs`) and writes the
//! results beside them. What a call writes elsewhere comes behind the list.

use ckpt_abi::region::{LISTED, SLOT_LEN, SLOT_LIST};
use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};

/// Bytes for a list with its results.
const ROOM: usize = (SLOT_LEN - SLOT_LIST) as usize;
const CALL: usize = LISTED as usize;
/// Bytes of the number that ends a list.
const END: usize = 8;

/// One of the calls.
struct Call {
    words: [u64; 7],
    /// Which argument (from 0) points to what the call writes, and how many bytes that has.
    written: Option<(usize, usize)>,
    /// The argument behind that points to the second word of it.
    is_pair: bool,
}

/// A result that no call has: the last one of a list has it until the list is made.
const PENDING: u64 = 1 << 63;

impl Call {
    fn room(&self) -> usize {
        CALL + self.written.map_or(0, |(_, len)| len.next_multiple_of(8))
    }
}

/// The calls, in order. None may sleep, or change what the thread is.
#[derive(Default)]
pub(crate) struct List(Vec<Call>);

/// Which call of a list.
#[derive(Clone, Copy)]
pub(crate) struct Question(usize);

impl List {
    /// Adds a call.
    pub(crate) fn call(&mut self, number: i64, args: &[u64]) -> Question {
        self.add(number, args, None)
    }

    /// Adds a call whose argument `at` (from 0) points to room for `len` bytes, zeros at first.
    pub(crate) fn reading(&mut self, number: i64, args: &[u64], at: usize, len: usize) -> Question {
        self.add(number, args, Some((at, len)))
    }

    /// Adds a call whose argument `at` points to room for a word, and the next to room for another behind it.
    pub(crate) fn reading_two(&mut self, number: i64, args: &[u64], at: usize) -> Question {
        let question = self.add(number, args, Some((at, 16)));
        self.0[question.0].is_pair = true;
        question
    }

    fn add(&mut self, number: i64, args: &[u64], written: Option<(usize, usize)>) -> Question {
        let mut words = [0; 7];
        words[0] = number.cast_unsigned();
        words[1..].iter_mut().zip(args).for_each(|(word, arg)| *word = *arg);
        self.0.push(Call { words, written, is_pair: false });
        Question(self.0.len() - 1)
    }

    /// Pieces that have room in a slot.
    pub(super) fn pieces(&self) -> Vec<Piece<'_>> {
        let (mut pieces, mut begin, mut room) = (Vec::new(), 0, END);
        for (index, call) in self.0.iter().enumerate() {
            if room + call.room() > ROOM {
                pieces.push(Piece(&self.0[begin..index]));
                (begin, room) = (index, END);
            }
            room += call.room();
        }
        pieces.push(Piece(&self.0[begin..]));
        pieces
    }
}

/// Calls that have room in a slot.
pub(super) struct Piece<'a>(&'a [Call]);

impl Piece<'_> {
    /// What is written for them at the address `at`, and the address of their end.
    pub(super) fn bytes(&self, at: u64) -> (Vec<u8>, u64) {
        let end = self.0.len() * CALL;
        let mut bytes = vec![0; end + END];
        bytes[end..].copy_from_slice(u64::MAX.as_bytes());
        for (index, call) in self.0.iter().enumerate() {
            let mut words = call.words;
            if let Some((argument, len)) = call.written {
                words[1 + argument] = at + bytes.len() as u64;
                if call.is_pair {
                    words[2 + argument] = words[1 + argument] + 8;
                }
                bytes.resize(bytes.len() + len.next_multiple_of(8), 0);
            }
            let words = words.as_bytes();
            bytes[index * CALL..index * CALL + words.len()].copy_from_slice(words);
        }
        if let Some(last) = bytes[..end].last_chunk_mut() {
            *last = PENDING.to_le_bytes();
        }
        (bytes, at + end as u64)
    }

    /// Whether all calls are made, of what lies there.
    pub(super) fn is_done(&self, bytes: &[u8]) -> bool {
        let calls = bytes.get(..self.0.len() * CALL).unwrap_or_default();
        calls.last_chunk() != Some(&PENDING.to_le_bytes())
    }
}

/// What came of the calls of a list.
#[derive(Default)]
pub(crate) struct Replies {
    all: Vec<(i64, Vec<u8>)>,
    /// Nobody was asked.
    unknown: bool,
}

impl Replies {
    /// Those of a list that nobody has made: each call has failed, and none must have succeeded.
    pub(crate) fn unknown() -> Self {
        Self { unknown: true, ..Self::default() }
    }

    /// Adds those of a piece, of what lies there when it is done.
    pub(super) fn take(&mut self, piece: &Piece<'_>, bytes: &[u8]) {
        let mut behind = piece.0.len() * CALL + END;
        for (index, call) in piece.0.iter().enumerate() {
            let result = index * CALL + CALL - 8;
            let result = bytes.get(result..result + 8).and_then(|word| word.try_into().ok());
            let len = call.written.map_or(0, |(_, len)| len);
            let written = bytes.get(behind..behind + len).unwrap_or_default().to_vec();
            behind += len.next_multiple_of(8);
            self.all.push((result.map_or(-1, i64::from_le_bytes), written));
        }
    }

    /// The result of a call, negative for an error number.
    pub(crate) fn result(&self, asked: Question) -> i64 {
        self.all.get(asked.0).map_or(-1, |answer| answer.0)
    }

    /// Whether all calls have succeeded, and written zeros.
    pub(crate) fn are_zeros(&self) -> bool {
        self.all.iter().all(|(result, written)| *result == 0 && written.iter().all(|it| *it == 0))
    }

    /// What a call has written; zeros if it failed.
    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, asked: Question) -> T {
        let mut value = T::new_zeroed();
        let written = self.all.get(asked.0).map_or(&[][..], |answer| &answer.1);
        value.as_mut_bytes().iter_mut().zip(written).for_each(|(to, from)| *to = *from);
        value
    }

    /// The result of a call that must not fail, with an error about `what`.
    ///
    /// # Errors
    /// It has.
    pub(crate) fn expect(&self, asked: Question, what: &str) -> Result<u64> {
        match self.result(asked) {
            _ if self.unknown => Ok(0),
            errno @ -4095..0 => {
                Err(Error::new(format!("{what}: {}", Errno::from_raw(-errno as i32).desc())))
            }
            result => Ok(result.cast_unsigned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_into_pieces_that_have_room() {
        let mut list = List::default();
        let all: Vec<_> = (0..64).map(|n| list.reading(13, &[n, 0, 0, 8], 2, 32)).collect();
        let mut answers = Replies::default();
        for piece in list.pieces() {
            let (mut bytes, end) = piece.bytes(0x1000);
            assert!(bytes.len() <= ROOM && !piece.is_done(&bytes));
            let calls = (end - 0x1000) as usize / CALL;
            for call in 0..calls {
                let word = |n: usize| {
                    let at = call * CALL + n * 8;
                    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
                };
                let (signal, to) = (word(1), (word(3) - 0x1000) as usize);
                bytes[to] = signal as u8;
                let result = call * CALL + 56;
                bytes[result..result + 8].copy_from_slice(&(signal + 1).to_le_bytes());
            }
            assert!(piece.is_done(&bytes));
            answers.take(&piece, &bytes);
        }
        for (n, asked) in all.into_iter().enumerate() {
            assert_eq!(
                (answers.result(asked), answers.get::<u64>(asked)),
                (n as i64 + 1, n as u64)
            );
        }
    }
}
