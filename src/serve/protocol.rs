// SPDX-License-Identifier: LGPL-2.1-only
//! # The protocol, version 1
//!
//! A connection carries one request. All numbers are little-endian.
//!
//! **Preamble.** The client sends 16 bytes, the server answers with 16 bytes:
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `CKPTSRV\n` |
//! | 8..10 | version: 1 |
//! | 10 | [`Mode`]: 0 plain, 1 Noise with ChaCha20-Poly1305, 2 Noise with AES-256-GCM |
//! | 11 | from the server a [`Welcome`]; from the client 0 |
//! | 12..16 | 0 |
//!
//! A server that does not welcome a client says why in this byte and closes. A newer server answers
//! an older client in the client's version.
//!
//! **Noise.** In mode 1 follow the two messages of `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`, in mode 2
//! those of `Noise_NNpsk0_25519_AESGCM_BLAKE2s`; the client chooses what its processor is faster at, and
//! the server answers in the same mode. Each message is behind its length (u16), with empty payloads; the prologue is the client's preamble and the
//! server's. A server that cannot read the first message closes without a word. Everything after
//! is Noise transport messages of at most 65535 bytes, each behind its length (u16): a frame's
//! header is one message of 16 bytes of plain text, then its payload fills messages of
//! [`RECORD`] bytes and a rest. A replayed first message gets an answer, but no frame follows that
//! could be read: the server's half of the keys is new.
//!
//! **Frames.** In mode 0 the same without the Noise: a header, then `len` bytes of payload.
//!
//! | bytes | |
//! |---|---|
//! | 0 | [`Kind`] |
//! | 1..4 | 0 |
//! | 4..8 | len: at most [`PIECE`] |
//! | 8..16 | offset in the image, of `Data` frames; else 0 |
//!
//! **Requests.** `Put`, `Get` and `Remove` name a checkpoint in UTF-8
//! ([`crate::settings::server::check_stored`]), `List` a folder, or nothing for all.
//!
//! - `Put`: the server answers `Done` when it is ready, with a byte of 1 if it takes offers. `Data` frames follow, at any offsets and in
//!   any order; what no frame touches is zeros. `Seal` ends them ([`Seal`]: length of the image and
//!   checksum). The server compares, writes to its disk, gives the image its name, and answers
//!   `Done`. Until then either side may say `Wait`, to show that it lives. A connection that ends before
//!   leaves nothing.
//!   A client that has read of offers may send `Offer` frames, too: the offset and length (u32) of a piece, and the digests of its
//!   units (the first 192 bits of BLAKE2b-512; 4096 bytes each, the last one what is left). The server answers each in turn with
//!   `Lacks`, a bit for each unit, the first the lowest of the first byte: those whose bit is 0 are as if they had been sent, the others
//!   have to be. No more than [`OFFERS`] may be unanswered.
//! - `Get`: the server answers `Done` with the length (u64), `Data` frames and `Seal`.
//! - `List`: `Entry` frames ([`Entry`]), then `Done`.
//! - `Remove`: `Done`.
//! - `Finish`: the name, a line feed, and two numbers with a space between them: a run, or 0 for any, and the number of a
//!   checkpoint of it, or 0 for any (`Header::run` of an image). If the checkpoint is such a one, the server appends
//!   `.finished` to its name, in the place of an earlier one, and answers `Done` with a byte of 1; with 0, if the number is 0
//!   and the run was ended by it, and nothing happens.
//!
//! In the place of any answer, and at any time during a `Put`, the server may say `Refused` with a
//! sentence in UTF-8, and closes. The checksum is XXH3 with 128 bits over all `Data` frames in the
//! order of their sending: offset (u64), length (u32), bytes; plus that over all offers, plus that over all
//! answers, in the same form, each minus that of nothing. An image may be compressed, which is nothing to the
//! protocol.

use ckpt_abi::codes;
use ckpt_cipher::DIGEST;
use std::io::{Error, ErrorKind, Result};

use xxhash_rust::xxh3::Xxh3;

use super::packs::{UNIT, Unit};

