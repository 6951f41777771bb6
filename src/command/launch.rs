//! `ckpt PROGRAM ARGS…`

use crate::error::{Because, Result};
use crate::image::stub;
use crate::inject::launch::launch;
use crate::settings::{self, Name, Settings};
use std::ffi::{OsStr, OsString};

/// Becomes the program.
pub fn run(settings: &Settings, program: &OsStr, args: &[OsString]) -> Result<u8> {
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    let own = Name::parse(&settings::default_name(program))?;
    let settings = settings.clone().or(Settings { name: Some(own), ..Settings::default() });
    let config = settings.resolve(&here)?.apply(settings::default_config());
    match launch(program, args, &config, &stub::own()?)? {}
}
