// SPDX-License-Identifier: LGPL-2.1-only
//! How the content of a chunk lies in the file: whatever is between a program's bytes and those of a
//! [`Sink`](super::write::Sink) or [`Source`](super::source::Source), which both know nothing of it. A checksum is that
//! of the bytes in the file, so nothing comes here on its way back that was not checked.

use ckpt_abi::image::{Codec, PAGE};
use std::borrow::Cow;

/// What goes into the file for some content.
pub(super) fn store(codec: Codec, content: &[u8]) -> Cow<'_, [u8]> {
    match codec {
        Codec::Plain if content.len().is_multiple_of(PAGE as usize) => content.into(),
        Codec::Plain => {
            let mut padded = content.to_vec();
            padded.resize(content.len().next_multiple_of(PAGE as usize), 0);
            padded.into()
        }
    }
}

/// Makes the content, which is as long as `content`, of what was in the file; None where it is not so long.
pub(super) fn restore(codec: Codec, stored: &[u8], content: &mut [u8]) -> Option<()> {
    match codec {
        Codec::Plain => content.copy_from_slice(stored.get(..content.len())?),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back() {
        for len in [1, 4095, 4096, 8192] {
            let content = vec![7; len];
            let stored = store(Codec::Plain, &content);
            assert_eq!(stored.len(), len.next_multiple_of(PAGE as usize));
            let mut again = vec![0; len];
            assert_eq!(restore(Codec::Plain, &stored, &mut again), Some(()));
            assert_eq!(again, content);
            assert_eq!(restore(Codec::Plain, &stored[..len - 1], &mut again), None);
        }
    }
}
