// SPDX-License-Identifier: LGPL-2.1-only
//! What runs under ckpt here: processes with a payload, and those that a monitor watches.

use crate::inject::monitors::{self, Found};
use crate::inject::{enter, last, region::Region};
use crate::order;
use crate::proc::tree::{self, Kin};
use crate::proc::{Pid, Process};
use crate::ptrace::forest::{self, Evidence};
use crate::settings::{Settings, Template, Values};
use ckpt_abi::region::{Config, Last, VERSION, config_flag, is_base};

/// A program that checkpoints can be taken of.
pub(super) struct Running {
    /// The process that has the payload.
    pub process: Process,
    /// By which id it is saved: its own, or that of who stands for it (a restarter, a ckpt that stays).
    pub pid: Pid,
    /// When it began, in ticks since boot.
    pub start: u64,
    /// Whether it was forked under ckpt, and has executed nothing since.
    forked: bool,
    /// As it is configured, if that can be seen.
    pub config: Option<Config>,
    /// What became of its last checkpoints, or why that cannot be seen.
    pub last: Result<Last, &'static str>,
    /// When the next is due, in nanoseconds since 1970; None if nobody takes one.
    pub due: Option<u64>,
    /// The one whose checkpoints hold it, too.
    pub within: Option<Pid>,
}

/// All of this user, and of everybody if it is root; parents before their children. Of one that is just being launched or
/// restarted nothing is seen yet.
///
/// # Errors
/// /proc cannot be read.
pub(super) fn all() -> crate::error::Result<Vec<Running>> {
    let mut everybody = tree::everybody_alone()?;
    everybody.retain(|kin| !kin.dead && !kin.ours && kin.pid != Pid::own());
    order::by_key(&mut everybody, |kin| (kin.start, kin.pid.word().into()));
    let monitors = monitors::all();
    let user = nix::unistd::geteuid();
    let mut candidates = Vec::new();
    for kin in &everybody {
        let Ok(process) = Process::open(kin.pid) else { continue };
        if user.is_root() || process.user() == Some(user.as_raw()) {
            candidates.extend(look(kin, process, &monitors, &everybody));
        }
    }
    // By whom a process is saved, too.
    let mut covered: Vec<(Pid, Pid)> = Vec::new();
    let mut running: Vec<Running> = Vec::new();
    for index in 0..candidates.len() {
        let Candidate { running: at, own } = &candidates[index];
        let (pid, shown) = (at.process.pid(), at.pid);
        let within = covered.iter().find(|(it, _)| *it == pid).map(|(_, by)| *by);
        if within.is_none() {
            let forks = |id| candidates.iter().any(|other| other.is_fork_of(id, at));
            let begun = at.config.as_ref().filter(|config| *own && config.run != 0);
            let begun = begun.map(|config| config.begun.map(Pid::of_word));
            let evidence = Evidence { is_heir: &forks, begun };
            let members = members(pid, at.config.as_ref(), &evidence);
            covered.extend(members.into_iter().filter(|it| *it != pid).map(|it| (it, shown)));
        } else if !own {
            // Descendants have what the dumper needed, or what they were born with.
            continue;
        }
        running.push(candidates[index].with(within));
    }
    Ok(running)
}

/// The processes that a checkpoint of this one holds.
fn members(pid: Pid, config: Option<&Config>, evidence: &Evidence<'_>) -> Vec<Pid> {
    let settings = config.and_then(|config| Settings::from_config(config).ok()).unwrap_or_default();
    if settings.alone == Some(true) {
        return Vec::new();
    }
    let without = settings.without.unwrap_or_default();
    let listed = forest::listed(pid, &without, evidence).unwrap_or_default();
    listed.members.iter().map(|kin| kin.pid).collect()
}

/// What may be one.
struct Candidate {
    running: Running,
    /// It was launched, restarted or attached to by itself.
    own: bool,
}

