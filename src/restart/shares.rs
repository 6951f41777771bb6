// SPDX-License-Identifier: LGPL-2.1-only
//! Who has what of the memory that processes of a tree have in common: pure decisions for [`super::pooled`].
//!
//! A fork(2) shares what its maker has at that moment. So a process that makes others has first what they have in common,
//! as its program had when it made them, and changes it between one child and the next as that did. What it has at the
//! end is its own again.

use crate::order;
use crate::resource::kinship::plan::Life;
use ckpt_abi::image::{CHUNK_MAX, Chunk};
use std::ops::Range;

/// Memory is decided about in pieces of so many bytes, at multiples of it; no chunk reaches into two.
const CELL: u64 = CHUNK_MAX;

/// What one process has in an area.
pub(super) struct Holder {
    /// When it is made ([`orders`]).
    pub order: usize,
    /// Its number in the image.
    pub process: u32,
    /// Its mappings.
    pub ranges: Vec<Range<u64>>,
    /// Their content, by address.
    pub chunks: Vec<Chunk>,
}

/// What a maker has in a cell now.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// Where the cell begins.
    pub cell: u64,
    /// Whose content it is, an index of the area's holders.
    pub holder: usize,
    /// A process that was made has it, too.
    pub given: bool,
}

/// Who is about to be made, by their orders.
pub(super) struct Birth {
    /// Those that are made now, with all that these make.
    pub young: Range<usize>,
    /// The end of those that the maker makes later.
    pub end: usize,
    /// The maker itself.
    pub maker: Option<usize>,
}

impl Birth {
    /// Whether a process is there to gain from what the maker has now, and whether it is made now.
    fn concerns(&self, order: usize) -> Option<bool> {
        let is_young = self.young.contains(&order);
        let is_later = (self.young.end..self.end).contains(&order) || Some(order) == self.maker;
        (is_young || is_later).then_some(is_young)
    }
}

/// The part of an address range that a cell is.
pub(super) fn cell_of(address: u64) -> u64 {
    address - address % CELL
}

/// Whether a chunk can be shared: it lies in one cell.
pub(super) fn is_sharable(chunk: &Chunk) -> bool {
    cell_of(chunk.address) == cell_of(end(chunk) - 1)
}

/// The end of a cell.
pub(super) fn cell_end(cell: u64) -> u64 {
    cell.saturating_add(CELL)
}

/// The address behind a chunk.
pub(super) fn end(chunk: &Chunk) -> u64 {
    chunk.address + u64::from(chunk.len)
}

impl Holder {
    /// What it has in a cell.
    pub(super) fn cell(&self, cell: u64) -> &[Chunk] {
        let first = self.chunks.partition_point(|chunk| chunk.address < cell);
        let len = self.chunks[first..].partition_point(|chunk| chunk.address < cell_end(cell));
        &self.chunks[first..first + len]
    }
}

/// How many bytes are the same in both: what lies at the same place of the image.
pub(super) fn common(a: &[Chunk], b: &[Chunk]) -> u64 {
    let (mut a, mut b, mut sum) = (a.iter().peekable(), b.iter().peekable(), 0);
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        if x.origin() == y.origin() {
            sum += end(x).min(end(y)).saturating_sub(x.address.max(y.address));
        }
        if end(x) < end(y) {
            a.next()
        } else {
            b.next()
        };
    }
    sum
}

fn length(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
}

/// What a maker is to have in which cells before a birth, with the bytes that are saved.
pub(super) fn choices(holders: &[Holder], now: &[Now], birth: &Birth) -> Vec<(u64, usize, u64)> {
    let young: Vec<usize> =
        (0..holders.len()).filter(|at| birth.young.contains(&holders[*at].order)).collect();
    // What many have one of these has, too, but for made-up cases.
    let mut candidates: Vec<usize> = [0, 1, young.len() / 2, young.len().wrapping_sub(1)]
        .iter()
        .filter_map(|at| young.get(*at).copied())
        .collect();
    candidates.dedup();
    let chunks = candidates.iter().flat_map(|at| &holders[*at].chunks);
    let mut cells: Vec<u64> = chunks.map(|chunk| cell_of(chunk.address)).collect();
    order::numbers(&mut cells);
    cells.dedup();
    let mut all = Vec::new();
    for cell in cells {
        let has = now.binary_search_by_key(&cell, |now| now.cell).ok().map(|at| now[at]);
        // Of equals the one that is made first.
        let gains = candidates.iter().rev().map(|at| (gain(holders, has, cell, *at, birth), *at));
        if let Some((gain @ 1.., at)) = gains.max_by_key(|(gain, _)| *gain) {
            all.push((cell, at, gain.unsigned_abs()));
        }
    }
    all
}

