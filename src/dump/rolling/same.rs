// SPDX-License-Identifier: LGPL-2.1-only
//! What of memory is as an older checkpoint has it.

use super::PageSet;
use crate::order;
use std::ops::Range;

/// What is as it is in an older checkpoint.
pub(in crate::dump) struct Same<'a> {
    pub(super) differing: PageSet,
    pub(super) whole: &'a [[u64; 2]],
}

impl Same<'_> {
    /// Of ordered ranges those that are as they were, and those that may not be.
    pub(in crate::dump) fn split(&self, ranges: &[Range<u64>]) -> [Vec<Range<u64>>; 2] {
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for range in ranges {
            let mut at = range.start;
            let first = self.whole.partition_point(|[_, end]| *end <= at);
            for [start, end] in
                self.whole[first..].iter().take_while(|[start, _]| *start < range.end)
            {
                let (start, end) = (at.max(*start), range.end.min(*end));
                outside.extend(Some(at..start).filter(|gap| !gap.is_empty()));
                inside.push(start..end);
                at = end;
            }
            outside.extend(Some(at..range.end).filter(|rest| !rest.is_empty()));
        }
        let [same, mut other] = self.differing.split(&inside);
        other.append(&mut outside);
        order::by_key(&mut other, |range| (range.start, 0));
        [same, other]
    }
}
