//! `ckpt PROGRAM ARGS…`
//!
//! # Safety
//! The environment is changed while there is only one thread.
#![allow(unsafe_code)]

use crate::cli::Resume;
use crate::error::{Because, Result};
use crate::image::stub;
use crate::inject::launch::launch;
use crate::resource::cpu::{
    Set,
    limit::{self, Limit},
};
use crate::settings::{self, Name, Settings};
use ckpt_abi::region::Config;
use std::ffi::{OsStr, OsString};

/// Becomes the program, or resumes it from its checkpoint.
pub fn run(
    settings: &Settings,
    cpu: Option<&Limit>,
    program: &OsStr,
    args: &[OsString],
    resume: Option<Resume>,
) -> Result<u8> {
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    let own = Name::parse(&settings::default_name(program))?;
    let settings = settings.clone().or(Settings { name: Some(own), ..Settings::default() });
    let settings = settings.resolve(&here)?;
    let mut config = settings.apply(settings::default_config());
    let template = settings::template(&config)?;
    if let Some(limit) = cpu {
        restrict(limit, &mut config)?;
    }
    if let Some(resume) = resume {
        super::resume::resume(&template, &settings, resume)?;
    }
    match launch(program, args, &config, &stub::own()?)? {}
}

/// Makes libraries of the program use no more of the CPU, and notes that for its checkpoints.
fn restrict(limit: &Limit, config: &mut Config) -> Result<()> {
    let here = Set::here();
    let allowed = limit::allowed(limit, &here)?;
    allowed.note(config);
    for (name, value) in limit::environment(&allowed, &here, |name| std::env::var_os(name)) {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}