/// The bytes that are saved if the content of a cell becomes that of a holder: what those have in common with it who are
/// made now, without what it takes to make it, and without what the maker has to make again.
fn gain(holders: &[Holder], now: Option<Now>, cell: u64, to: usize, birth: &Birth) -> i64 {
    let new = holders[to].cell(cell);
    let old = now.map_or(&[][..], |now| holders[now.holder].cell(cell));
    let [new_len, old_len, both] =
        [length(new), length(old), common(new, old)].map(u64::cast_signed);
    if new_len == both && old_len == both {
        return 0;
    }
    let (mut gain, mut is_needed) = (both - new_len, false);
    for holder in holders {
        let Some(is_young) = birth.concerns(holder.order) else { continue };
        let own = holder.cell(cell);
        let before = common(old, own).cast_signed();
        let more = common(new, own).cast_signed() - before;
        gain += if is_young { more } else { more.max(0) };
        is_needed |= !is_young && before > 0;
    }
    let again = now.is_some_and(|now| now.given) && is_needed;
    gain - if again { old_len - both } else { 0 }
}

/// When each member is made: a number that grows, and the end of those of whom it is the maker, in whatever generation.
pub(super) fn orders(lives: &[Life]) -> Vec<Range<usize>> {
    let made: Vec<Vec<usize>> = lives.iter().map(|life| life.made().collect()).collect();
    let mut all = vec![0..0; lives.len()];
    let (mut next, mut open) = (1, vec![(0, 0)]);
    while let Some((at, nth)) = open.last_mut() {
        if let Some(child) = made.get(*at).and_then(|made| made.get(*nth)).copied() {
            *nth += 1;
            all[child].start = next;
            next += 1;
            open.push((child, 0));
        } else {
            all[*at].end = next;
            open.pop();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Pid;
    use crate::resource::kinship::plan::Step;
    use zerocopy::FromZeros;

    const BASE: u64 = 16 * CELL;

    fn chunk(at: u64, len: u64, offset: u64) -> Chunk {
        let (len, address) = (len as u32, BASE + at);
        Chunk { address, len, stored: len, offset, ..Chunk::new_zeroed() }
    }

    /// A process that has in each cell what is at this place of the image.
    fn holder(order: usize, offsets: &[u64]) -> Holder {
        let chunks = (0..).zip(offsets).map(|(n, offset)| chunk(n * CELL, CELL, *offset)).collect();
        let range = BASE..BASE + offsets.len() as u64 * CELL;
        Holder { order, process: order as u32, ranges: std::iter::once(range).collect(), chunks }
    }

    #[test]
    fn the_same_bytes_are_those_at_the_same_place() {
        let whole = [chunk(0, 0x10000, 0x100000)];
        let pieces = [
            chunk(0, 0x4000, 0x100000),
            chunk(0x4000, 0x4000, 0x900000),
            chunk(0x8000, 0x8000, 0x108000),
        ];
        assert_eq!(common(&whole, &pieces), 0xc000);
        assert_eq!(common(&pieces, &whole), 0xc000);
        assert_eq!(common(&pieces, &[]), 0);
        assert_eq!(common(&pieces, &pieces), 0x10000);
    }

    #[test]
    fn makers_have_what_those_have_in_common_that_they_make() {
        // The root has changed what it had in common with its first two children; then came two more.
        let all =
            [holder(0, &[2]), holder(1, &[1]), holder(2, &[1]), holder(3, &[2]), holder(4, &[2])];
        let first = Birth { young: 0..5, end: 5, maker: None };
        assert_eq!(choices(&all, &[], &first), [(BASE, 0, 2 * CELL)]);
        let now = |holder, given| Now { cell: BASE, holder, given };
        let birth = |order| Birth { young: order..order + 1, end: 5, maker: Some(0) };
        assert_eq!(choices(&all, &[now(0, false)], &birth(1)), [(BASE, 1, CELL)]);
        assert_eq!(choices(&all, &[now(1, true)], &birth(2)), []);
        assert_eq!(choices(&all, &[now(1, true)], &birth(3)), [(BASE, 3, 2 * CELL)]);
        assert_eq!(choices(&all, &[now(3, true)], &birth(4)), []);
    }

    #[test]
    fn what_one_process_has_alone_is_its_own() {
        let all = [holder(0, &[1, 2]), holder(1, &[1, 3])];
        let first = Birth { young: 0..2, end: 2, maker: None };
        assert_eq!(choices(&all, &[], &first), [(BASE, 0, CELL)]);
    }

    #[test]
    fn orders_are_those_of_births() {
        let life = |steps: Vec<Step>| Life { steps, ..Life::default() };
        let lives = [
            life(vec![Step::Make(3), Step::LeadGroup, Step::Make(1)]),
            life(vec![Step::MakeSession(Pid::new(9), vec![2])]),
            life(vec![]),
            life(vec![Step::MakeOrphan(4)]),
            life(vec![]),
        ];
        assert_eq!(orders(&lives), [0..5, 3..5, 4..5, 1..3, 2..3]);
    }
}
