// SPDX-License-Identifier: LGPL-2.1-only
//! The sink that sends an image to the other host. What was sent in earlier rounds stays there: here is known only where it
//! lies and what its checksums are.

use super::streams::{self, Streams};
use super::there::ORDER;
use super::wire::{self, ENOUGH, MOST, Wire, Word, lost};
use crate::error::{Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::image::base::Base;
use crate::image::older::{Id, Older, Renewal};
use crate::image::sink::Sink;
use crate::image::sums::Elsewhere;
use crate::proc::Process;
use crate::proc::clocks::up;
use crate::settings::Name;
use crate::settings::server::Transfer;
use ckpt_abi::image::{Chunk, NO_OBJECT};
use nix::errno::Errno;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the program stands still while nothing comes from the other host, and how many bytes of the image that may
/// have to read in a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const SPEED: u64 = 100 << 20;
/// How many bytes of the last image have to go in a second beyond that.
const SLOWEST: u64 = 256 << 10;

thread_local! {
    /// Where the next image goes to: a dump opens its sink by a name.
    static LINK: RefCell<Option<Arc<Mutex<Link>>>> = const { RefCell::new(None) };
}

/// The connection, and what is on its other end.
pub(super) struct Link {
    pub wire: Wire,
    /// Bytes before the image.
    start: u64,
    known: Elsewhere,
    /// What of it is not sent yet. It counts as known: the next round would begin with it.
    pieces: Vec<u8>,
    /// Bytes that were sent, and how long that was waited for.
    pub sent: u64,
    waited: Duration,
    /// The program, whose end is next.
    pub last: Option<Process>,
    /// Its standard streams, since it stands still.
    pub streams: Streams,
    /// What these were when it was told of them.
    kinds: [u8; 3],
    /// The last image was sent.
    pub is_sealed: bool,
    /// When the other host was asked what it has answered.
    asked: Duration,
    /// It has all that it takes, and waits for the order.
    pub promised: bool,
    /// It was told to begin, when the program had stood still so long.
    pub told: Option<Duration>,
}

/// Of the one thread that works with it at a time.
pub(super) fn locked(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Has images go there, behind so many bytes of a stub.
    pub(super) fn new(wire: Wire, start: u64, kinds: [u8; 3]) -> Arc<Mutex<Self>> {
        let (known, pieces, streams) = (Elsewhere::default(), Vec::new(), Streams::default());
        let (promised, told) = (false, None);
        let (is_sealed, sent, last) = (false, 0, None);
        let (waited, asked) = (Duration::ZERO, Duration::ZERO);
        let link = Self {
            wire,
            start,
            known,
            pieces,
            sent,
            waited,
            last,
            streams,
            kinds,
            is_sealed,
            asked,
            promised,
            told,
        };
        let link = Arc::new(Mutex::new(link));
        LINK.with(|place| *place.borrow_mut() = Some(link.clone()));
        link
    }

    /// Sends a part of an image, with others.
    ///
    /// # Errors
    /// As [`Self::flush`].
    fn piece(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        wire::add_piece(&mut self.pieces, at, bytes);
        self.sent += bytes.len() as u64;
        if self.pieces.len() < ENOUGH { Ok(()) } else { self.flush() }
    }

    /// Sends what there is.
    ///
    /// # Errors
    /// The other end is gone, or takes too little of the last image, for which the program stands still.
    fn flush(&mut self) -> Result<()> {
        let since = Instant::now();
        if self.last.is_some() {
            streams::not_given_up()?;
        }
        if let Err(e) = self.wire.send(Word::Pieces, 0, &self.pieces) {
            return Err(self.wire.why_not(e));
        }
        self.pieces.clear();
        self.waited += since.elapsed();
        let most = PATIENCE + Duration::from_secs(self.sent / SLOWEST);
        if self.last.is_some() && self.waited > most {
            return Err(lost(Errno::ETIMEDOUT));
        }
        Ok(())
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        self.flush()?;
        self.wire.patience = Some(PATIENCE + Duration::from_secs(self.sent / SPEED));
        let Some(process) = &self.last else {
            if let Err(e) = self.wire.send(Word::Round, len, &[]) {
                return Err(self.wire.why_not(e));
            }
            return self.wire.expect(Word::Done).map(drop);
        };
        self.streams = Streams::of(process);
        if !self.streams.described().starts_with(&self.kinds) {
            let text = "the program has put something else in the place of its standard streams";
            return Err(Error::new(text).hint("move it again"));
        }
        streams::not_given_up()?;
        self.is_sealed = true;
        self.asked = up();
        let sent = self.wire.send(Word::Last, len, &[]);
        sent.map_err(|e| self.wire.why_not(e))
    }

    /// Waits until the other host has the program ready for its last steps.
    fn promise(&mut self) -> Result<()> {
        while self.last.is_some() {
            streams::await_unless_given_up(&self.wire)?;
            let done = self.wire.expect(Word::Done)?;
            self.streams.known = done.number as usize;
            if !self.is_late(ORDER / 4) {
                reach(Point::Promised);
                break;
            }
            // How old an answer is nobody knows: it waits for the order since some time behind the question.
            self.asked = up();
            self.wire.send(Word::Last, 0, &[])?;
        }
        Ok(())
    }

    fn is_late(&self, limit: Duration) -> bool {
        up().saturating_sub(self.asked) > limit
    }

    /// Whether the program may end here: the other host waits for the order, and will do so long enough for it to arrive.
    /// Whoever was stopped for a minute has an answer that holds no more.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn may_end(&mut self) -> Result<()> {
        streams::not_given_up()?;
        if self.wire.is_heard() {
            self.wire.expect(Word::Drop)?;
        }
        if self.is_late(ORDER / 2) {
            return Err(lost(Errno::ETIMEDOUT));
        }
        self.promised = true;
        Ok(())
    }

    /// Tells it to begin: the program has ended here. If that does not arrive, what is heard next says so.
    pub(super) fn go(&mut self, stood: Duration) {
        reach(Point::Parted);
        self.told = Some(stood);
        let _ = self.wire.send(Word::Go, 0, &[]);
        reach(Point::Told);
    }
}

