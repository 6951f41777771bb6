// SPDX-License-Identifier: LGPL-2.1-only
//! AES-256-GCM for images at rest, and for snow, which has an older one: with the instructions for whole vectors of
//! blocks that processors have today it is twice as fast as that and as ChaCha20-Poly1305. And a [digest](Digest).

mod digest;

pub use digest::{DIGEST, Digest};

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};

/// Bytes of a key.
pub const KEY: usize = 32;
/// Bytes of a tag.
pub const TAG: usize = 16;

/// snow's own primitives, but for this cipher.
#[derive(Default)]
pub struct Resolver(DefaultResolver);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        self.0.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        self.0.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        self.0.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::AESGCM => Some(Box::new(Aes(Aes256Gcm::new(&[0; KEY].into())))),
            _ => self.0.resolve_cipher(choice),
        }
    }
}

/// The cipher with its key; all zeros until there is one, as in snow's.
struct Aes(Aes256Gcm);

/// 32 bits of zeros and the counter, big-endian (section 12.4 of the Noise specification).
fn nonce(counter: u64) -> Nonce<<Aes256Gcm as aes_gcm::aead::AeadCore>::NonceSize> {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    bytes.into()
}

impl Cipher for Aes {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; KEY]) {
        self.0 = Aes256Gcm::new(key.into());
    }

    fn encrypt(&self, counter: u64, known: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (text, rest) = out.split_at_mut(plain.len());
        // Neither can fail: both have the same length, and that is far from GCM's 64 GiB.
        let both = InOutBuf::new(plain, text).expect("the same length");
        let tag = self.0.encrypt_inout_detached(&nonce(counter), known, both);
        let tag = tag.expect("a message of Noise is short");
        rest[..TAG].copy_from_slice(&tag);
        plain.len() + TAG
    }

    fn decrypt(
        &self,
        counter: u64,
        known: &[u8],
        cipher: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let len = cipher.len().checked_sub(TAG).ok_or(Error::Decrypt)?;
        let (text, tag) = cipher.split_at(len);
        let tag = Tag::try_from(tag).map_err(|_| Error::Decrypt)?;
        let out = out.get_mut(..len).ok_or(Error::Decrypt)?;
        let both = InOutBuf::new(text, out).map_err(|_| Error::Decrypt)?;
        self.0
            .decrypt_inout_detached(&nonce(counter), known, both, &tag)
            .map(|()| len)
            .map_err(|_| Error::Decrypt)
    }
}

/// Seals pieces with a key, each under a number that is no other's.
#[derive(Clone)]
pub struct Sealing(Aes256Gcm);

/// Bytes of a number.
pub const NUMBER: usize = 12;

impl Sealing {
    /// With this key.
    #[must_use]
    pub fn of(key: &[u8; KEY]) -> Self {
        Self(Aes256Gcm::new(key.into()))
    }

    /// Encrypts a piece in place, and gives the tag, which also seals what is `known`.
    #[must_use]
    pub fn seal(&self, number: [u8; NUMBER], known: &[u8], piece: &mut [u8]) -> [u8; TAG] {
        let tag = self.0.encrypt_inout_detached(&number.into(), known, piece.into());
        // GCM refuses 64 GiB.
        tag.map_or([0; TAG], Into::into)
    }

