// SPDX-License-Identifier: LGPL-2.1-only
//! Pages of zeros, which nobody writes or sends.

use super::PAGE;
use ckpt_loops::pages::is_zero;

/// The stretches of a piece that are not pages of zeros, with their places in it. Pages are counted
/// from the piece's start.
pub(crate) fn nonzero(piece: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let page = move |at: usize| &piece[at..(at + PAGE as usize).min(piece.len())];
    let zero = move |at: usize| is_zero(page(at));
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < piece.len() && zero(at) {
            at += PAGE as usize;
        }
        let begin = at;
        while at < piece.len() && !zero(at) {
            at += PAGE as usize;
        }
        (begin < piece.len()).then(|| (begin, &piece[begin..at.min(piece.len())]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_zeros_are_left_out() {
        let mut piece = vec![0; 5 * 4096 + 100];
        assert_eq!(nonzero(&piece).count(), 0);
        assert_eq!(nonzero(&[]).count(), 0);
        piece[4096] = 1;
        piece[3 * 4096 - 1] = 1;
        piece[5 * 4096 + 99] = 1;
        let found: Vec<_> = nonzero(&piece).map(|(at, bytes)| (at, bytes.len())).collect();
        assert_eq!(found, [(4096, 8192), (5 * 4096, 100)]);
    }
}