/// First bytes of a connection.
pub const MAGIC: [u8; 8] = *b"CKPTSRV\n";
/// This version of the protocol.
pub const VERSION: u16 = 1;
/// Bytes of plain text in one Noise message: whole pages.
pub const RECORD: usize = 60 << 10;
/// Most bytes of data in a frame, and of any payload.
pub const PIECE: usize = 4 * RECORD;
/// Most offers without an answer; their answers fit into what a connection holds.
pub const OFFERS: usize = 256;
/// Bytes of a [`Preamble`].
pub const PREAMBLE: usize = 16;
/// Bytes of a [`Header`].
pub const HEADER: usize = 16;

codes! {
    /// What a server says to a preamble.
    Welcome: u8 {
        /// Go on.
        Yes = 0,
        /// The server does not speak this version.
        OtherVersion = 1,
        /// The server has a key, and the client came without.
        NeedsKey = 2,
        /// The client has a key, and the server none.
        HasNoKey = 3,
        /// The server has enough clients.
        Busy = 4,
    }
}

codes! {
    /// What follows the preambles.
    Mode: u8 {
        /// Frames in the clear.
        Plain = 0,
        /// Noise with ChaCha20-Poly1305.
        ChaCha = 1,
        /// Noise with AES-256-GCM.
        Aes = 2,
    }
}

impl Mode {
    /// The encrypted one that is faster here: AES where the processor has instructions for it, and for
    /// GCM's multiplication.
    pub fn encrypted() -> Self {
        let has = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
        if has { Self::Aes } else { Self::ChaCha }
    }

    /// The name of the Noise protocol; None in the clear.
    pub fn noise(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::ChaCha => Some("Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s"),
            Self::Aes => Some("Noise_NNpsk0_25519_AESGCM_BLAKE2s"),
        }
    }
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// Version of the protocol.
    pub version: u16,
    /// What follows.
    pub mode: Mode,
    /// [`Welcome`]; 0 from a client.
    pub welcome: u8,
}

impl Preamble {
    /// As it goes over the wire.
    pub fn bytes(self) -> [u8; PREAMBLE] {
        let mut bytes = [0; PREAMBLE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = self.mode as u8;
        bytes[11] = self.welcome;
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// `InvalidData` for what begins otherwise or has an unknown mode.
    pub fn read(bytes: &[u8; PREAMBLE]) -> Result<Self> {
        let mode = Mode::try_from(bytes[10]).ok();
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        let preamble = mode.map(|mode| Self { version, mode, welcome: bytes[11] });
        preamble
            .filter(|_| bytes[..8] == MAGIC)
            .ok_or_else(|| broken("what came is not the checkpoint protocol"))
    }
}

codes! {
    /// What a frame is.
    Kind: u8 {
        /// Request: store a checkpoint.
        Put = 1,
        /// A piece of an image.
        Data = 2,
        /// The end of an image.
        Seal = 3,
        /// Request: send a checkpoint.
        Get = 4,
        /// Request: the names.
        List = 5,
        /// Request: remove a checkpoint.
        Remove = 6,
        /// Request: set a checkpoint aside whose program has come to its end.
        Finish = 7,
        /// What a piece of an image is made of.
        Offer = 8,
        /// Answer: it is done.
        Done = 128,
        /// Answer: no, with a sentence.
        Refused = 129,
        /// Answer: one name.
        Entry = 130,
        /// Still at work.
        Wait = 131,
        /// Answer: what is missing of an offer.
        Lacks = 132,
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Bytes of payload.
    pub len: u32,
    /// Where the data belongs.
    pub offset: u64,
}

impl Header {
    /// As it goes over the wire.
    pub fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// `InvalidData` for unknown kinds, and payloads longer than [`PIECE`].
    pub fn read(bytes: &[u8; HEADER]) -> Result<Self> {
        let kind = Kind::try_from(bytes[0]);
        let kind = kind.map_err(|_| broken("a frame of an unknown kind came"))?;
        let [.., a, b, c, d] = *bytes.first_chunk::<8>().unwrap_or(&[0; 8]);
        let len = u32::from_le_bytes([a, b, c, d]);
        if bytes[1..4] != [0; 3] {
            return Err(broken("a frame with unknown flags came"));
        }
        if len as usize > PIECE {
            return Err(broken("a frame that is too long came"));
        }
        let offset = bytes.last_chunk::<8>().map_or(0, |tail| u64::from_le_bytes(*tail));
        Ok(Self { kind, len, offset })
    }
}

/// The payload of [`Kind::Seal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Bytes of the image.
    pub len: u64,
    /// The checksum.
    pub sum: u128,
}

impl Seal {
    /// As it goes over the wire.
    pub fn bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// `InvalidData` for another length.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let whole = <&[u8; 24]>::try_from(bytes).ok();
        let parts = whole.and_then(|w| Some((*w.first_chunk::<8>()?, *w.last_chunk::<16>()?)));
        let (len, sum) = parts.ok_or_else(|| broken("a seal of a wrong length came"))?;
        Ok(Self { len: u64::from_le_bytes(len), sum: u128::from_le_bytes(sum) })
    }
}

/// The payload of [`Kind::Entry`]: bytes (u64), seconds since 1970 (u64), the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// Bytes of the image.
    pub len: u64,
    /// When it was stored, in seconds since 1970.
    pub time: u64,
}

