// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt move PID HOST`: takes a running program to another host, through ssh or what is said in its place.
//!
//! Each side is in one of these states; "here" is where the program runs, "there" where it goes ([`there`]). In each
//! round frames say what is behind the arrows ([`wire::Word`]).
//!
//! ```text
//!  here                                             there
//!  running ── Begin ──────────────────────────────▶ housed: a file for the image
//!     │ ◀──────────────────────────────── Here ──────┘
//!     │ ── Pieces Round ──────────────────────────▶ proved: checksums, files, CPU; the restart fills memory
//!     │ ◀──────────────────────────────── Done ──────┘   (again, each round what has changed)
//!  stopped ── Pieces Last ────────────────────────▶ poised: all but the last steps is done, the image has its name
//!     │ ◀──────────────────────────────── Done ──────┘   NAME.ckpt
//!  promised: the mappings are confirmed, and the
//!     │      program is ended: no thread of it runs
//!  ended ── Go ───────────────────────────────────▶ ordered: NAME.ckpt becomes NAME.ckpt.begun, the gate opens
//!     │ ◀─────────────────────────────── Begun ──────┤   began: NAME.ckpt.begun is removed
//!  carrying ◀── Output, Ended ─ Input, Signal ────▶ carrying
//! ```
//!
//! Up to "promised" any failure of either side, or of what connects them, leaves the program here: a freeze whose tracer is
//! gone lets it go on, and there the restart ends with its gate. From "ended" on it is not here any more; "ended" and
//! "ordered" are the only states in which it runs nowhere, and in these its image has a name there, which the error says.
//! It never runs twice: Go is sent after its end alone, and who does not hear it does not begin.
//!
//! # Safety
//! Signals are ignored, or have their defaults again: no code runs. The child is made while this process has one thread.
#![allow(unsafe_code)]

mod ends;
mod sink;
mod streams;
pub(super) mod there;
mod wire;

use super::{dumper, follow};
use crate::cli;
use crate::dump::phase7_seal::Ended;
use crate::dump::rolling::Rolling;
use crate::dump::{Demand, Outcome, dump};
use crate::error::{Because, Error, Kind, NOT_FOUND, Result, printable};
use crate::fault::{Point, reach};
use crate::image::{PAGE, stub};
use crate::inject::enter;
use crate::proc::fork::end;
use crate::proc::{Pid, Process};
use crate::progress::Screen;
use crate::resource::descriptor::standard;
use crate::restart::skeleton::proxy;
use crate::settings::{Name, Settings, Template, quoted};
use crate::units::{fraction, size};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, dup2_raw, execvp, fork};
use sink::{Link, PATIENCE, locked};
use std::cell::RefCell;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use streams::Streams;
use wire::{Wire, Word};

