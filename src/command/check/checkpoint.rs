// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt check FILE`: whether a checkpoint can restart here.

use crate::command::facts::Facts;
use crate::error::{Because, Result};
use crate::image::read::Image;
use crate::resource::cpu::{Set, level_name};
use crate::resource::descriptor;
use crate::restart::{MapPath, machine, path_of, phase1_check};
use ckpt_abi::image::{VmaKind, vma_flag};
use std::path::PathBuf;

/// Exit status when the checkpoint cannot restart here.
const NO: u8 = 1;

/// Shows what a checkpoint expects, and whether this machine has it.
pub fn check(image: &Image, map_path: &MapPath) -> Result<(Facts, u8)> {
    image.verify()?;
    let saved = phase1_check::check(image)?;
    let names = nix::sys::utsname::uname().because(|| "uname")?;
    let (needed, here) = (Set(saved.process.cpu), Set::here());
    let lacks: Vec<_> = machine::lacks(image, &saved).into_iter().map(|l| l.what).collect();
    let files = files(image, &saved, map_path);
    let missing = shown(files.iter().filter(|path| !path.exists()));
    let can = lacks.is_empty() && missing.is_empty();
    let mut facts = Facts::default();
    facts.add("can_restart_here", can);
    facts.add("kernel", image.text(saved.machine.kernel).to_string_lossy().into_owned());
    facts.add("kernel_here", names.release().to_string_lossy().into_owned());
    facts.add("cpu_level", level_name(needed.level()));
    facts.add("cpu_level_here", level_name(here.level()));
    facts.add("cpu_missing", needed.without(&here).names());
    facts.add("obstacles", lacks);
    facts.add("files", shown(&files));
    facts.add("files_missing", missing);
    Ok((facts, if can { 0 } else { NO }))
}

/// The files that must be there at a restart, by the names that they have here.
pub fn files(image: &Image, saved: &phase1_check::Saved, map_path: &MapPath) -> Vec<PathBuf> {
    let by_path = [VmaKind::SharedFile as u32, VmaKind::PrivateFile as u32];
    let needed = saved.vmas.iter().filter(|v| v.flags & vma_flag::CARRIED == 0);
    let mapped = needed.filter(|v| by_path.contains(&v.kind)).map(|v| v.name);
    let open = saved.descriptors.iter();
    let open = open.filter(|d| descriptor::needs_path(d));
    let texts = mapped.chain(open.map(|d| d.path)).map(|text| path_of(image, text));
    let mut paths: Vec<PathBuf> =
        texts.chain([saved.cwd.clone()]).map(|path| map_path.apply(path)).collect();
    paths.sort();
    paths.dedup();
    paths
}

/// Paths as they are shown.
pub fn shown<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<String> {
    paths.into_iter().map(|p| p.display().to_string()).collect()
}