    /// Decrypts a piece with its tag behind it into `out`, which is as long as the piece; None where anything of it, of its
    /// number or of what is `known` is not as it was sealed.
    #[must_use]
    pub fn open(
        &self,
        number: [u8; NUMBER],
        known: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Option<()> {
        let (text, tag) = sealed.split_last_chunk::<TAG>()?;
        let both = InOutBuf::new(text, out).ok()?;
        self.0.decrypt_inout_detached(&number.into(), known, both, &(*tag).into()).ok()
    }
}

/// A key made of another and a salt (HKDF with BLAKE2s, section 4.3 of the Noise specification).
#[must_use]
pub fn derive(key: &[u8; KEY], salt: &[u8; KEY]) -> [u8; KEY] {
    let (mut made, mut others) = ([0; KEY], [[0; KEY]; 2]);
    let [second, third] = &mut others;
    if let Some(mut hash) = DefaultResolver.resolve_hash(&HashChoice::Blake2s) {
        hash.hkdf(salt, key, 1, &mut made, second, third);
    }
    made
}

/// A key made of a passphrase by Argon2id (RFC 9106) in so many KiB of memory; None where that is no possible cost.
#[must_use]
pub fn stretch(passphrase: &[u8], salt: &[u8; 16], memory: u32, passes: u32) -> Option<[u8; KEY]> {
    let params = Params::new(memory, passes, 1, Some(KEY)).ok()?;
    let (mut key, mut blocks) = ([0; KEY], vec![Block::default(); params.block_count()]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(passphrase, salt, &mut key, &mut blocks)
        .ok()?;
    Some(key)
}

/// Bytes that nobody can guess (getrandom(2)); false where there are none.
#[must_use]
pub fn random(bytes: &mut [u8]) -> bool {
    let random = DefaultResolver.resolve_rng();
    random.is_some_and(|mut random| random.try_fill_bytes(bytes).is_ok())
}

/// The BLAKE2s digest of some pieces.
#[must_use]
pub fn digest(pieces: &[&[u8]]) -> [u8; KEY] {
    let mut digest = [0; KEY];
    if let Some(mut hash) = DefaultResolver.resolve_hash(&HashChoice::Blake2s) {
        hash.reset();
        pieces.iter().for_each(|piece| hash.input(piece));
        hash.result(&mut digest);
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of GCM (McGrew and Viega, test case 14): key, nonce and plain text of zeros.
    #[test]
    fn it_is_the_gcm_of_the_standard() {
        let mut out = [0; 32];
        let aes = Resolver::default().resolve_cipher(&CipherChoice::AESGCM).unwrap();
        assert_eq!(aes.encrypt(0, &[], &[0; 16], &mut out), 32);
        let expected = [
            0xce, 0xa7, 0x40, 0x3d, 0x4d, 0x60, 0x6b, 0x6e, 0x07, 0x4e, 0xc5, 0xd3, 0xba, 0xf3,
            0x9d, 0x18, 0xd0, 0xd1, 0xc8, 0xa7, 0x99, 0x99, 0x6b, 0xf0, 0x26, 0x5b, 0x98, 0xb5,
            0xd4, 0x8a, 0xb9, 0x19,
        ];
        assert_eq!(out, expected);
        let mut plain = [1; 16];
        assert_eq!(aes.decrypt(0, &[], &out, &mut plain), Ok(16));
        assert_eq!(plain, [0; 16]);
        out[3] ^= 1;
        assert_eq!(aes.decrypt(0, &[], &out, &mut plain), Err(Error::Decrypt));
        assert_eq!(aes.decrypt(0, &[], &out[..15], &mut plain), Err(Error::Decrypt));
    }

    #[test]
    fn a_piece_is_bound_to_its_number_and_what_is_known() {
        let sealing = Sealing::of(&derive(&[1; 32], &[2; 32]));
        let mut piece = *b"sixteen bytes...and some more";
        let tag = sealing.seal([7; 12], b"known", &mut piece);
        let sealed = [&piece[..], &tag].concat();
        let open = |number, known: &[u8], sealed: &[u8]| {
            let mut out = [0; 29];
            sealing.open([number; 12], known, sealed, &mut out).map(|()| out)
        };
        assert_eq!(open(7, b"known", &sealed), Some(*b"sixteen bytes...and some more"));
        assert_eq!(open(8, b"known", &sealed), None);
        assert_eq!(open(7, b"knowN", &sealed), None);
        assert_eq!(open(7, b"known", &sealed[1..]), None);
        assert_ne!(derive(&[1; 32], &[3; 32]), derive(&[1; 32], &[2; 32]));
        assert_ne!(digest(&[b"a", b"b"]), digest(&[b"b", b"a"]));
    }
}