/// What connects hosts where nothing is said. A cut cable is noticed after 15 seconds.
const RSH: [&str; 6] = ["ssh", "-T", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"];

/// Most rounds while the program runs, and how many may have no less to send than the best before.
const MOST: usize = 30;
const VAIN: usize = 3;
/// Bytes after which it may stand still.
const ENOUGH: u64 = 4 << 20;
/// With more memory the first rounds begin to know what changes, in bytes.
const LARGE: u64 = 64 << 20;
/// How long a checkpoint is tried that others have the turn for, and how often one under which something changes.
const TURN: Duration = Duration::from_secs(60);
const AGAIN: usize = 3;

/// The words that have the other host receive this executable and run it. Nothing else is sent before it has answered, so
/// that a `head` that reads ahead takes nothing of it. No quote and no line end: any shell there gets it as one word.
const SCRIPT: &str = r#"umask 077; f=; for d in "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm "$HOME"; do t=$(mktemp -d "$d/ckpt-move.XXXXXX" 2>/dev/null) || continue; if [ "$f" ]; then cp "$f/ckpt" "$t/ckpt"; rm -rf "$f"; else head -c LENGTH >"$t/ckpt"; fi; chmod 700 "$t/ckpt"; f=$t; "$t/ckpt" --version >/dev/null 2>&1 && break; done; [ "$f" ] || exit 126; "$f/ckpt" __receive "$f"; s=$?; rm -f "$f/ckpt" "$f/part"; rmdir "$f" 2>/dev/null; exit $s"#;

/// Moves a process to the host that is the first word; the status of its program, which we end as.
pub(super) fn run(process: &Process, rsh: Option<&OsStr>, mut words: Vec<OsString>) -> Result<u8> {
    let host = &*std::mem::replace(&mut words[0], "the checkpoint".into());
    if host.is_empty() || host.as_bytes().starts_with(b"-") {
        return Err(Error::new(format!("{} is no host", quoted(host))));
    }
    cli::parse_stub(words.iter().cloned())?;
    let meant = enter::meant_by(process)?;
    follow::summon(process, &meant);
    let pid = meant.pid();
    // SAFETY: no handler runs. Who has gone we are told by the call.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    let executable = stub::own()?;
    let (front, own) = (stub::in_front(&executable), Pid::own());
    let mut exact = false;
    let (there, child, outcome) = loop {
        let (child, wire) = connect(host, rsh, &executable)?;
        let mut there = There { link: None, host, place: OsString::new() };
        let outcome = there.greet(wire, &meant, &words, &front);
        match outcome.and_then(|()| there.rounds(meant.clone(), exact)) {
            Ok(outcome) => break (there, child, outcome),
            // The other host has all of it by then. In its namespaces there is no way there.
            Err(e) if e.kind() == Kind::Changed && !exact && Pid::own() == own => {
                there.drop();
                there::reap(child);
                exact = true;
            }
            Err(e) => return Err(there.give_up(pid, e, child)),
        }
    };
    // What comes into its standard input goes on to it.
    let sentences = outcome.iter().flat_map(Outcome::sentences);
    let sentences: Vec<_> = sentences.filter(|it| !it.contains(standard::LATER)).collect();
    let carried = there.carry(|host, last, stood| {
        sentences.iter().for_each(|sentence| eprintln!("ckpt: {}", printable(sentence)));
        let stood = fraction(stood, 1000, 1);
        eprintln!("ckpt: process {pid} has moved to {host}: it stood still for {stood} ms, for the last {last}");
    });
    match carried {
        Ok(status) => {
            there::reap(child);
            proxy::die(status)
        }
        Err(e) => Err(there.lost(e)),
    }
}

/// The other host.
struct There<'a> {
    link: Option<Arc<Mutex<Link>>>,
    host: &'a OsStr,
    /// The name of the image there.
    place: OsString,
}