/// See [`crate::dump::Open`].
pub(super) fn open(
    _: &Name,
    _: &Transfer,
    renewal: Option<Renewal>,
    _: &[u8],
) -> Result<Box<dyn Sink>> {
    let link = LINK.with(|place| place.borrow().clone());
    let link = link.ok_or_else(|| Error::new("nobody is there").of(Kind::Unreachable))?;
    let mut now = locked(&link);
    // What the other host says to the last image must not be taken for its word on another.
    if now.is_sealed {
        return Err(Error::new("the last image was sent already").of(Kind::Unreachable));
    }
    (now.sent, now.waited) = (0, Duration::ZERO);
    drop(now);
    Ok(Box::new(ThereSink { link, renews: renewal.is_some() }))
}

struct ThereSink {
    link: Arc<Mutex<Link>>,
    renews: bool,
}

impl Sink for ThereSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut link = locked(&self.link);
        link.known.sums.note(offset, bytes);
        // A frame has less than enough already, and this.
        const EACH: usize = MOST / 2;
        let pieces = bytes.chunks(EACH).zip((offset..).step_by(EACH));
        pieces.into_iter().try_for_each(|(piece, at)| link.piece(at, piece))
    }

    fn base(&mut self) -> Option<Base> {
        let mut link = locked(&self.link);
        let base = self.renews.then(|| Base::elsewhere(link.known.clone(), link.start)).flatten();
        link.known.is_torn = true;
        base
    }

    fn laid_out(&mut self, mut chunks: Vec<Chunk>, run: [u64; 2], remembers: bool) {
        chunks.retain(|chunk| chunk.object == NO_OBJECT);
        let known = &mut locked(&self.link).known;
        (known.chunks, known.run, known.remembers) = (chunks, run, remembers);
        known.is_torn = false;
    }

    fn kept(&mut self) -> Result<Option<(Option<Older>, Id)>> {
        locked(&self.link).promise()?;
        Ok(self.renews.then_some((None, [0; 2])))
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        locked(&self.link).seal(len)
    }
}
