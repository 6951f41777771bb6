// SPDX-License-Identifier: LGPL-2.1-only
//! A run that has come to its end: its checkpoints are set aside, so that nobody goes on from there.
//!
//! # Safety
//! Which signals are pending has no safe wrapper; the kernel writes a set of ours.
#![allow(unsafe_code)]

use super::destination::numbered;
use crate::dump::place::Whose;
use crate::error::Result;
use crate::image::file::{finished_name, is_checkpoint, mark_finished, set_aside};
use crate::image::read::{self, Image};
use crate::inject::monitors;
use crate::proc::Pid;
use crate::proc::{Process, pidfd::Pidfd};
use crate::serve::client::Client;
use crate::settings::server::{ServerName, Transfer};
use crate::settings::{Name, Settings, Template, Values, default_config};
use ckpt_abi::image::{Header, header_flag};
use ckpt_abi::region::{Config, config_flag};
use nix::libc;
use nix::sys::signal::SigSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long those are waited for that are just setting checkpoints aside.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a server that did not answer is left alone, times the number of the attempt.
const MOMENT: Duration = Duration::from_millis(200);

/// How often the kernel is asked for an exit status.
const ATTEMPTS: usize = 50;

/// What a monitor knows of its program when that has ended.
pub(super) struct Run {
    /// The configuration as it was seen last.
    pub config: Config,
    /// Whose names those in it are.
    pub whose: Whose,
    /// What they are made of.
    pub values: Values,
}

impl Run {
    /// Sets the checkpoints of the run aside if it has come to its normal end: it has ended by itself, with
    /// status 0. Without `--resume` they keep their names, and are only marked.
    pub(super) fn settle(&self, program: &Pidfd, process: &Process) {
        let Self { config, whose, .. } = self;
        if config.run == 0
            || config.flags & config_flag::KEEP_FINISHED != 0
            || was_saved()
            || wait_status(program, process) != Some(0)
        {
            return;
        }
        let Ok(settings) = Settings::from_config(config) else { return };
        let _ = whose.touch(|| {
            // A dumper in the namespaces of a tree cannot tell us: what it has written does.
            let names = self.names(&settings);
            if names
                .iter()
                .any(|name| newest(&self.existing(name)).is_some_and(|it| self.was_ended_by(&it)))
            {
                return;
            }
            if let Some(Name::Server(server)) = &settings.name
                && config.flags & config_flag::SET_ASIDE != 0
            {
                // A server that has too much to do just now may have time in a moment. What none has said of the run's
                // end is not known: a checkpoint there may have been it, and then the files are what goes on.
                let ended_well = (1..=3).find_map(|attempt| {
                    let stored = self.stored(server, &settings.transfer);
                    stored.inspect_err(|_| std::thread::sleep(attempt * MOMENT)).ok()
                });
                if ended_well != Some(true) {
                    return;
                }
            }
            names.iter().for_each(|name| self.named(name));
        });
    }

    /// The names of the run's checkpoints among files.
    fn names(&self, settings: &Settings) -> Vec<Template> {
        let fallback = settings.transfer.fallback.iter();
        let fallback = fallback.map(|path| Template::escape(path.as_os_str()).into());
        let own = settings.name.as_ref().and_then(Name::file).map(Path::to_owned);
        own.into_iter().chain(fallback).filter_map(|name| Template::parse(&name).ok()).collect()
    }

    /// The checkpoints of a name, the newest first.
    fn existing(&self, template: &Template) -> Vec<(PathBuf, File)> {
        let found = template.existing(&self.values).unwrap_or_default().into_iter();
        found
            .filter_map(|(_, path)| read::open(&path).ok().map(|file| (path, file)))
            .filter(|(_, file)| is_checkpoint(file))
            .collect()
    }

    fn was_ended_by(&self, image: &Header) -> bool {
        image.run[0] == self.config.run && image.flags & header_flag::ENDED != 0
    }