impl There<'_> {
    /// Waits for its answer, and tells it what comes.
    fn greet(
        &mut self,
        mut wire: Wire,
        process: &Process,
        words: &[OsString],
        front: &[u8],
    ) -> Result<()> {
        let host = self.host.to_string_lossy();
        let greeted = wire.greeted().and_then(|()| wire.expect(Word::Here));
        greeted.because(|| format!("ckpt does not run on {host}"))?;
        reach(Point::Greeted);
        let name = process.name().unwrap_or_default().to_string_lossy().replace('/', "_");
        let mut text = Streams::of(process).described();
        let streams = [0, 1, 2].map(|n| text[n]);
        text.extend_from_slice(format!("{name}.ckpt").as_bytes());
        for word in words.iter().skip(1) {
            text.push(0);
            text.extend_from_slice(word.as_bytes());
        }
        let bytes = resident(process, process.children().is_empty()).unwrap_or(0);
        wire.send(Word::Begin, bytes, &text)?;
        let here = wire.expect(Word::Here).because(|| format!("{host} has no place for it"))?;
        self.place = OsStr::from_bytes(wire.bytes(here)).to_owned();
        self.link = Some(Link::new(wire, (front.len() as u64).next_multiple_of(PAGE), streams));
        Ok(())
    }

    /// Brings the image there while the program runs, and then the rest. Unless it is to be `exact`, what the kernel tells of
    /// its mappings is asked before it stands still.
    ///
    /// # Errors
    /// Why it stays here: [`Kind::Changed`] if that was not so any more.
    fn rounds(&mut self, meant: Process, exact: bool) -> Result<Option<Outcome>> {
        let process = enter::enter(meant)?;
        dumper::prepare();
        let link = self.link.clone().ok_or_else(|| Error::new("nobody is there"))?;
        // The program may stand still in each round.
        locked(&link).wire.patience = Some(PATIENCE);
        let large = process.resident().unwrap_or(0) > LARGE;
        let mut rolling = Rolling::moving(&process, exact);
        let (mut best, mut vain, least) = (u64::MAX, 0, if large { 2 } else { 1 });
        // What is several has no base, and all of it would be sent twice.
        let rounds = if process.children().is_empty() { 0..MOST } else { 0..0 };
        for round in rounds {
            let known = std::mem::take(&mut rolling);
            rolling = self.checkpoint(&process, known, false, round == 0)?.1;
            reach(Point::Rounded);
            let sent = locked(&link).sent;
            vain = if sent < best / 8 * 7 { 0 } else { vain + 1 };
            best = best.min(sent);
            // What was a busy moment of the network is not to be what it stands still for.
            let is_best = vain >= VAIN && sent / 5 <= best / 4;
            if round + 1 >= least && (sent < ENOUGH || is_best) {
                break;
            }
        }
        locked(&link).last = Some(process.clone());
        // What is sent to us from now on is for the program, wherever that is then.
        for signals in [streams::awaited(), streams::stops()] {
            signals.thread_block().because(|| "cannot block signals")?;
        }
        match self.checkpoint(&process, rolling, true, false) {
            Ok((outcome, _)) => Ok(Some(outcome)),
            // Who frees its memory is no concern of it.
            Err(_) if locked(&link).told.is_some() => Ok(None),
            Err(e) => {
                let _ = streams::awaited().thread_unblock();
                let _ = streams::stops().thread_unblock();
                Err(e)
            }
        }
    }

    /// One round.
    fn checkpoint(
        &self,
        process: &Process,
        rolling: Rolling,
        last: bool,
        shows: bool,
    ) -> Result<(Outcome, Rolling)> {
        let name = Path::new("/").join(self.host);
        let settings = Settings {
            name: Some(Name::File(Template::escape(name.as_os_str()).into())),
            // No connection of this host goes on from another.
            keep_tcp: Some(false),
            compress: Some(false),
            encrypt: Some(false),
            ..Settings::default()
        };
        let request = Demand {
            process: process.clone(),
            settings,
            stop: Some(last),
            triggered: false,
            periodic: false,
            open: sink::open,
            prune: |_, _, _| {},
            screen: shows.then_some(Screen::Own),
            tell: None,
            ending: None,
            ended: self.link.clone().filter(|_| last).map(|link| -> Ended {
                Box::new(move |stood| match stood {
                    Some(stood) => {
                        locked(&link).go(stood);
                        Ok(())
                    }
                    None => locked(&link).may_end(),
                })
            }),
            rolling: Some(RefCell::new(rolling)),
        };
        let (deadline, mut again) = (Instant::now() + TURN, AGAIN);
        loop {
            let done = dump(&request);
            let is_sealed = self.link.as_ref().is_some_and(|link| locked(link).is_sealed);
            match done {
                Err(e) if !is_sealed && e.kind() == Kind::Busy && Instant::now() < deadline => {}
                Err(e) if !is_sealed && e.kind() == Kind::Changed && again > 0 => again -= 1,
                done => {
                    let rolling = request.rolling.map(RefCell::into_inner).unwrap_or_default();
                    return done.map(|outcome| (outcome, rolling));
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Is what the program that goes on there has here, until it ends.
    fn carry(&self, begun: impl FnOnce(&str, &str, u64)) -> Result<i32> {
        let link = self.link.as_ref().ok_or_else(|| Error::new("nobody is there"))?;
        let link = &mut *locked(link);
        let _ = streams::stops().thread_unblock();
        let stood = link.told.unwrap_or_default().as_micros() as u64;
        let (host, sent) = (self.host.to_string_lossy(), size(link.sent));
        std::mem::take(&mut link.streams)
            .carry(&mut link.wire, |more| begun(&host, &sent, stood + more))
    }

    /// What has failed while the program was here.
    fn give_up(&self, pid: Pid, error: Error, child: Pid) -> Error {
        let promised = self.link.as_ref().is_some_and(|link| locked(link).promised);
        if !promised {
            self.drop();
        }
        let host = self.host.to_string_lossy();
        if promised {
            let place = printable(&self.place.to_string_lossy());
            return error.hint(format!(
                "if process {pid} does end, it goes on by executing {place} on {host}"
            ));
        }
        if self.link.is_none() {
            // It has heard the end of our words, and said its own on standard error.
            return ended(error, there::reap(child), &host);
        }
        match error.kind() {
            Kind::Gone => error,
            _ => error.hint(format!("process {pid} stays where it was")),
        }
    }

    /// Has what is there forgotten.
    fn drop(&self) {
        if let Some(link) = &self.link {
            let link = &mut *locked(link);
            link.wire.patience = Some(Duration::from_secs(1));
            let _ = link.wire.send(Word::Drop, 0, &[]);
        }
    }

    /// What has failed when it was not here any more.
    fn lost(&self, error: Error) -> Error {
        let (place, host) = (printable(&self.place.to_string_lossy()), self.host.to_string_lossy());
        error.hint(format!(
            "the program has ended here. If {place} is on {host} a minute later, it has not begun there, and executing that \
             file lets it go on; if {place}.begun is there and it does not run, that file does; else it runs there, and \
             what it writes is in {place}.output"
        ))
    }
}

/// How many bytes of a process and of its descendants are in memory; what they share is so once.
fn resident(process: &Process, is_alone: bool) -> Option<u64> {
    if is_alone {
        return process.resident();
    }
    let children = process.children().into_iter();
    let below = children.filter_map(|child| resident(&Process::glimpse(child).ok()?, false));
    Some(process.proportional()? + below.sum::<u64>())
}

fn ended(error: Error, status: i32, host: &str) -> Error {
    let hint = "the program stays where it was";
    // Who ends so has said why not.
    if status == 0 {
        return error.hint(hint);
    }
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { status + 128 };
    Error::new(format!("{host} cannot be reached, or ckpt cannot run there (status {code})"))
        .of(Kind::Unreachable)
        .hint(hint)
}

/// Starts what connects us, and sends our executable.
fn connect(host: &OsStr, rsh: Option<&OsStr>, executable: &[u8]) -> Result<(Pid, Wire)> {
    let words = rsh.map_or(&b""[..], OsStr::as_bytes).split(|byte| *byte == b' ');
    let mut line: Vec<Vec<u8>> = words.filter(|w| !w.is_empty()).map(<[u8]>::to_vec).collect();
    if line.is_empty() {
        line.extend(RSH.iter().map(|word| word.as_bytes().to_vec()));
    }
    let script = SCRIPT.replace("LENGTH", &executable.len().to_string());
    line.extend([host.as_bytes().to_vec(), format!("exec sh -c '{script}'").into_bytes()]);
    let line: Vec<CString> =
        line.into_iter().map(|word| CString::new(word).unwrap_or_default()).collect();
    let why = || format!("cannot run {}", line[0].to_string_lossy());
    let ((theirs, to), (from, tell)) =
        (std::io::pipe().because(why)?, std::io::pipe().because(why)?);
    // SAFETY: this process has one thread.
    let child = match unsafe { fork() }.because(why)? {
        ForkResult::Parent { child } => Pid::new(child.as_raw()),
        ForkResult::Child => {
            // Keys and schedulers send them to the whole group; they are the program's.
            for kept in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGTSTP] {
                // SAFETY: no handler runs.
                unsafe { libc::signal(kept, libc::SIG_IGN) };
            }
            // SAFETY: as above.
            let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
            // SAFETY: what was there is not used again.
            std::mem::forget((unsafe { dup2_raw(theirs, 0) }, unsafe { dup2_raw(tell, 1) }));
            let Err(e) = execvp(&line[0], &line);
            eprintln!("ckpt: {}: {}", why(), e.desc());
            end(NOT_FOUND.into())
        }
    };
    drop((theirs, tell));
    let (to, from) = (OwnedFd::from(to), OwnedFd::from(from));
    let _ = fcntl(&to, FcntlArg::F_SETPIPE_SZ(1 << 20));
    for fd in [&to, &from] {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).because(why)?;
    }
    // That it is gone is said by what is heard of it.
    let _ = wire::write_all(to.as_fd(), executable, None);
    Ok((child, Wire::new(from, to)))
}
