// SPDX-License-Identifier: LGPL-2.1-only
//! What a client says to a checkpoint server, as bytes in memory, and what must hold afterwards.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use ckpt::serve::channel::{KEY, Wire};
use ckpt::serve::protocol::{Entry, Seal};
use ckpt::serve::session::answer;
use ckpt::serve::store::{Limits, Store};
use ckpt::serve::users::User;
use ckpt::settings::server::ServerName;

/// Most bytes of an image in the store.
const MAX_BYTES: u64 = 1 << 20;

/// A connection that has said all it will say.
struct Memory<'a> {
    said: &'a [u8],
    heard: u64,
}

impl Read for Memory<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.said.read(bytes)
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heard += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Memory<'_> {}

/// A store in a temporary directory; removed when dropped.
pub(crate) struct House {
    store: Arc<Store>,
    outer: PathBuf,
}

impl House {
    /// A new one, with a file that no client may change and links that lead to it.
    pub(crate) fn new() -> Self {
        let outer = std::env::temp_dir().join(format!("ckpt-fuzz-{}", std::process::id()));
        let inner = outer.join("store");
        fs::create_dir_all(&inner).expect("a directory");
        fs::write(outer.join("secret"), "secret").expect("a file");
        std::os::unix::fs::symlink("..", inner.join("up")).expect("a link");
        let limits = Limits { max_bytes: MAX_BYTES, quota: 8 * MAX_BYTES, whole: false };
        let store = Arc::new(Store::open(&inner, limits).expect("a store"));
        Self { store, outer }
    }

    /// Has the server answer, in the clear and with a key.
    pub(crate) fn answer(&self, said: &[u8]) {
        for key in [None, Some(&[7; KEY])] {
            let mut stream = Memory { said, heard: 0 };
            let user = User { name: String::new(), key: key.copied(), store: self.store.clone() };
            let record = answer(&mut stream, &[user], "fuzz".into(), false);
            assert!(key.is_none() || record.what == "hello", "{record:?}");
            assert!(stream.heard < 64 << 20, "{record:?}");
        }
        let own = fs::read_dir(self.outer.join("store/.ckpt-serve")).expect("the server's folder");
        assert!(own.flatten().all(|entry| entry.file_name() == "packs"), "litter");
        assert_eq!(fs::read(self.outer.join("secret")).expect("the secret"), b"secret");
        assert_eq!(fs::read_dir(&self.outer).expect("the directory").count(), 2);
        let _ = Entry::read(said);
        let _ = Seal::read(said);
        let _ = ServerName::parse_folder(OsStr::from_bytes(said));
    }

    /// Bytes and number of the stored images.
    pub(crate) fn stored(&self) -> (u64, u64) {
        let mut sum = (0, 0);
        let mut add = |entry: Entry| {
            assert!(entry.len <= MAX_BYTES, "{entry:?}");
            sum = (sum.0 + entry.len, sum.1 + 1);
            Ok(())
        };
        self.store.list("", &mut add).expect("a list");
        assert!(sum.0 <= 8 * MAX_BYTES, "{sum:?}");
        sum
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.outer);
    }
}
