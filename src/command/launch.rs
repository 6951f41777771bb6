// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt PROGRAM ARGS…`
//!
//! # Safety
//! The environment is changed while there is only one thread.
#![allow(unsafe_code)]

use super::destination;
use super::identity::{self, Identity};
use crate::cli::{self, Resume};
use crate::error::{Because, CANNOT_EXECUTE, Error, NOT_FOUND, Result};
use crate::image::stub;
use crate::image::{file::is_checkpoint, read};
use crate::inject::{self, beforehand, launch::launch};
use crate::proc::Pid;
use crate::resource::cpu::{
    Set,
    limit::{self, CpuLimit},
};
use crate::resource::kinship;
use crate::restart::skeleton::stay;
use crate::settings::{self, Name, Settings, Values};
use ckpt_abi::region::Config;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Becomes the program, or its checkpoint.
pub(super) fn run(
    settings: &Settings,
    cpu: Option<&CpuLimit>,
    program: &OsStr,
    args: &[OsString],
    resume: Option<Resume>,
    replace: bool,
) -> Result<u8> {
    stay::stay_if_needed(false, true)?;
    destination::open_images_with(settings.transfer.key.as_ref(), resume.is_some())?;
    beforehand::refuse(program)?;
    refuse_checkpoint(program)?;
    refuse_rank(program, |name| std::env::var_os(name))?;
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    let own = Name::parse(&settings::default_name(program))?;
    let named = settings.name.is_some();
    let keep_finished = resume.as_ref().map(|_| false);
    let usual = Settings { name: Some(own), keep_finished, ..Settings::default() };
    let settings = settings.clone().or(usual);
    let settings = settings.resolve(&here)?;
    let mut config = settings.apply(settings::default_config());
    let template = settings::template(&config)?;
    let identity = Identity::of(program, args, &here)?;
    config.launched = identity.numbers();
    config.run = settings::fresh_run();
    config.begun = kinship::begun(Pid::own());
    if let Some(limit) = cpu {
        restrict(limit, &mut config)?;
    }
    if let Some(resume) = resume {
        super::resume::resume(&template, &settings, &resume, &identity)?;
    } else if !named && !replace {
        let values = Values::of(Pid::own());
        identity::refuse_to_replace(&identity, &template.expand(&values, 1))?;
    }
    destination::check_said(&settings)?;
    let failed = launch(program, args, &config, &stub::own()?);
    match failed.map_err(|e| if e.status() == NOT_FOUND { e.or_else_meant(program) } else { e })? {}
}

/// Refuses a checkpoint in the place of a program: it brings its own ckpt, and restarts by that.
fn refuse_checkpoint(program: &OsStr) -> Result<()> {
    let path = inject::launch::executable(program);
    let Some(path) = path.filter(|path| read::open(path).is_ok_and(|file| is_checkpoint(&file)))
    else {
        return Ok(());
    };
    let shown = path.display();
    let sentence = format!("{shown} is a checkpoint, which restarts without the ckpt command");
    let way_out = format!("run it directly: {shown} [OPTIONS...]; or ckpt restart {shown}");
    Err(Error::new(sentence).hint(way_out).with_status(CANNOT_EXECUTE))
}

/// Refuses one of several processes of an MPI job: each would be saved by itself, at a moment of its own, and the
/// messages between them would be lost.
fn refuse_rank(program: &OsStr, env: impl Fn(&str) -> Option<OsString>) -> Result<()> {
    // What says that there are several, and what says that they talk by MPI: OpenMPI, MPICH and its kin, Slurm with PMIx.
    const SIZES: [(&str, &str); 3] = [
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_SIZE", "PMI_SIZE"),
        ("SLURM_STEP_NUM_TASKS", "PMIX_RANK"),
    ];
    let number = |name: &str| env(name)?.to_str()?.parse::<u32>().ok();
    for (size, sign) in SIZES {
        let Some(count) = number(size).filter(|count| *count > 1 && env(sign).is_some()) else {
            continue;
        };
        let program = program.display();
        let text = format!(
            "{program} is one of {count} processes that mpirun or srun has started ({sign}), which must be saved together"
        );
        return Err(Error::new(text).hint(format!(
            "let ckpt stand in front: ckpt mpirun -np {count} {program}; programs that do not talk to each other are started with env -u {sign}"
        )));
    }
    Ok(())
}

impl Error {
    /// The same error of a program that was not found, with what may have been meant by its name.
    fn or_else_meant(self, program: &OsStr) -> Self {
        let name = program.to_string_lossy();
        if name.contains('/') {
            return match beforehand::missing_interpreter(Path::new(program))
                .map(|path| path.display().to_string())
            {
                Some(path) => self
                    .hint(format!("its interpreter {path}, named in its first line, is missing")),
                None => self,
            };
        }
        match cli::nearest_subcommand(program) {
            _ if Path::new(program).is_file() => self.hint(format!(
                "there is one in this directory, which is not in PATH: try 'ckpt ./{name}'"
            )),
            Some(word) => self.hint(format!("did you mean 'ckpt {word}'?")),
            None => self.hint("no directory of PATH has it"),
        }
    }
}

/// Makes libraries of the program use no more of the CPU, and notes that for its checkpoints.
fn restrict(limit: &CpuLimit, config: &mut Config) -> Result<()> {
    let here = Set::here();
    let allowed = limit::allowed(limit, &here)?;
    allowed.note(config);
    for (name, value) in limit::environment(&allowed, &here, |name| std::env::var_os(name)) {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_of_several_is_refused() {
        let refused = |set: &[(&str, &str)]| {
            let env = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
            };
            refuse_rank(OsStr::new("ring"), env).err().map(|e| e.to_string())
        };
        assert_eq!(refused(&[("OMPI_COMM_WORLD_SIZE", "1"), ("SLURM_STEP_NUM_TASKS", "4")]), None);
        let sentence = refused(&[("OMPI_COMM_WORLD_SIZE", "2")]).unwrap();
        assert!(sentence.contains("ckpt mpirun -np 2 ring"), "{sentence}");
        assert!(refused(&[("PMI_SIZE", "8"), ("PMI_RANK", "0")]).is_some());
        assert!(refused(&[("SLURM_STEP_NUM_TASKS", "2"), ("PMIX_RANK", "0")]).is_some());
    }
}
