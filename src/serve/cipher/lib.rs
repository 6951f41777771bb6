// SPDX-License-Identifier: LGPL-2.1-only
//! AES-256-GCM for images at rest, and for snow, which has an older one: with the instructions for whole vectors of
//! blocks that processors have today it is four times as fast as that and as ChaCha20-Poly1305. And a [digest](Digest).

mod digest;
mod ghash;

pub use digest::{DIGEST, Digest};

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, InnerIvInit, KeyInit, StreamCipherCore};
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
            CipherChoice::AESGCM => Some(Box::new(Aes(Sealing::of(&[0; KEY])))),
            _ => self.0.resolve_cipher(choice),
        }
    }
}

/// The cipher with its key; all zeros until there is one, as in snow's.
struct Aes(Sealing);

/// 32 bits of zeros and the counter, big-endian (section 12.4 of the Noise specification).
fn nonce(counter: u64) -> [u8; NUMBER] {
    let mut bytes = [0; NUMBER];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    bytes
}

impl Cipher for Aes {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; KEY]) {
        self.0 = Sealing::of(key);
    }

    fn encrypt(&self, counter: u64, known: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (text, rest) = out.split_at_mut(plain.len());
        text.copy_from_slice(plain);
        rest[..TAG].copy_from_slice(&self.0.seal(nonce(counter), known, text));
        plain.len() + TAG
    }

    fn decrypt(
        &self,
        counter: u64,
        known: &[u8],
        cipher: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let (text, tag) = cipher.split_last_chunk().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(text);
        self.0.open(nonce(counter), known, out, *tag).ok_or(Error::Decrypt)?;
        Ok(text.len())
    }
}

/// Seals pieces with a key, each under a number that is no other's: AES-256-GCM (NIST SP 800-38D).
#[derive(Clone)]
pub struct Sealing {
    aes: Aes256,
    hash: ghash::Key,
}

/// Bytes of a number.
pub const NUMBER: usize = 12;

impl Sealing {
    /// With this key.
    #[must_use]
    pub fn of(key: &[u8; KEY]) -> Self {
        let aes = Aes256::new(key.into());
        let mut block = [0; 16].into();
        aes.encrypt_block(&mut block);
        Self { aes, hash: ghash::Key::of(block.into(), ghash::Width::most()) }
    }

    /// Encrypts a piece in place, and gives the tag, which also seals what is `known`. Pieces are shorter than GCM's 64 GiB.
    #[must_use]
    pub fn seal(&self, number: [u8; NUMBER], known: &[u8], piece: &mut [u8]) -> [u8; TAG] {
        let (stream, mask) = self.stream(number);
        stream.apply_keystream_partial(piece.into());
        self.tag(mask, known, piece)
    }

    /// Decrypts a piece in place; None where anything of it, of its number or of what is `known` is not as it was sealed: the
    /// piece is as it was then.
    #[must_use]
    pub fn open(
        &self,
        number: [u8; NUMBER],
        known: &[u8],
        piece: &mut [u8],
        tag: [u8; TAG],
    ) -> Option<()> {
        let (stream, mask) = self.stream(number);
        // As numbers, so that the time does not tell how far they are alike.
        let [is, was] = [self.tag(mask, known, piece), tag].map(u128::from_ne_bytes);
        (is == was).then(|| stream.apply_keystream_partial(piece.into()))
    }

    /// What a piece is encrypted with, and what its hash is.
    fn stream(&self, number: [u8; NUMBER]) -> (Stream<'_>, [u8; TAG]) {
        let mut first = [0; 16];
        first[..NUMBER].copy_from_slice(&number);
        first[15] = 1;
        let mut mask = first.into();
        self.aes.encrypt_block(&mut mask);
        first[15] = 2;
        (Stream::inner_iv_init(&self.aes, &first.into()), mask.into())
    }

    fn tag(&self, mask: [u8; TAG], known: &[u8], sealed: &[u8]) -> [u8; TAG] {
        let [hash, mask] = [self.hash.hash(known, sealed), mask].map(u128::from_ne_bytes);
        (hash ^ mask).to_ne_bytes()
    }
}

/// The bytes that a piece is encrypted with.
type Stream<'a> = ctr::CtrCore<&'a Aes256, ctr::flavors::Ctr32BE>;

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
        let open = |number, known: &[u8], piece: &[u8], tag| {
            let mut piece = piece.to_vec();
            sealing.open([number; 12], known, &mut piece, tag).map(|()| piece)
        };
        assert_eq!(open(7, b"known", &piece, tag).unwrap(), b"sixteen bytes...and some more");
        assert_eq!(open(8, b"known", &piece, tag), None);
        assert_eq!(open(7, b"knowN", &piece, tag), None);
        assert_eq!(open(7, b"known", &piece[1..], tag), None);
        assert_eq!(open(7, b"known", &piece, [0; 16]), None);
        assert_ne!(derive(&[1; 32], &[3; 32]), derive(&[1; 32], &[2; 32]));
        assert_ne!(digest(&[b"a", b"b"]), digest(&[b"b", b"a"]));
    }

    /// By a package that has it all, for each length up to where all of ours has been gone through twice.
    #[test]
    fn each_length_is_as_another_one_seals_it() {
        use aes_gcm::aead::AeadInOut;
        let other = aes_gcm::Aes256Gcm::new(&[5; KEY].into());
        let fast = Sealing::of(&[5; KEY]);
        let mut block = [0; 16].into();
        fast.aes.encrypt_block(&mut block);
        let of = |width| Sealing { hash: ghash::Key::of(block.into(), width), ..fast.clone() };
        let ours = [ghash::Width::None, ghash::Width::One, ghash::Width::most()]
            .map(|width| of(width.min(ghash::Width::most())));
        let text: Vec<u8> = (0..700u32).map(|at| ((at * at) >> 3) as u8).collect();
        for len in (0..text.len()).chain([256 << 10]) {
            let text: Vec<u8> = text.iter().copied().cycle().take(len).collect();
            let known = &text[..len.min(300) / 3];
            let number = [len as u8; NUMBER];
            let mut theirs = text.clone();
            let tag = other.encrypt_inout_detached(&number.into(), known, (&mut *theirs).into());
            let tag: [u8; TAG] = tag.unwrap().into();
            for ours in &ours {
                let mut piece = text.clone();
                assert_eq!(ours.seal(number, known, &mut piece), tag, "{len}");
                assert!(piece == theirs, "{len}");
                assert_eq!(ours.open(number, known, &mut piece, tag), Some(()));
                assert!(piece == text, "{len}");
            }
        }
    }
}
