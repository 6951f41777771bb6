// SPDX-License-Identifier: LGPL-2.1-only
//! `--resume`: the newest whole checkpoint of a name takes the place of the program.

use super::destination::refuse_plain;
use super::fetch;
use super::finish;
use super::identity::Identity;
use super::trust::{self, Distrust};
use crate::cli::Resume;
use crate::error::{Because, Error, Kind, Result, printable};
use crate::image::file::{is_finished, set_aside};
use crate::image::read::{self, Image};
use crate::proc::Pid;
use crate::restart::mapping::hold_signal;
use crate::restart::{self, restart};
use crate::serve::client::Client;
use crate::settings::{self, Name, Settings, Template, Values};
use ckpt_abi::image::{Machine, SectionKind};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// # Errors
/// It is encrypted, and its key is not ours, or it is not, though it has to be: it is not known to be damaged, and the program
/// must not begin anew.
fn opened_by_its_key(image: &Result<Image>, encrypt: Option<bool>) -> Result<()> {
    let Ok(image) = image else { return Ok(()) };
    match image.locked() {
        Some(why) => Err(nothing(why.clone())),
        None => refuse_plain(image, encrypt).map_err(nothing),
    }
}

/// Restarts the newest whole checkpoint of the name; returns where there is none.
///
/// # Errors
/// A checkpoint or a server that cannot be reached: the program must not begin anew because of
/// that, and then replace what it did before.
pub(super) fn resume(
    template: &Template,
    settings: &Settings,
    resume: &Resume,
    identity: &Identity,
) -> Result<()> {
    if template.has_pid() {
        return Err(Error::new(
            "with --resume the checkpoint's name must be the same in each run, so it cannot have %p",
        )
        .hint("choose another with -n"));
    }
    let (mut damaged, mut passed) = (false, None);
    // To look through a large checkpoint takes time, in which the signal may come.
    let signal = settings.asyncsig.unwrap_or(settings::default_config().asyncsig);
    hold_signal(signal, true);
    finish::await_others(settings);
    let mut finished = None;
    let mut probed = probe(settings, resume.probe.as_deref())?;
    for name in existing(template, settings, probed.as_ref())? {
        let shown = name.written();
        let opened = match &name {
            Name::Stream(_) => Ok(probed.take()),
            name => open(name, settings),
        };
        let distrust = match (&name, &opened) {
            (Name::File(path), opened) if !resume.trust => {
                trust::judge(opened.as_ref().ok().and_then(Option::as_ref), path)?
            }
            _ => None,
        };
        match distrust {
            // Somebody else's does not hide our own, of whatever number.
            Some(Distrust::Foreign(why)) if template.is_counted() => {
                eprintln!("ckpt: passed over: {why}");
                passed = Some(why.hint(trust::WAY_OUT));
                continue;
            }
            Some(why) if opened.is_ok() => {
                return Err(nothing(why.sentence().hint(trust::WAY_OUT)));
            }
            _ => {}
        }
        let opened = match opened {
            // An older one may be whole; none at all is no reason to begin anew.
            Err(e) if e.kind() == Kind::Refused => {
                eprintln!("ckpt: not resumed: {e}");
                (damaged, passed) = (true, Some(e));
                continue;
            }
            opened => opened?,
        };
        let Some(file) = opened else { continue };
        if !resume.any
            && settings.keep_finished == Some(false)
            && let Name::File(path) = &name
            && is_finished(&file)
        {
            let path = set_aside(path, &file).unwrap_or(path.clone());
            finished.get_or_insert(path.display().to_string());
            continue;
        }
        let image = Image::from_file(file, Path::new(&shown));
        opened_by_its_key(&image, settings.encrypt)?;
        match image.and_then(|image| image.verify().map(|()| image)) {
            Ok(image) => {
                if damaged {
                    eprintln!(
                        "ckpt: resuming the one before it, {}",
                        printable(&shown.to_string_lossy())
                    );
                }
                if !resume.any {
                    same_run(&image, identity)?;
                }
                return become_it(&image, settings, resume);
            }
            Err(e) => {
                eprintln!("ckpt: not resumed: {e}");
                damaged = true;
            }
        }
    }
    if let Some(why) = passed {
        return Err(nothing(why));
    }
    begins_anew(damaged, finished, settings);
    hold_signal(signal, false);
    Ok(())
}

/// Says why, where there was something.
fn begins_anew(damaged: bool, finished: Option<String>, settings: &Settings) {
    if damaged {
        eprintln!("ckpt: no other checkpoint is there; the program starts from its beginning");
    } else if let Some(name) = finished.or_else(|| finish::earlier(settings)) {
        let shown = printable(&name);
        eprintln!(
            "ckpt: {shown} is of a run that has come to its end, so the program starts from its beginning"
        );
    }
}

/// Refuses a checkpoint of another run.
fn same_run(image: &Image, identity: &Identity) -> Result<()> {
    let differences = identity.differences(image)?;
    if differences.is_empty() {
        return Ok(());
    }
    let shown = image.path().display();
    let sentence = format!("not resumed: {shown} is of another run: {}", differences.join("; "));
    let way_out = "--resume=any restarts it all the same, -n chooses another name, and without --resume \
                   the program starts from its beginning";
    Err(Error::new(sentence).hint(way_out))
}

