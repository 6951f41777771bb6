// SPDX-License-Identifier: LGPL-2.1-only
//! The subcommands: each turns what was parsed into calls of the layers below.

mod assist;
mod attach;
mod check;
mod core;
pub(crate) mod destination;
mod dumper;
mod elder;
mod facts;
mod fetch;
mod finish;
mod follow;
mod identity;
mod inspect;
mod launch;
mod monitor;
mod moving;
mod notify;
mod ps;
mod restart;
mod resume;
mod running;
mod save;
mod save_all;
mod sdk;
mod serve;
mod stored;
mod stub;
mod tables;
mod trust;
mod warm;
mod worker;

use crate::cli::{self, Command};
use crate::dump::phase2_equip::await_restart;
use crate::error::{Error, Result};
use crate::fault;
use crate::image::{elf, read::Image};
use crate::inject::enter;
use crate::proc::{self, Pid, Process, tree};
use crate::ptrace::{sandbox, shield};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;

/// Runs ckpt; the exit status.
pub fn main(args: Vec<OsString>) -> u8 {
    told(run(&args))
}

/// The exit status, after the sentence of an error.
fn told(outcome: Result<u8>) -> u8 {
    outcome.unwrap_or_else(|e| {
        eprintln!("ckpt: {e}");
        e.status()
    })
}

/// Does something with a process.
fn with(pid: Pid, args: &[OsString], work: impl FnOnce(&Process) -> Result<u8>) -> Result<u8> {
    let process = named(pid)?;
    elder::give_way(&process, args)?;
    await_locks(&process);
    shield::shielded(std::slice::from_ref(&process), || told(work(&process)))
}

/// Waits until what is just being restarted has locked itself in again ([`shield::shielded`] asks once).
fn await_locks(process: &Process) {
    if !sandbox::is_opener() {
        return;
    }
    let Ok(root) = enter::meant_by(process) else { return };
    let members = match root.pid() == process.pid() {
        true => vec![root.pid()],
        false => tree::below_alone(root.pid()),
    };
    let waits = |pid: Pid| Process::open(pid).and_then(|member| await_restart(&member));
    let _ = members.into_iter().try_for_each(waits);
}

fn run(args: &[OsString]) -> Result<u8> {
    if args.get(1).is_some_and(|word| word == "__report") {
        return stub::report(args.get(2), args.get(3));
    }
    let own = File::open("/proc/self/exe").map_err(|e| {
        Error::new(format!("cannot open our own executable (/proc/self/exe): {e}"))
            .hint("ckpt needs a /proc (mount -t proc proc /proc)")
    })?;
    let ours = args
        .get(1)
        .is_some_and(|word| ["__dump", "__monitor", "__assist"].iter().any(|w| word == w));
    if !ours {
        fault::arm()?;
    }
    if !ours && (elf::is_marked(&own) || Image::find(&own)?.is_some()) {
        return stub::from_own_file(own, args);
    }
    if serve::is_ckptsrv(args) {
        return serve::as_ckptsrv(cli::parse_ckptsrv(args.iter().cloned())?);
    }
    let command = cli::parse(args.iter().cloned(), |name| std::env::var_os(name))?;
    match command {
        Command::Launch { settings, cpu, program, args, resume, replace } => {
            launch::run(&settings, cpu.as_ref(), &program, &args, resume, replace)
        }
        Command::Warm { settings, program, args } => warm::run(&settings, &program, &args),
        Command::Attach { pid, settings } => {
            with(pid, args, |process| attach::run(process, &settings))
        }
        Command::Save { pid, stop, settings } => {
            with(pid, args, |process| save::run(process, stop, settings))
        }
        Command::SaveAll { stop, jobs, settings } => save_all::run(stop, jobs, &settings),
        Command::Ps { json, watch } => ps::run(json, watch),
        Command::Move { pid, rsh, words } => {
            with(pid, args, |process| moving::run(process, rsh.as_deref(), words))
        }
        Command::Receive { dir } => moving::there::run(&dir),
        Command::Serve(options) => serve::run(&options),
        Command::Keygen { file } => serve::keygen(&file),
        Command::Restart { name, transfer, args, trust } => {
            restart::run(&name, &transfer, &args, trust)
        }
        Command::List { folder, transfer, json } => stored::list(&folder, &transfer, json),
        Command::Get { name, file, transfer } => stored::get(&name, file, &transfer),
        Command::Put { file, name, transfer } => stored::put(&file, &name, &transfer),
        Command::Remove { name, transfer } => stored::remove(&name, &transfer),
        Command::Dump { pid } => {
            fault::arm_by_program(pid);
            dumper::run(pid)
        }
        Command::Monitor { pid } => {
            fault::arm_by_program(pid);
            monitor::run(pid)
        }
        Command::Assist { pid } => assist::run(pid),
        Command::Sdk { dir } => sdk::run(&dir),
        Command::Verify { files, transfer } => inspect::verify(&files, &transfer),
        Command::Info { files, table: None, json, transfer } => {
            inspect::info(&files, json, &transfer)
        }
        Command::Info { files, table: Some(table), json, transfer } => {
            tables::run(&files, table, json, &transfer)
        }
        Command::Core { file, out, transfer } => core::run(&file, out, &transfer),
        Command::Cat { file, descriptor, transfer } => tables::cat(&file, &descriptor, &transfer),
        Command::Check { words, map_path, json, transfer } => {
            shield::shielded(&check::processes(&words), || {
                told(check::run(&words, &map_path, json, &transfer))
            })
        }
        Command::Help(text) => print(&text),
        Command::Version => print(&format!("{}\n", cli::version())),
        Command::Man => print(&cli::man_page()),
        Command::Completions(shell) => print(&cli::completions(shell)),
        Command::Usage(text) => {
            eprint!("{text}");
            Ok(crate::error::FAILED)
        }
    }
}

/// The process that somebody has named by its id.
///
/// # Errors
/// There is none, or our /proc is not where it would be.
fn named(pid: Pid) -> Result<Process> {
    proc::of_this_namespace()?;
    Process::open(pid)
}

fn print(text: &str) -> Result<u8> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(0),
        Err(e) => Err(Error::new(format!("cannot write to standard output: {e}"))),
    }
}
