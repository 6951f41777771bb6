// SPDX-License-Identifier: LGPL-2.1-only
//! How long restartable sequences' areas are (rseq(2)).

use crate::proc::{self, Process};

/// The length that this kernel takes for an area registered with `len`: before Linux 6.3 only
/// [`RSEQ_SIZE`], then that or anything from its own `feature` size on (kernel/rseq.c).
pub(super) fn rseq_len(len: u64, feature: u64) -> u64 {
    if feature != 0 && len >= feature { len } else { RSEQ_SIZE }
}

/// Bytes of the first struct rseq; every area has them.
const RSEQ_SIZE: u64 = 32;

/// Bytes of struct rseq that this kernel fills, 0 before Linux 6.3.
pub(super) fn feature_size() -> u64 {
    const AT_RSEQ_FEATURE_SIZE: u64 = 27;
    let auxv = Process::own().and_then(|own| own.auxv()).unwrap_or_default();
    proc::auxv_value(&auxv, AT_RSEQ_FEATURE_SIZE).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_rseq_areas() {
        assert_eq!(rseq_len(32, 0), 32);
        assert_eq!(rseq_len(40, 0), 32);
        assert_eq!(rseq_len(40, 28), 40);
        assert_eq!(rseq_len(32, 40), 32);
        assert_eq!(rseq_len(36, 40), 32);
    }
}