    /// All of a name, if the newest that can be read is one of this run, or the one that it came from. A
    /// checkpoint that somebody else has made since then says that the work goes on.
    fn named(&self, template: &Template) {
        let mut found = self.existing(template);
        let Some(newest) = newest(&found) else { return };
        if newest.run[0] != self.config.run && newest.run != self.config.before {
            return;
        }
        let us = crate::rights::file_user();
        found.retain(|(_, file)| file.metadata().is_ok_and(|meta| meta.uid() == us));
        // The oldest first: whoever is killed in between leaves what belongs together.
        for (path, file) in found.iter().rev() {
            match self.config.flags & config_flag::SET_ASIDE {
                0 => drop(mark_finished(file)),
                _ => drop(set_aside(path, file)),
            }
        }
    }
}

/// The newest of them that can be read.
fn newest(found: &[(PathBuf, File)]) -> Option<Header> {
    found.iter().find_map(|(_, file)| Image::find(file).ok()?)
}

impl Run {
    /// The same on a server, which looks whose the newest is; false if the run was ended by that.
    fn stored(&self, server: &ServerName, transfer: &Transfer) -> Result<bool> {
        let template = Template::parse(Path::new(&server.to_string()))?;
        let names = numbered(server, transfer, &template, &self.values)?;
        let finish =
            |name: &ServerName, of| Client::connect(name, transfer)?.finish(name.path(), of);
        let Some(((_, newest), older)) = names.split_first() else { return Ok(true) };
        let is_set_aside =
            finish(newest, [self.config.run, 0]).or_else(|e| match self.config.before {
                [0, _] => Err(e),
                before => finish(newest, before),
            })?;
        if is_set_aside {
            older.iter().try_for_each(|(_, name)| finish(name, [0; 2]).map(drop))?;
        }
        Ok(is_set_aside)
    }
}

/// The newest checkpoint of a name that was set aside.
pub(super) fn earlier(settings: &Settings) -> Option<String> {
    let values = Values::of(Pid::own());
    match settings.name.as_ref()? {
        Name::File(name) => {
            let template = Template::parse(&finished_name(name)).ok()?;
            let (_, path) = template.existing(&values).ok()?.into_iter().next()?;
            Some(path.display().to_string())
        }
        Name::Server(server) => {
            let template = Template::parse(&finished_name(Path::new(&server.to_string()))).ok()?;
            let names = numbered(server, &settings.transfer, &template, &values).ok()?;
            names.first().map(|(_, name)| name.to_string())
        }
        Name::Stream(_) => None,
    }
}

/// Whether a checkpoint has ended the program.
fn was_saved() -> bool {
    let mut pending = *SigSet::empty().as_ref();
    // SAFETY: the kernel writes the set.
    unsafe { libc::sigpending(&mut pending) };
    // SAFETY: the set is the kernel's.
    let pending = unsafe { SigSet::from_sigset_t_unchecked(pending) };
    pending.contains(monitors::SAVED)
}

/// The wait status of the program. Before Linux 6.15 only as long as its parent has not waited for it.
fn wait_status(program: &Pidfd, process: &Process) -> Option<i32> {
    // While it is being reaped /proc has it no more and the pidfd answers ESRCH.
    let ask = || process.wait_status().or_else(|| program.wait_status());
    (0..ATTEMPTS).find_map(|_| {
        ask().or_else(|| {
            std::thread::sleep(Duration::from_millis(1));
            None
        })
    })
}

/// Waits for the monitors of programs that have ended, which set checkpoints of this name aside now.
pub(super) fn await_others(settings: &Settings) {
    let deadline = Instant::now() + PATIENCE;
    let name = settings.apply(default_config()).name;
    for found in monitors::all().into_iter().filter(|found| found.is_finishing(&name)) {
        found.monitor.ended_within(deadline.saturating_duration_since(Instant::now()));
    }
}
