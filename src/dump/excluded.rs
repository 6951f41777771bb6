// SPDX-License-Identifier: LGPL-2.1-only
//! Memory that the program wants left out (ckpt_exclude): its whole pages come back as zeros, as
//! pages do that the image does not hold.

use crate::image::PAGE;
use crate::resource::memory::{Area, Pages};
use std::ops::Range;

/// Cuts the whole pages of the ranges out of the areas. A mapping of a big data file is left as it
/// is: what the image does not hold of it would come back from the file.
pub(crate) fn cut(areas: Vec<Area>, ranges: &[[u64; 2]]) -> Vec<Area> {
    let used = ranges.iter().filter(|[start, end]| start < end);
    used.fold(areas, |areas, [start, end]| {
        let start = start.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let end = end - end % PAGE;
        areas.into_iter().flat_map(|area| without(area, start, end)).collect()
    })
}

fn without(area: Area, start: u64, end: u64) -> Vec<Area> {
    let (start, end) = (start.max(area.start), end.min(area.end));
    if start >= end || area.pages == Pages::Written {
        return vec![area];
    }
    let pieces = [area.start..start, end..area.end];
    pieces.into_iter().filter(|piece| !piece.is_empty()).map(|piece| part(&area, piece)).collect()
}

fn part(area: &Area, piece: Range<u64>) -> Area {
    let inside = |r: &Range<u64>| r.start.max(piece.start)..r.end.min(piece.end);
    let known = area
        .known
        .as_ref()
        .map(|ranges| ranges.iter().map(inside).filter(|r| r.start < r.end).collect());
    Area { start: piece.start, end: piece.end, known, part: true, ..area.clone() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::rolling::is_trackable;
    use super::*;

    pub(in super::super) fn area(start: u64, end: u64, pages: Pages) -> Area {
        let (unreadable, writable, at_once, shared) = (false, true, false, false);
        Area {
            start,
            end,
            pages,
            unreadable,
            writable,
            at_once,
            known: None,
            shared,
            part: false,
            streamed: false,
        }
    }

    #[test]
    fn whole_pages_are_cut_out() {
        let areas =
            vec![area(0x1000, 0x9000, Pages::Populated), area(0xa000, 0xb000, Pages::Whole)];
        let left = cut(areas, &[[0x2001, 0x4fff], [0, 0], [0x8000, 0xb000]]);
        let left: Vec<_> = left.iter().map(|a| (a.start, a.end)).collect();
        assert_eq!(left, [(0x1000, 0x3000), (0x4000, 0x8000)]);
    }

    #[test]
    fn parts_are_not_tracked() {
        let whole = area(0x1000, 0x9000, Pages::Populated);
        assert!(is_trackable(&whole));
        assert!(!cut(vec![whole], &[[0x2000, 0x3000]]).iter().any(is_trackable));
    }

    #[test]
    fn what_is_known_is_cut_too() {
        let known = Some(vec![0x1000..0x5000, 0x7000..0x8000]);
        let area = Area { known, ..area(0x1000, 0x9000, Pages::Populated) };
        let left = cut(vec![area], &[[0x2000, 0x3000]]);
        let known: Vec<_> = left.iter().flat_map(|a| a.known.clone().unwrap()).collect();
        assert_eq!(known, [0x1000..0x2000, 0x3000..0x5000, 0x7000..0x8000]);
    }

    #[test]
    fn data_files_are_left_alone() {
        let left = cut(vec![area(0x1000, 0x9000, Pages::Written)], &[[0x1000, 0x9000]]);
        assert_eq!((left.len(), left[0].start, left[0].end), (1, 0x1000, 0x9000));
    }
}
