// SPDX-License-Identifier: LGPL-2.1-only
//! A program whose payload another version of ckpt has put there: it is served by the copy of that ckpt that lies
//! beside it.

use crate::error::{Because, Error, Kind, Result};
use crate::image::stub;
use crate::inject::monitor;
use crate::inject::region::Region;
use crate::proc::Process;
use crate::rights::{self, Compared};
use ckpt_abi::region::VERSION;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Most bytes that a copy of ckpt may have.
const LONGEST: u64 = 64 << 20;

/// Becomes the ckpt of the process's payload, with the same arguments, if that is of another version; else returns.
/// A process that cannot be looked at is left to what comes next.
///
/// # Errors
/// That ckpt is not to be executed: it lies in memory of somebody who may do less than we may, or it is none.
pub(super) fn give_way(process: &Process, args: &[OsString]) -> Result<()> {
    let Ok(Some((memory, region))) = Region::of(process) else { return Ok(()) };
    let control = &region.control;
    if control.version == VERSION {
        return Ok(());
    }
    let refused = |why: &str| {
        let pid = process.pid();
        let text = format!("process {pid} was started by another version of ckpt, {why}");
        Error::new(text).of(Kind::NotPermitted).hint("use that version, as the program's own user")
    };
    if !matches!(rights::compare(process)?, Compared::Equal) {
        return Err(refused(
            "whose copy in its memory is not executed with more rights than it has",
        ));
    }
    let mut copy = vec![0; control.exe_len.min(LONGEST) as usize];
    memory.read(region.base + control.exe_start, &mut copy)?;
    if !copy.starts_with(b"\x7fELF") || copy == *stub::own()? {
        return Err(refused("and has no whole copy of it in its memory"));
    }
    let file = monitor::executable(&copy).because(|| "cannot make an executable in memory")?;
    let word = |text: OsString| CString::new(text.into_vec()).unwrap_or_default();
    let argv: Vec<_> = args.iter().cloned().map(word).collect();
    let variable = |(name, value): (OsString, OsString)| {
        word(OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat()))
    };
    let environment: Vec<_> = std::env::vars_os().map(variable).collect();
    match nix::unistd::fexecve(file, &argv, &environment) {
        Ok(never) => match never {},
        Err(e) => {
            Err(e).because(|| "cannot execute the version of ckpt that the program was started by")
        }
    }
}
