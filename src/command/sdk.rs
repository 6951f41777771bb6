// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt sdk DIR`

use crate::error::{Because, Result};
use crate::image::stub;
use crate::inject::library;
use crate::packed::{Packed, packed};
use ckpt_abi::api::FUNCTIONS;
use std::path::Path;

static HEADER: Packed = packed!("ckpt.h");
static PYTHON: Packed = packed!("ckpt.py");
static PAGE: Packed = packed!("ckpt.3");

/// Writes the library, its header and the rest below `dir`.
#[inline(never)]
pub(super) fn run(dir: &Path) -> Result<u8> {
    write(dir, "lib/libckpt.so", &library::with(&stub::own()?)?)?;
    write(dir, "include/ckpt.h", &HEADER.unpacked()?)?;
    write(dir, "lib/pkgconfig/ckpt.pc", description().as_bytes())?;
    write(dir, "lib/python/ckpt.py", &PYTHON.unpacked()?)?;
    write(dir, "share/man/man3/ckpt_ckpt.3", &PAGE.unpacked()?)?;
    // The page describes all functions; each other one's name leads to it.
    for function in FUNCTIONS.into_iter().filter(|name| *name != "ckpt_ckpt") {
        write(dir, &format!("share/man/man3/{function}.3"), b".so man3/ckpt_ckpt.3\n")?;
    }
    super::print(&format!("wrote libckpt.so, ckpt.h and the rest below {}\n", dir.display()))
}

/// For pkg-config(1); the files may be moved together.
fn description() -> String {
    format!(
        "prefix=${{pcfiledir}}/../..\n\
         libdir=${{prefix}}/lib\n\
         includedir=${{prefix}}/include\n\n\
         Name: ckpt\n\
         Description: Checkpoints of running programs\n\
         Version: {}\n\
         Cflags: -I${{includedir}}\n\
         Libs: -L${{libdir}} -lckpt\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Replaces a file as a whole: programs may have the old library mapped.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let parent = path.parent().unwrap_or(dir);
    std::fs::create_dir_all(parent)
        .because(|| format!("cannot make the directory {}", parent.display()))?;
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let written = std::fs::write(&draft, bytes).and_then(|()| std::fs::rename(&draft, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written.because(|| format!("cannot write {}", path.display()))
}
