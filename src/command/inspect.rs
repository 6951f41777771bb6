//! `ckpt verify FILE` and `ckpt info FILE`

use crate::error::Result;
use crate::image::read::Image;
use ckpt_abi::image::{Descriptor, Loss, Machine, Process, SectionKind, Thread, Vma};
use std::path::Path;

/// Checks every byte of a checkpoint.
pub fn verify(file: &Path) -> Result<u8> {
    let image = Image::open(file)?;
    image.verify()?;
    super::print(&format!("{}: whole, {} bytes\n", file.display(), image.header().file_len))
}

/// Shows what a checkpoint holds.
pub fn info(file: &Path) -> Result<u8> {
    let image = Image::open(file)?;
    let process: Process = image.record(SectionKind::Process)?;
    let machine: Machine = image.record(SectionKind::Machine)?;
    let threads: Vec<Thread> = image.records(SectionKind::Threads)?;
    let vmas: Vec<Vma> = image.records(SectionKind::Vmas)?;
    let descriptors: Vec<Descriptor> = image.records(SectionKind::Descriptors)?;
    let losses: Vec<Loss> = image.records(SectionKind::Losses)?;
    let arguments = image.text(process.arguments).to_string_lossy().replace('\0', " ");
    let text = |text| image.text(text).to_string_lossy().into_owned();
    let mut lines = vec![
        ("program", arguments),
        ("executable", text(process.exe)),
        ("directory", text(process.cwd)),
        ("process", process.pid.to_string()),
        ("generation", process.generation.to_string()),
        ("host", text(machine.host)),
        ("kernel", text(machine.kernel)),
        ("ckpt", text(machine.version)),
        ("threads", threads.len().to_string()),
        ("mappings", vmas.len().to_string()),
        ("descriptors", descriptors.len().to_string()),
        ("bytes", image.header().file_len.to_string()),
    ];
    lines.extend(losses.iter().map(|loss| ("not saved", text(loss.what))));
    let table: String = lines.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect();
    super::print(&table)
}