impl Entry {
    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.len.to_le_bytes().to_vec();
        bytes.extend(self.time.to_le_bytes());
        bytes.extend(self.name.as_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// `InvalidData` where it is too short or the name no UTF-8.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let parts = bytes.split_first_chunk::<8>().and_then(|(len, rest)| {
            let (time, name) = rest.split_first_chunk::<8>()?;
            Some((*len, *time, str::from_utf8(name).ok()?))
        });
        let (len, time, name) = parts.ok_or_else(|| broken("a broken entry came"))?;
        let (len, time) = (u64::from_le_bytes(len), u64::from_le_bytes(time));
        Ok(Self { name: name.to_owned(), len, time })
    }
}

/// The payload of [`Kind::Offer`].
pub(super) struct Offer;

impl Offer {
    /// As it goes over the wire, of a piece that has units.
    pub(super) fn bytes(units: &[Unit]) -> Vec<u8> {
        let len: u32 = units.iter().map(|unit| unit.len).sum();
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.digest));
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// `InvalidData` where length and digests do not fit each other.
    pub(super) fn read(bytes: &[u8]) -> Result<Vec<Unit>> {
        let (len, digests) = bytes.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        let len = u32::from_le_bytes(*len) as usize;
        if len > PIECE || len == 0 || digests.len() != len.div_ceil(UNIT) * DIGEST {
            return Err(broken("a broken offer came"));
        }
        let unit = |(i, digest): (usize, &[u8])| Unit {
            digest: *digest.first_chunk().unwrap_or(&[0; DIGEST]),
            len: (len - i * UNIT).min(UNIT) as u32,
        };
        Ok(digests.chunks(DIGEST).enumerate().map(unit).collect())
    }
}

/// What offers add to the checksum of an image.
#[derive(Default)]
pub(super) struct OfferSums {
    pub offers: Checksum,
    pub answers: Checksum,
}

impl OfferSums {
    /// 0 where there were none.
    pub(super) fn sum(&self) -> u128 {
        let none = Checksum::default().sum().wrapping_mul(2);
        self.offers.sum().wrapping_add(self.answers.sum()).wrapping_sub(none)
    }
}

/// The end-to-end checksum of an image on its way.
#[derive(Default)]
pub struct Checksum(Xxh3);

impl Checksum {
    /// Takes a piece in.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) {
        self.0.update(&offset.to_le_bytes());
        self.0.update(&(bytes.len() as u32).to_le_bytes());
        self.0.update(bytes);
    }

    /// Of all pieces so far.
    pub fn sum(&self) -> u128 {
        self.0.digest128()
    }
}

