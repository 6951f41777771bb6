// SPDX-License-Identifier: LGPL-2.1-only
//! What the C API leaves to us: `ckpt __assist PID`, started by the payload of that process.

use super::dumper;
use crate::cli;
use crate::dump::caller::Caller;
use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::image::stub;
use crate::inject::monitor;
use crate::proc::{Pid, Process};
use crate::restart;
use crate::settings::{self, Name, Settings, Template, Values};
use ckpt_abi::api::{Request, config_bit};
use ckpt_abi::region::Config;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Does what the process asks for and answers.
#[inline(never)]
pub(super) fn run(pid: Pid) -> Result<u8> {
    let error_output = dumper::begin(pid, c"ckpt-assist");
    let program = Process::open(pid)?;
    let mut caller = Caller::wait(&program)?;
    let _ = caller.dismiss_keeper();
    let request = Request::try_from(caller.api.request);
    let result = match request {
        Ok(Request::Environment) => environment(&program, &mut caller).map(|()| None),
        Ok(Request::Configure) => configure(&program, &mut caller).map(|()| None),
        Ok(Request::Inspect) => inspect(&program, &caller),
        Ok(Request::Rescue) => {
            crate::dump::halted::rescue(&program);
            Ok(None)
        }
        Ok(Request::Signal | Request::Call) | Err(_) => {
            Err(Error::new("the process asks for something unknown"))
        }
    };
    if let (Err(e), Ok(Request::Environment)) = (&result, request) {
        dumper::say(error_output.as_ref(), &format!("{e}; the default holds"));
    }
    caller.answer(result.as_ref().err());
    caller.end_turn();
    if let Ok(Some(file)) = &result {
        hold(&program, file);
    }
    Ok(0)
}

/// The environment that the program was started with.
fn environment(program: &Process, caller: &mut Caller) -> Result<()> {
    let bytes = program.environment()?;
    let value = |name: &str| -> Option<OsString> {
        let mut variables = bytes.split(|b| *b == 0);
        let prefix = format!("{name}=");
        variables
            .find_map(|v| Some(OsString::from_vec(v.strip_prefix(prefix.as_bytes())?.to_vec())))
    };
    let (settings, problem) = cli::environment(value);
    apply(program, caller, settings)?;
    problem.map_or(Ok(()), Err)
}

/// ckpt_config(3).
fn configure(program: &Process, caller: &mut Caller) -> Result<()> {
    let [flags, signal, continues, period] = caller.api.values;
    let mut wanted = Settings::default();
    if flags & config_bit::NAME != 0 {
        wanted.name = Some(Name::parse(&caller.name())?);
    }
    if flags & config_bit::ASYNCSIG != 0 {
        wanted.asyncsig = Some(settings::parse_signal(signal.to_string().as_ref())?);
    }
    if flags & config_bit::CONTINUE != 0 {
        wanted.continues = Some(settings::parse_switch(continues.to_string().as_ref())?);
    }
    if flags & config_bit::MSPERIOD != 0 {
        wanted.msperiod = Some(period);
    }
    apply(program, caller, wanted)
}

/// Writes the configuration, all but the signal: the payload itself changes that, and learns from
/// `values` what it is to be.
fn apply(program: &Process, caller: &mut Caller, wanted: Settings) -> Result<()> {
    let current = caller.region.control.config;
    let config = wanted.resolve(&program.cwd()?.path)?.apply(current);
    caller.api.values[1] = config.asyncsig;
    caller.configure(&Config { asyncsig: current.asyncsig, ..config })?;
    if config.msperiod != 0 && config.msperiod != current.msperiod {
        // The payload lets it trace the process when it goes on; a monitor that was there ends.
        let monitor = monitor::start(program.pid(), &stub::own()?, &config)?;
        caller.appoint(monitor.pid())?;
    }
    Ok(())
}

/// Whether ckpt_restart(3) would find a checkpoint that it can restart; the payload executes the file
/// that it is told. One from a server is a file in our memory, which has to last until then.
fn inspect(program: &Process, caller: &Caller) -> Result<Option<File>> {
    let name = Name::parse(&caller.name())?.resolve(&program.cwd()?.path)?;
    let said = Settings::from_config(&caller.region.control.config)?.transfer.key;
    super::destination::open_images_with(said.as_ref(), false)?;
    if let Name::Server(server) = &name {
        let transfer = Settings::from_config(&caller.region.control.config)?.transfer;
        let file = super::fetch::fetch(server, &transfer)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        restart::rehearse(&Image::from_file(
            file.try_clone().because(|| server.to_string())?,
            &path,
        )?)?;
        caller.rename(&path)?;
        return Ok(Some(file));
    }
    let path = locate(program.pid(), &name)?;
    nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK)
        .because(|| format!("cannot execute {}", path.display()))?;
    let image = Image::open(&path)?;
    // A program that is not root may name any file, as it may execute any.
    let counted = name.file().map(Template::parse).transpose()?.is_some_and(|t| t.is_counted());
    if (counted || nix::unistd::geteuid().is_root())
        && let Some(why) = super::trust::judge(image.file(), &path)?
    {
        return Err(why.sentence());
    }
    restart::rehearse(&image)?;
    caller.rename(&path)?;
    Ok(None)
}

/// Keeps a file of ours open until the process executes it, for as long as that may take.
fn hold(program: &Process, file: &File) {
    const PATIENCE: Duration = Duration::from_secs(30);
    let id = |file: std::io::Result<std::fs::Metadata>| file.map(|m| (m.dev(), m.ino())).ok();
    let (ours, end) = (id(file.metadata()), Instant::now() + PATIENCE);
    while let Some(running) = id(std::fs::metadata(program.path("exe"))) {
        if Some(running) == ours || Instant::now() > end {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The file of a checkpoint's name; with %n, the one with the highest number.
fn locate(pid: Pid, name: &Name) -> Result<PathBuf> {
    let file = name.file().ok_or_else(|| Error::new(format!("{name} is no file")))?;
    let (template, values) = (Template::parse(file)?, Values::of(pid));
    if !template.is_counted() {
        return Ok(template.expand(&values, 0));
    }
    let newest = template.existing(&values)?.into_iter().next();
    newest
        .map(|(_, path)| path)
        .ok_or(nix::errno::Errno::ENOENT)
        .because(|| format!("there is no checkpoint {name}"))
}

impl Caller {
    fn name(&self) -> OsString {
        let name = &self.api.name;
        let len = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        std::ffi::OsStr::from_bytes(&name[..len]).to_owned()
    }
}
