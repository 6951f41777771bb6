// SPDX-License-Identifier: LGPL-2.1-only
//! What is between the bytes of an encrypted image and those of its sink or source (`ckpt_abi::image`): AES-256-GCM, which
//! the channels to a server have, too.
//!
//! Two pieces under one number with one key would give both away. So the key is an image's own ([`Seal::begin`] takes a new
//! salt; there is no other way to a key that seals), a [`Seal`] belongs to the one `Writer` that got it, whose blocks get
//! their numbers of one counter ([`Numbered`]), which writes each section at an offset of its own, and proves its head once;
//! and nothing is written into a sealed image later (`Base` takes none that needs anything). forged.rs holds that.

use super::key;
use crate::error::{Error, Result};
use crate::settings::passphrase::Passphrase;
use crate::settings::server::Key;
use ckpt_abi::image::{Chunk, Codec, Header, SEAL, Section};
use ckpt_cipher::{NUMBER, Sealing, derive, digest};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use zerocopy::IntoBytes;

pub(crate) use ckpt_cipher::KEY;

const _: () = assert!(SEAL as usize == ckpt_cipher::TAG);

/// What may be sealed, each under numbers of its own.
const BLOCKS: u32 = 0;
const SECTIONS: u32 = 1;
const HEADS: u32 = 2;

/// The key of a user's images.
pub(crate) struct Master {
    key: [u8; KEY],
    passphrase: Made,
}

/// What a key is made of that is in no file: [`Header::passphrase_salt`] and [`Header::passphrase_cost`].
type Made = ([u8; 16], [u64; 2]);

impl Master {
    /// The one that was named.
    ///
    /// # Errors
    /// Those of [`key::of`].
    pub(crate) fn of(named: &Key) -> Result<Self> {
        let passphrase = match named {
            Key::Passphrase(made) => (made.salt, made.cost),
            _ => Made::default(),
        };
        Ok(Self { key: key::of(named)?, passphrase })
    }
}

/// Seals and opens what is in one image.
#[derive(Clone)]
pub(crate) struct Seal {
    sealing: Sealing,
    /// [`Header::seal_salt`].
    pub(super) salt: [u8; KEY],
    /// What the user's key is made of.
    pub(super) passphrase: Made,
}

impl Seal {
    /// For a new image.
    ///
    /// # Errors
    /// There are no random numbers.
    pub(crate) fn begin(master: &Master) -> Result<Self> {
        let salt = random()?;
        Ok(Self { passphrase: master.passphrase, ..Self::of(&master.key, salt) })
    }

    fn of(key: &[u8; KEY], salt: [u8; KEY]) -> Self {
        let sealing = Sealing::of(&derive(key, &salt));
        Self { sealing, salt, passphrase: Made::default() }
    }

    /// For the image with this header, by the key that was named ([`Keys`]).
    ///
    /// # Errors
    /// There is no key.
    pub(super) fn of_header(header: &Header) -> Result<Self> {
        let none = || Error::new("no key is named for it").hint("--key FILE or CKPT_KEY names one");
        let keys = KEYS.get().ok_or_else(none)?;
        if header.passphrase_cost != [0; 2] {
            let Header { passphrase_salt, passphrase_cost, .. } = *header;
            let made = Passphrase::again(passphrase_salt, passphrase_cost, keys.may_ask)?;
            return Ok(Self::of(&made.key, header.seal_salt));
        }
        let path = keys.file.as_ref().ok_or_else(none)?;
        Ok(Self::of(&key::read(path)?, header.seal_salt))
    }

    /// Opens a block, of which a chunk has a part, where it lies; None: it is not as it was sealed.
    pub(super) fn open_block(&self, chunk: &Chunk, piece: &mut [u8]) -> Option<()> {
        let number = nonce(BLOCKS, chunk.block.into());
        let tag = [chunk.hash, chunk.tag].map(u64::to_le_bytes);
        let tag = tag.as_flattened().first_chunk()?;
        self.sealing.open(number, &[chunk.codec as u8], piece, *tag)
    }

    /// Seals a section.
    pub(super) fn section(&self, section: &Section, piece: &mut Vec<u8>) {
        let number = nonce(SECTIONS, section.offset);
        let tag = self.sealing.seal(number, known(section).as_bytes(), piece);
        piece.extend_from_slice(&tag);
    }

    /// Opens one.
    pub(super) fn open_section(&self, section: &Section, piece: &mut Vec<u8>) -> Option<()> {
        let tag = *piece.last_chunk()?;
        piece.truncate(piece.len() - tag.len());
        let number = nonce(SECTIONS, section.offset);
        self.sealing.open(number, known(section).as_bytes(), piece, tag)
    }

    /// The tag over the head of an image: the header's page without that tag and its hash, the digest of the stub, the table of
    /// sections.
    pub(super) fn proof(&self, page: &[u8], stub: &[u8; KEY], sections: &[u8]) -> [u8; 16] {
        let known = digest(&[page, stub, sections]);
        self.sealing.seal(nonce(HEADS, 0), &known, &mut [])
    }
}

/// Seals the blocks of an image, by several threads.
#[derive(Clone)]
pub(crate) struct Numbered {
    seal: Seal,
    next: Arc<AtomicU64>,
}

/// A block that lies sealed where it was: what its [`Chunk`]s say of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// [`Chunk::block`].
    pub(super) number: u32,
    /// [`Chunk::hash`] and [`Chunk::tag`].
    pub(super) tag: [u64; 2],
}

impl Numbered {
    /// The one that gives the numbers of an image's blocks.
    pub(super) fn of(seal: Seal) -> Self {
        Self { seal, next: Arc::default() }
    }

    /// Seals a block of content that lies there as it is: whole pages.
    pub(crate) fn plain(&self, piece: &mut [u8]) -> Sealed {
        self.block(Codec::Sealed, piece)
    }

    /// Seals a block.
    pub(super) fn block(&self, codec: Codec, piece: &mut [u8]) -> Sealed {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tag = self.seal.sealing.seal(nonce(BLOCKS, number), &[codec as u8], piece);
        let tag = u128::from_le_bytes(tag);
        Sealed { number: number as u32, tag: [tag as u64, (tag >> 64) as u64] }
    }
}

fn nonce(what: u32, number: u64) -> [u8; NUMBER] {
    let mut nonce = [0; NUMBER];
    nonce[..4].copy_from_slice(&what.to_le_bytes());
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}

fn known(section: &Section) -> Section {
    Section { hash: 0, ..*section }
}

/// How content lies under its seal.
pub(super) fn inner(codec: Codec) -> Option<Codec> {
    match codec {
        Codec::Sealed => Some(Codec::Plain),
        Codec::SealedLz4 => Some(Codec::Lz4),
        Codec::Plain | Codec::Lz4 => None,
    }
}

/// Random bytes.
///
/// # Errors
/// There are none.
pub(super) fn random() -> Result<[u8; KEY]> {
    let mut bytes = [0; KEY];
    match ckpt_cipher::random(&mut bytes) {
        true => Ok(bytes),
        false => Err(Error::new("the kernel gives no random numbers (getrandom)")),
    }
}

/// What opens encrypted images that are read from now on; without it none is opened.
pub(crate) struct Keys {
    /// The file with their key.
    pub(crate) file: Option<PathBuf>,
    /// Whether a passphrase may be asked for at the terminal.
    pub(crate) may_ask: bool,
}

static KEYS: OnceLock<Keys> = OnceLock::new();

impl Keys {
    /// They hold from now on; what was said first holds.
    pub(crate) fn hold(self) {
        let _ = KEYS.set(self);
    }
}
