// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt check FILE`: whether a checkpoint can restart here.

use crate::command::facts::Facts;
use crate::error::{Because, Result};
use crate::image::read::Image;
use crate::order;
use crate::resource::cpu::{Set, level_name};
use crate::resource::descriptor;
use crate::restart::phase1_check::{self, Saved, Whole};
use crate::restart::{MapPath, machine};
use ckpt_abi::image::{VmaKind, vma_flag};
use std::path::PathBuf;

/// Exit status when the checkpoint cannot restart here.
const NO: u8 = 1;

/// Shows what a checkpoint expects, and whether this machine has it.
pub(crate) fn check(image: &Image, map_path: &MapPath) -> Result<(Facts, u8)> {
    image.verify()?;
    let (whole, all) = phase1_check::check_all(image, map_path)?;
    let names = nix::sys::utsname::uname().because(|| "uname")?;
    let here = Set::here();
    let needed = Set(all.first().map_or([0; 2], |first| first.process.cpu));
    let mut lacks: Vec<String> = Vec::new();
    for lack in all.iter().flat_map(|saved| machine::lacks(&whole, saved)) {
        if !lacks.contains(&lack.what) {
            lacks.push(lack.what);
        }
    }
    let files = files_of_all(&whole, &all);
    let missing = shown(files.iter().filter(|path| !path.exists()));
    let can = lacks.is_empty() && missing.is_empty();
    let mut facts = Facts::default();
    facts.add("can_restart_here", can);
    facts.add("kernel", image.text(whole.machine.kernel).to_string_lossy().into_owned());
    facts.add("kernel_here", names.release().to_string_lossy().into_owned());
    facts.add("cpu_level", level_name(needed.level()));
    facts.add("cpu_level_here", level_name(here.level()));
    facts.add("cpu_missing", needed.without(&here).names());
    if all.len() > 1 {
        facts.add("ids_of_jobs", super::machine::ids_of_jobs());
    }
    facts.add("obstacles", lacks);
    facts.add("files", shown(&files));
    facts.add("files_missing", missing);
    Ok((facts, if can { 0 } else { NO }))
}

/// The files that must be there at a restart, by the names that they have here.
pub(crate) fn files(whole: &Whole<'_>, saved: &Saved<'_>) -> Vec<PathBuf> {
    let by_path = [VmaKind::SharedFile as u32, VmaKind::PrivateFile as u32];
    let needed = saved.vmas.iter().filter(|v| v.flags & vma_flag::CARRIED == 0);
    let mapped = needed.filter(|v| by_path.contains(&v.kind)).map(|v| v.name);
    let open = saved.descriptors.iter();
    let open = open.filter(|d| descriptor::needs_path(d));
    let paths = mapped.chain(open.map(|d| d.path)).map(|text| whole.path(text));
    let mut paths: Vec<PathBuf> = paths.chain([saved.cwd.clone()]).collect();
    order::by(&mut paths, Ord::cmp);
    paths.dedup();
    paths
}

/// The same of all processes.
pub(crate) fn files_of_all(whole: &Whole<'_>, all: &[Saved<'_>]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = all.iter().flat_map(|saved| files(whole, saved)).collect();
    order::by(&mut paths, Ord::cmp);
    paths.dedup();
    paths
}

/// Paths as they are shown.
pub(crate) fn shown<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<String> {
    paths.into_iter().map(|p| p.display().to_string()).collect()
}