/// The other side does not keep to the protocol.
pub fn broken(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_preambles() {
        let client = Preamble { version: 1, mode: Mode::ChaCha, welcome: 0 };
        assert_eq!(&client.bytes(), b"CKPTSRV\n\x01\0\x01\0\0\0\0\0");
        let other = Preamble { version: 1, mode: Mode::Aes, welcome: 0 };
        assert_eq!(&other.bytes(), b"CKPTSRV\n\x01\0\x02\0\0\0\0\0");
        let server = Preamble { version: 1, mode: Mode::Plain, welcome: Welcome::Busy as u8 };
        assert_eq!(&server.bytes(), b"CKPTSRV\n\x01\0\0\x04\0\0\0\0");
        for preamble in [client, other, server] {
            assert_eq!(Preamble::read(&preamble.bytes()).unwrap(), preamble);
        }
        assert!(Preamble::read(b"GET / HTTP/1.1\r\n").is_err());
        assert!(Preamble::read(b"CKPTSRV\n\x01\0\x03\0\0\0\0\0").is_err());
    }

    #[test]
    fn golden_headers() {
        let data = Header { kind: Kind::Data, len: 0x1_0203, offset: 0xa0b };
        let bytes = *b"\x02\0\0\0\x03\x02\x01\0\x0b\x0a\0\0\0\0\0\0";
        assert_eq!(data.bytes(), bytes);
        assert_eq!(Header::read(&bytes).unwrap(), data);
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| *kind as u8).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8, 128, 129, 130, 131, 132]);
        for (at, value) in [(0, 0), (0, 9), (0, 133), (1, 1), (2, 1), (3, 1), (6, 4), (7, 1)] {
            let mut wrong = bytes;
            wrong[at] = value;
            assert!(Header::read(&wrong).is_err(), "{at} {value}");
        }
        let longest = Header { len: PIECE as u32, ..data };
        assert!(Header::read(&longest.bytes()).is_ok());
        assert!(Header::read(&Header { len: longest.len + 1, ..data }.bytes()).is_err());
    }

    #[test]
    fn golden_payloads() {
        let seal = Seal { len: 0x102, sum: 0x0304 };
        assert_eq!(&seal.bytes(), b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(Seal::read(&seal.bytes()).unwrap(), seal);
        assert!(Seal::read(&seal.bytes()[1..]).is_err());
        let entry = Entry { name: "a/é".into(), len: 5, time: 6 };
        assert_eq!(entry.bytes(), b"\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0a/\xc3\xa9");
        assert_eq!(Entry::read(&entry.bytes()).unwrap(), entry);
        assert!(Entry::read(&entry.bytes()[..15]).is_err());
        assert!(Entry::read(&entry.bytes()[..19]).is_err());
    }

    #[test]
    fn golden_offers() {
        let unit = |byte, len| Unit { digest: [byte; DIGEST], len };
        let bytes = Offer::bytes(&[unit(7, 4096), unit(8, 2)]);
        assert_eq!(bytes, [&[2, 16, 0, 0][..], &[7; 24], &[8; 24]].concat());
        let read = Offer::read(&bytes).unwrap();
        assert!(read == [unit(7, 4096), unit(8, 2)]);
        assert!(Offer::read(&bytes[..51]).is_err() && Offer::read(&[]).is_err());
        assert!(
            Offer::read(&[0, 16, 0, 0].iter().chain(&bytes[4..]).copied().collect::<Vec<_>>())
                .is_err()
        );
        assert!(Offer::read(&[&[0xff; 4][..], &bytes[4..]].concat()).is_err());
    }

    #[test]
    fn golden_checksum() {
        let mut sum = Checksum::default();
        assert_eq!(sum.sum(), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
        sum.add(1, b"ckpt");
        let same = b"\x01\0\0\0\0\0\0\0\x04\0\0\0ckpt";
        assert_eq!(sum.sum(), xxhash_rust::xxh3::xxh3_128(same));
        let (mut split, mut moved) = (Checksum::default(), Checksum::default());
        split.add(1, b"ck");
        split.add(3, b"pt");
        moved.add(2, b"ckpt");
        assert!(split.sum() != sum.sum() && moved.sum() != sum.sum());
    }
}
