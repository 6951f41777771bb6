// SPDX-License-Identifier: LGPL-2.1-only
//! Private mappings of files whose content is in the image: a page that was not written goes on to show the file.

use super::Area;
use crate::error::Result;
use crate::image::PAGE;
use crate::order;
use crate::proc::maps::Vma;
use crate::proc::{pagemap::Pagemap, sparse};
use crate::resource::{Common, Gathered, Target};
use ckpt_abi::image::{Object, VmaKind, object_flag, vma_flag};
use std::fs::File;
use std::ops::Range;

/// Notes which mappings show which object. Where that has holes they are not read, for to touch a hole of a memfd is to
/// fill it.
#[inline(never)]
pub(crate) fn save(
    target: &Target<'_>,
    areas: &mut [Area],
    gathered: &mut Gathered,
    common: &Common,
) -> Result<()> {
    let plain = |vma: &&Vma| vma.inode != 0 && !vma.shared && !vma.exec && !vma.flags.has("ht");
    let private = |kind| kind == VmaKind::Private as u32;
    for vma in target.vmas.iter().filter(plain) {
        let same = |o: &Object| {
            o.flags & object_flag::WHOLE != 0 && (o.device, o.inode) == (vma.device, vma.inode)
        };
        let Some(index) = common.objects.iter().position(same) else { continue };
        let Some(record) = gathered.vmas.iter_mut().find(|r| r.start == vma.start) else {
            continue;
        };
        if !private(record.kind) || record.flags & (vma_flag::FOLLOWS | vma_flag::REGION) != 0 {
            continue;
        }
        let size = common.objects[index].size;
        (record.object, record.file_size) = (index as u32, size);
        record.flags |= vma_flag::FOLLOWS;
        let stream = common.streams.iter().find(|stream| stream.object == index as u32);
        let file = stream.and_then(|stream| File::open(&stream.path).ok());
        let area = areas.iter_mut().find(|area| area.start == vma.start);
        if let (Some(file), Some(area)) = (file, area) {
            let mut ranges = Pagemap::of(target.process())?.populated(vma.start, vma.end, true)?;
            ranges.extend(data(&file, size, vma.start..vma.end, vma.offset));
            // What is behind the end is found out by trying.
            let shown = size.saturating_sub(vma.offset).next_multiple_of(PAGE).min(vma.len());
            ranges.push(vma.start + shown..vma.end);
            area.known = Some(order::joined(ranges));
        }
    }
    Ok(())
}

/// The addresses at which a mapping of a file from `offset` on shows data.
pub(crate) fn data(
    file: &File,
    size: u64,
    at: Range<u64>,
    offset: u64,
) -> impl Iterator<Item = Range<u64>> {
    let end = offset + (at.end - at.start);
    let inside = move |data: Range<u64>| {
        let (first, last) = (data.start.max(offset), data.end.next_multiple_of(PAGE).min(end));
        (first < last).then(|| at.start + (first - offset)..at.start + (last - offset))
    };
    sparse::data(file, size).filter_map(inside)
}
