// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 4: refuse, naming every obstacle at once, before anything is done.

use super::Demand;
use super::halted;
use super::phase2_equip::Equipped;
use super::phase3_gather::Still;
use super::sharers;
use crate::error::{Error, Kind, Result};
use crate::proc::Pid;
use crate::proc::Process;
use crate::proc::tree::{self, Kin};
use crate::ptrace::forest::{self, Forest};
use crate::resource::descriptor::pty::Ptys;
use crate::resource::kinship::{self, Found, sharing};
use crate::resource::looked::Looked;
use crate::resource::{kinds, losses, signals};
use ckpt_abi::image::{Member, member_flag, process_flag, thread_flag};
use nix::libc;
use nix::sys::signal::Signal;

/// The children of a process that is saved alone, by their names. Processes of ours have another exit signal.
fn names(children: &[Pid]) -> Vec<String> {
    let stats = children
        .iter()
        .copied()
        .filter_map(|child| Process::glimpse(child).and_then(|it| it.main_stat()).ok());
    let mut names: Vec<String> = Vec::new();
    for stat in stats.filter(|stat| stat.exit_signal == Signal::SIGCHLD as i32) {
        let name = stat.comm.to_string_lossy().into_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Names the processes that stay out of the image of these others, of which some were `looked` at since they stand still.
///
/// # Errors
/// The program would end, and nothing would go on with what they do; only whoever asks for that may say so.
#[inline(never)]
pub(crate) fn left_out(
    request: &Demand,
    forest: &Forest,
    equipped: &[Equipped],
    looked: &[Option<Looked>],
) -> Result<Option<String>> {
    let all = match forest.left_out.is_empty() {
        false => losses::names(&forest.left_out),
        true if equipped.len() > 1 || !forest.dead.is_empty() => return Ok(None),
        true => match looked.first() {
            Some(Some(looked)) => names(&looked.children).join(", "),
            _ => names(&request.process.children()).join(", "),
        },
    };
    if all.is_empty() {
        return Ok(None);
    }
    let said = request.settings.alone == Some(true) || request.settings.without.is_some();
    if request.stop == Some(true) && !said {
        let text = format!(
            "process {} would end, but its checkpoint would be without its child processes {all}: it is configured so",
            request.pid()
        );
        let way_out = "say --alone (or --without) again to end it all the same, CKPT_ALONE=0 to save them, too";
        return Err(Error::new(text).of(Kind::Obstacles).hint(way_out));
    }
    Ok(Some(kinship::missing(&all)))
}

/// Names the processes of whom nobody can tell whether they belong to it.
#[inline(never)]
pub(crate) fn doubtful(forest: &Forest, equipped: &[Equipped]) -> Result<Option<String>> {
    let Some(root) = equipped.first() else { return Ok(None) };
    let mut all = forest.doubtful.clone();
    let pid = root.process.pid();
    let now = tree::kin(pid)?.group;
    let group = begun(root).map(|begun| Pid::of_word(begun[1]));
    if let Some(left) = group.filter(|group| *group > Pid::NONE && *group != now) {
        let left = [left].into();
        let members: Vec<_> = equipped.iter().map(|one| one.process.pid()).collect();
        let everybody = tree::everybody()?;
        let news = tree::doubtful_in(&left, pid, &members, &everybody).into_iter();
        all.extend(news.filter_map(forest::named).filter(|one| !forest.doubtful.contains(one)));
    }
    Ok((!all.is_empty()).then(|| kinship::doubtful(&losses::names(&all))))
}

/// What is in the way when another process lives in the same memory.
pub(super) fn shared(other: Pid) -> String {
    format!("process {other} shares its memory (vfork(2), or clone(2) with CLONE_VM)")
}

/// Refuses a program that shares its memory, before that is touched: a payload would come to both.
pub(crate) fn refuse_shared(process: &Process) -> Result<()> {
    let pid = process.pid();
    match sharers::anywhere(process).first() {
        Some(other) => {
            let why = kinds::advised(&shared(*other));
            Err(Error::new(format!("process {pid} cannot be saved: {why}")).of(Kind::Obstacles))
        }
        None => Ok(()),
    }
}

/// Whether the parent of this very process will meet its end; it will be told of it as soon as it is restarted.
fn will_meet(processes: &mut [Still<'_>], own: &Kin) -> bool {
    let mut all = processes.iter_mut();
    let Some(parent) = all.find(|p| p.equipped.process.pid() == own.parent) else { return false };
    let reaps_itself =
        parent.gathered.actions.get(libc::SIGCHLD as usize - 1).is_some_and(|action| {
            action.handler == libc::SIG_IGN as u64 || action.flags & libc::SA_NOCLDWAIT as u64 != 0
        });
    if !reaps_itself {
        parent.gathered.pending.push(signals::end_of_child(own.pid));
    }
    !reaps_itself
}

/// What stands in the way of saving one of the processes, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// The process; None: how they are related.
    pub pid: Option<Pid>,
    /// What it is.
    pub what: String,
    /// It usually goes by itself in a moment.
    pub passing: bool,
}

impl Obstacle {
    /// One that stays.
    pub(crate) fn of(pid: Pid, what: String) -> Self {
        Self { pid: Some(pid), what, passing: false }
    }
}

/// One sentence of all of them.
pub(crate) fn sentence(obstacles: &[Obstacle]) -> String {
    let mut sentences: Vec<String> = Vec::new();
    let mut last = None;
    for Obstacle { pid, what, .. } in obstacles {
        let what = &kinds::advised(what);
        sentences.push(match pid {
            // What a refusal says of a process names it already.
            Some(pid) if *pid != last.unwrap_or(Pid::NONE) && !names_it(*pid, what) => {
                format!("process {pid} cannot be saved: {what}")
            }
            _ => what.clone(),
        });
        last = *pid;
    }
    sentences.join("; ")
}

pub(crate) fn names_it(pid: Pid, what: &str) -> bool {
    [format!("process {pid} "), format!("process {pid}:")].iter().any(|name| what.contains(name))
}

/// Looks for all that stands in the way of a checkpoint; how the processes are related, if there are several.
///
/// # Errors
/// One is gone.
pub(crate) fn judge(
    processes: &mut [Still<'_>],
    dead: &[Kin],
    ptys: &Ptys,
) -> Result<(Vec<Member>, Vec<Obstacle>)> {
    let mut dead = dead.to_vec();
    dead.retain(|kin| kin.pid != Pid::own() || will_meet(processes, kin));
    let dead = &dead;
    let (mut all, mut found) = (Vec::new(), Vec::new());
    let alone = processes.len() == 1 && dead.is_empty();
    for process in processes.iter() {
        let Still { equipped, gathered, frozen, first, children, .. } = process;
        let (pid, process) = (equipped.process.pid(), &equipped.process);
        let mut obstacles = gathered.obstacles.clone();
        // Of who does not stand still that was asked before any did: a wait here holds the others.
        if !frozen.threads.is_empty() {
            obstacles.extend(sharers::near(process, first.ppid, children).into_iter().map(shared));
        }
        all.extend(obstacles.into_iter().map(|what| Obstacle::of(pid, what)));
        let passing = gathered.passing.iter().cloned();
        all.extend(passing.map(|what| Obstacle { passing: true, ..Obstacle::of(pid, what) }));
        let flags = gathered.process.map_or(0, |process| process.flags);
        let reaps = flags & process_flag::SUBREAPER != 0;
        found.push(Found {
            kin: tree::of_stat(pid, first),
            stat: Some(first.clone()),
            children: children.clone(),
            reaps,
            untold: false,
        });
    }
    all.extend(deaths(processes));
    keep_orphans(processes, &found);
    halted::find_untold(processes, &mut found)?;
    let of_all = |what| Obstacle { pid: None, what, passing: false };
    let begun = processes.first().and_then(|root| begun(root.equipped));
    let mut ended: Vec<_> = dead.iter().map(Found::dead).collect();
    halted::find_ends(processes, &mut ended)?;
    let mut members = kinship::save(&found, &ended, ptys, begun).unwrap_or_else(|obstacles| {
        all.extend(obstacles.into_iter().map(of_all));
        Vec::new()
    });
    // One that is where it was started is restarted as such.
    if alone && members.iter().all(|root| root.session == 0 && root.group == 0) {
        members.clear();
    }
    all.extend(sharing::save(&mut members).into_iter().map(of_all));
    name_first(processes, &members);
    name_spent(processes, &members);
    Ok((members, all))
}

/// Whom the kernel tells of the end of a parent's thread, where that has ended by now: a restarted main thread makes all
/// children and then ends, so they would be told of it (kernel/exit.c, forget_original_parent).
fn deaths(processes: &[Still<'_>]) -> Vec<Obstacle> {
    let has_ended = |parent: Pid| {
        let parent = processes.iter().find(|process| process.equipped.process.pid() == parent);
        let main = parent.and_then(|parent| parent.gathered.threads.first());
        main.is_some_and(|main| main.flags & thread_flag::ENDED != 0)
    };
    let is_told = |process: &&Still<'_>| {
        let threads = &process.gathered.threads;
        threads.iter().any(|thread| thread.death_signal != 0) && has_ended(process.first.ppid)
    };
    let told = processes.iter().filter(is_told);
    told.map(|process| {
        let what = format!(
            "it gets a signal when its parent ends (prctl(2), PR_SET_PDEATHSIG), and the main thread of that, process {}, \
             has ended before others, in a way that a restart cannot make again",
            process.first.ppid
        );
        Obstacle::of(process.equipped.process.pid(), what)
    })
    .collect()
}

/// [`judge`], for which nothing may be in the way.
///
/// # Errors
/// Something is: all of it, of all processes.
#[inline(never)]
pub(crate) fn refuse(
    processes: &mut [Still<'_>],
    dead: &[Kin],
    ptys: &Ptys,
) -> Result<Vec<Member>> {
    let (members, obstacles) = judge(processes, dead, ptys)?;
    if obstacles.is_empty() {
        return Ok(members);
    }
    let passing = obstacles.iter().all(|obstacle| obstacle.passing);
    let kind = if passing { Kind::Passing } else { Kind::Obstacles };
    Err(Error::new(sentence(&obstacles)).of(kind).hint(UNHARMED))
}

/// What is said at the end of a refusal.
pub(super) const UNHARMED: &str = "it goes on unharmed";

/// Refuses to go without any of these, where nothing may be lost.
#[inline(never)]
pub(crate) fn strictly(losses: &[String]) -> Error {
    let losses: Vec<_> = losses.iter().map(|loss| kinds::advised(loss)).collect();
    let text = format!(
        "a restart would go without something, and --strict (CKPT_STRICT=1) forbids that: {}",
        losses.join("; ")
    );
    Error::new(text).of(Kind::Obstacles).hint(UNHARMED)
}

/// The session and group in which a process was started. Of a child that says what it has inherited only where a session
/// began: it leads none but one of its own.
fn begun(root: &Equipped) -> Option<[u32; 2]> {
    let (process, config) = (&root.process, root.region.control.config);
    let [session, group] = config.begun;
    let group = if root.region.is_for(process) { group } else { kinship::begun(process.pid())[1] };
    (config.run != 0).then_some([session, group])
}

/// CPU time of the dead that is worth a word, in clock ticks.
const SPENT: u64 = 100;

/// Nobody can give a process the CPU time of another, which its parent is told (wait4(2), times(2)).
fn name_spent(processes: &mut [Still<'_>], members: &[Member]) {
    let Some(root) = processes.first_mut() else { return };
    for member in members.iter().filter(|member| member.flags & member_flag::DEAD != 0) {
        let dead = Process::open(Pid::of_word(member.pid)).ok();
        if let Some(spent) = dead.and_then(|dead| dead.cpu_time()).filter(|spent| *spent >= SPENT) {
            let (pid, name) = kinship::named(member);
            root.gathered.losses.push(format!(
                "the {} s of CPU time of process {pid} ({name}), which has ended: wait4(2) and times(2) tell its parent of none",
                spent / 100
            ));
        }
    }
}

/// Whose orphans come to a process of the tree, of that there is no snapshot: its picture would be met.
fn keep_orphans(processes: &mut [Still<'_>], found: &[Found]) {
    // Parents come first; an orphan's is outside.
    for (index, own) in found.iter().enumerate() {
        let above = found[..index].iter().position(|it| it.kin.pid == own.kin.parent);
        let leave = above.is_none_or(|above| processes[above].orphans_leave);
        processes[index].orphans_leave &= leave && !own.reaps;
    }
}

/// The restarter of a container has the id 1 already.
fn name_first(processes: &mut [Still<'_>], members: &[Member]) {
    let Some(root) = processes.first_mut().filter(|_| members.len() > 1) else { return };
    if root.equipped.process.inner_pid() == Pid::INIT {
        root.gathered.losses.push(
            "its process id 1, as the first process of a PID namespace (a container), where a restart may make no namespaces: \
             the job has new ids then, and `wait $!` of a shell goes wrong; started by ckpt, or below an init (docker run \
             --init), ids are kept"
                .into(),
        );
    }
}