fn nothing(why: Error) -> Error {
    why.hint("nothing was started")
}

/// What the second command of a stream gives: the newest checkpoint, or nothing.
fn probe(settings: &Settings, line: Option<&OsStr>) -> Result<Option<File>> {
    let (name, line) = match (&settings.name, line) {
        (Some(Name::Stream(_)), Some(line)) => ([OsStr::new("|"), line].join(OsStr::new("")), line),
        (Some(name @ Name::Stream(_)), None) => {
            let sentence = format!("--resume does not know how to get back what {name} has stored");
            return Err(nothing(Error::new(sentence).hint("say it with --probe COMMAND")));
        }
        (_, Some(_)) => {
            let sentence = "--probe goes with a checkpoint's name that is a command, -n '|COMMAND'";
            return Err(nothing(Error::new(sentence)));
        }
        _ => return Ok(None),
    };
    let file = fetch::gathered(&name).because(|| "--probe").map_err(nothing)?;
    let len = file.metadata().because(|| line.to_string_lossy().into_owned())?.len();
    Ok((len > 0).then_some(file))
}

/// When a checkpoint was taken, in seconds; 0 where that cannot be read.
fn time(file: &File) -> u64 {
    let read = || {
        let image = Image::from_file(file.try_clone().ok()?, Path::new("")).ok()?;
        image.record(SectionKind::Machine).ok()
    };
    read().map_or(0, |machine: Machine| machine.realtime / 1_000_000_000)
}

/// The checkpoints of the name, the newest first; those for which a server or a command was away among them.
fn existing(template: &Template, settings: &Settings, probed: Option<&File>) -> Result<Vec<Name>> {
    let values = Values::of(Pid::own());
    let fallback = settings.transfer.fallback.as_ref();
    let fallback = fallback.and_then(|file| Some((file, file.metadata().ok()?.mtime())));
    let with_fallback = |mut names: Vec<Name>, newest: u64| {
        if let Some((file, time)) = fallback {
            let at = if time.cast_unsigned() >= newest { 0 } else { names.len() };
            names.insert(at, Name::File(file.clone()));
        }
        names
    };
    if let Some(name @ Name::Stream(_)) = &settings.name {
        let names = probed.map(|_| name.clone()).into_iter().collect();
        return Ok(with_fallback(names, probed.map_or(0, time)));
    }
    let Some(Name::Server(server)) = &settings.name else {
        let found = template.existing(&values)?.into_iter();
        return Ok(found.map(|(_, path)| Name::File(path)).collect());
    };
    let list = |folder| Client::connect(server, &settings.transfer)?.list(folder);
    let folder = server.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    // A folder that does not exist yet is refused.
    let (mut names, mut numbers, mut newest) = (Vec::new(), Vec::new(), 0);
    for entry in list(folder).or_else(|_| list(""))? {
        let name = server.sibling(entry.name);
        let Some(number) = template.number(&values, name.to_string().as_bytes()) else { continue };
        let at = numbers.partition_point(|other| *other > number);
        numbers.insert(at, number);
        names.insert(at, Name::Server(name));
        newest = if at == 0 { entry.time } else { newest };
    }
    Ok(with_fallback(names, newest))
}

/// None for what has gone.
fn open(name: &Name, settings: &Settings) -> Result<Option<File>> {
    match name {
        Name::File(path) => match read::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            file => file
                .map(Some)
                .because(|| format!("cannot open {}", path.display()))
                .map_err(nothing),
        },
        Name::Server(server) => fetch::download(server, &settings.transfer).map(Some),
        Name::Stream(_) => Ok(None),
    }
}

/// Executes the checkpoint, which carries its own ckpt, or restarts it if its options cannot say
/// what is wanted.
fn become_it(image: &Image, settings: &Settings, resume: &Resume) -> Result<()> {
    if let Some(words) = words(settings, resume) {
        let file = image.file().map(|file| file.try_clone()).transpose();
        if let Some(file) = file.because(|| "cannot keep the checkpoint open")? {
            super::restart::execute(file, image.path(), &words)?;
        }
    }
    let settings = settings.clone();
    let options = restart::Options {
        settings,
        truncate_files: resume.truncate_files,
        no_tty: resume.no_tty,
        map_port: resume.map_port.clone(),
        ids: resume.ids,
        ..restart::Options::default()
    };
    match restart(image, &options, "ckpt", None)? {}
}

/// The options of a checkpoint file; None for what they cannot say.
fn words(settings: &Settings, resume: &Resume) -> Option<Vec<OsString>> {
    let mut words = settings.words()?;
    words.extend(resume.truncate_files.then(|| "--truncate-files".into()));
    words.extend(resume.no_tty.then(|| "--no-tty".into()));
    let ports = resume.map_port.0.iter();
    words.extend(ports.map(|(old, new)| format!("--map-port={old}={new}").into()));
    let ids = Some(resume.ids).filter(|ids| *ids != restart::Ids::Auto);
    words.extend(ids.map(|ids| format!("--ids={}", ids.word()).into()));
    Some(words)
}
