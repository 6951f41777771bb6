//! `ckpt PROGRAM ARGS…`
//!
//! # Safety
//! The environment is changed while there is only one thread.
#![allow(unsafe_code)]

use crate::cli::Resume;
use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::image::stub;
use crate::inject::launch::launch;
use crate::resource::cpu::{
    Set,
    limit::{self, Limit},
};
use crate::restart::mapping::hold_signal;
use crate::restart::{self, restart};
use crate::settings::server::Key;
use crate::settings::{self, Name, Settings, Template, Values};
use ckpt_abi::region::Config;
use nix::errno::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
        self::resume(&template, &settings, resume)?;
    }
    match launch(program, args, &config, &stub::own()?)? {}
}

/// Restarts the newest whole checkpoint of the name; returns where there is none.
fn resume(template: &Template, settings: &Settings, resume: Resume) -> Result<()> {
    if template.has_pid() {
        return Err(Error::new(
            "with --resume the checkpoint's name must be the same in each run, so it cannot have %p",
        )
        .hint("choose another with -n"));
    }
    let values = Values::of(std::process::id().cast_signed());
    let mut damaged = false;
    // To look through a large checkpoint takes time, in which the signal may come.
    let signal = settings.asyncsig.unwrap_or(settings::default_config().asyncsig);
    hold_signal(signal, true);
    for (_, path) in template.existing(&values) {
        let image = Image::open(&path).and_then(|image| image.verify().map(|()| image));
        match image {
            Ok(image) => {
                if damaged {
                    eprintln!("ckpt: resuming the one before it, {}", path.display());
                }
                return become_it(&path, &image, settings, resume);
            }
            Err(e) => {
                eprintln!("ckpt: not resumed: {e}");
                damaged = true;
            }
        }
    }
    if damaged {
        eprintln!("ckpt: no other checkpoint is there; the program starts from its beginning");
    }
    hold_signal(signal, false);
    Ok(())
}

/// Executes the checkpoint, which carries its own ckpt; where its file system forbids to execute
/// (noexec), ours restarts it.
fn become_it(path: &Path, image: &Image, settings: &Settings, resume: Resume) -> Result<()> {
    if let Some(words) = words(path, settings, resume) {
        let Err(error) = nix::unistd::execv(&words[0], &words);
        if error != Errno::EACCES {
            return Err(Error::new(format!("cannot execute {}: {}", path.display(), error.desc())));
        }
    }
    let settings = settings.clone();
    let options = restart::Options {
        settings,
        truncate_files: resume.truncate_files,
        ..restart::Options::default()
    };
    match restart(image, &options, "ckpt")? {}
}

/// The command line of a checkpoint file; None for what its options cannot say.
fn words(path: &Path, settings: &Settings, resume: Resume) -> Option<Vec<CString>> {
    if settings.continues == Some(false) {
        return None;
    }
    let mut words: Vec<OsString> = vec![path.into()];
    let mut say = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            let mut word = OsString::from(name);
            word.push("=");
            word.push(value);
            words.push(word);
        }
    };
    say("--name", settings.name.as_ref().map(Name::written));
    say("--signal", settings.asyncsig.map(|n| n.to_string().into()));
    say("--period", settings.msperiod.map(|n| n.to_string().into()));
    say("--exit-status", settings.exit_status.map(|n| n.to_string().into()));
    say("--keep", settings.keep.map(|n| n.to_string().into()));
    say("--embed-files", settings.embed.map(|n| n.to_string().into()));
    let transfer = &settings.transfer;
    if let Some(Key::Said(key)) = &transfer.key {
        say("--key", Some(key.into()));
    }
    say("--fallback", transfer.fallback.as_ref().map(Into::into));
    words.extend((transfer.insecure == Some(true)).then(|| "--insecure".into()));
    words.extend((transfer.compress == Some(true)).then(|| "--compress".into()));
    words.extend((settings.continues == Some(true)).then(|| "--continue".into()));
    words.extend(resume.truncate_files.then(|| "--truncate-files".into()));
    let c_string = |word: OsString| CString::new(word.as_bytes()).ok();
    words.into_iter().map(c_string).collect()
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