impl Candidate {
    /// Whether this is a process of the id that was forked under the same configuration.
    fn is_fork_of(&self, id: Pid, of: &Running) -> bool {
        let run = |it: &Running| it.config.as_ref().map(|config| config.run);
        self.running.process.pid() == id && !self.own && run(&self.running) == run(of)
    }

    fn with(&self, within: Option<Pid>) -> Running {
        Running { process: self.running.process.clone(), within, ..self.running }
    }
}

fn look(kin: &Kin, process: Process, monitors: &[Found], everybody: &[Kin]) -> Option<Candidate> {
    let region = Region::of(&process);
    let shown = stand_in(kin.pid, everybody);
    let above = || Process::glimpse(shown).ok();
    let watching =
        |found: &&Found| found.watches(&process) || above().is_some_and(|it| found.watches(&it));
    let running = Running {
        pid: shown,
        start: kin.start,
        forked: false,
        config: None,
        last: Err("what it has executed is not equipped"),
        due: None,
        within: None,
        process: process.clone(),
    };
    match region {
        Ok(Some((_, region))) => {
            let forked = !region.is_for(&process);
            let own = !forked && region.control.exe_len != 0;
            if region.control.version != VERSION {
                let last = Err("another version of ckpt runs it");
                return Some(Candidate { running: Running { last, forked, ..running }, own });
            }
            let config = region.control.config;
            // It was saved once, and nobody has asked for more.
            if config.flags & config_flag::SIGNAL_OPEN != 0 && config.msperiod == 0 {
                return None;
            }
            let is_watched = || monitors.iter().any(|found| watching(&found));
            let due = (config.msperiod != 0 && is_watched()).then_some(region.control.due);
            let last = last::of(&region.control).ok_or("it makes no sense in its memory");
            let running = Running { config: Some(config), last, due, forked, ..running };
            Some(Candidate { running, own })
        }
        // A stranger's memory may not be looked at (Yama), but that there is a region.
        Err(_) if process.maps().is_ok_and(|all| all.iter().any(|vma| is_base(vma.start))) => {
            let config = monitors.iter().find(watching).and_then(Found::given);
            let last = Err("its memory is closed");
            Some(Candidate { running: Running { config, last, ..running }, own: true })
        }
        // What a program has executed that could not be equipped, or is not yet.
        _ => {
            let found = monitors.iter().find(watching).filter(|_| shown == kin.pid)?;
            let stands = enter::stands(&process) || enter::is_launching(&process);
            let config = found.given();
            (!stands).then_some(Candidate { running: Running { config, ..running }, own: true })
        }
    }
}

/// Who stands for a process, or itself.
fn stand_in(pid: Pid, everybody: &[Kin]) -> Pid {
    let mut at = pid;
    while let Some(kin) = everybody.iter().find(|kin| kin.pid == at)
        && Process::glimpse(kin.parent).is_ok_and(|it| enter::stands(&it))
    {
        at = kin.parent;
    }
    at
}

impl Running {
    /// What it is called: the file of its first word, or the kernel's name of it.
    pub(super) fn program(&self) -> String {
        let words = self.process.cmdline().unwrap_or_default();
        let file = words.first().and_then(|word| std::path::Path::new(word).file_name());
        let name = file.map(ToOwned::to_owned).or_else(|| self.process.name().ok());
        name.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where its last checkpoint is, or its first will be.
    pub(super) fn name(&self) -> Option<String> {
        let name = Settings::from_config(self.config.as_ref()?).ok()?.name?;
        let (mut name, pid) = (name.written(), self.process.inner_pid());
        if self.forked {
            name.push(format!(".{pid}"));
        }
        let template = Template::parse(std::path::Path::new(&name)).ok()?;
        let number = self.last.map_or(1, |last| last.number.max(1));
        let file = template.expand(&Values::of(pid), number);
        Some(file.to_string_lossy().into_owned())
    }
}
