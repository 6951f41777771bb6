// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 3: read everything but the pages of a process, while it stands still.

use super::phase2_equip::Equipped;
use super::{caller, excluded};
use crate::abreast::{self, Aside};
use crate::error::{Error, Kind, Result};
use crate::image::PAGE;
use crate::proc::maps::Vma;
use crate::proc::namespaces::Namespaces;
use crate::proc::stat::Stat;
use crate::proc::status::Status;
use crate::proc::tree::Kin;
use crate::proc::{Pid, Process, Tid};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::list::{List, Question, Replies};
use crate::resource::descriptor::{Tables, tables::Table};
use crate::resource::looked::{Looked, LookedThread};
use crate::resource::memory::Area;
use crate::resource::memory::ring::Quiet;
use crate::resource::{
    Common, Gathered, Target, descriptor, memory, privileges, process, runtime, signals, sysv,
    threads, timers, unsaved,
};
use ckpt_abi::api::EXCLUDED;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

/// A process of the checkpoint that stands still, with its records.
pub(crate) struct Still<'a> {
    /// The process.
    pub equipped: &'a Equipped,
    /// Its threads.
    pub frozen: Frozen,
    /// What the kernel says of its first thread.
    pub first: Stat,
    /// Its children.
    pub children: Vec<Pid>,
    /// What the image says of it.
    pub gathered: Gathered,
    /// What is to be written of its memory.
    pub areas: Vec<Area>,
    /// Its mappings, if these have to be confirmed ([`crate::resource::presumed`]).
    pub presumed: Option<Vec<Vma>>,
    /// Whether orphans of the process come to somebody who reaps them, so that there can be a snapshot.
    pub orphans_leave: bool,
}

/// Gathers the records of all processes, of which some were `looked` at since they stand still, and what they have in
/// common; all of it may have to stay `untouched`
/// ([`Tables::untouched`]). Of those who die by their end, if they `stop`, a SIGTERM is forgotten; `dead` are so by now. TCP connections
/// to others go on if it `keeps` them.
pub(crate) fn gather_all<'a>(
    generation: u64,
    equipped: &'a [Equipped],
    (mut processes, looked): (Vec<Frozen>, Vec<Option<Looked>>),
    (dead, stop, keeps): (&[Kin], bool, bool),
    untouched: bool,
) -> Result<(Vec<Still<'a>>, Common)> {
    for (frozen, Equipped { memory, region, .. }) in processes.iter_mut().zip(equipped) {
        if region.is_there() {
            frozen.attend(memory, &region.desk(), region.base)?;
        }
    }
    let mut looked = look(equipped, looked)?;
    let tids: Vec<_> = processes.iter().map(Frozen::tids).collect();
    let mut looks = Looks::begin(equipped, &tids, &looked);
    let table = |(one, looked): (&Equipped, &mut Looked)| Table {
        pid: one.process.pid(),
        fds: std::mem::take(&mut looked.fds),
    };
    let of = equipped.iter().zip(&mut looked).map(table).collect();
    let first = equipped.first().map(|first| &first.region.control);
    let at_start = first.map_or([[0; 3]; 3], |control| control.standard);
    let embed = first.map_or(0, |control| control.config.embed);
    let tables = Tables::new(of, at_start, untouched)?;
    let mut common = Common { tables, embed, ..Common::default() };
    common.tables.keeps = keeps;
    // To read what a handler of the program has to fill first would be to wait for it.
    let stand = processes
        .iter()
        .zip(equipped)
        .zip(&looked)
        .filter(|((frozen, _), looked)| !frozen.threads.is_empty() && looked.rest.is_some());
    common.quiet = Quiet::of(stand.map(|((_, one), looked)| (&one.memory, &looked.vmas[..])));
    let mut works = Vec::new();
    let all = (0..).zip(equipped).zip(processes).zip(looked).zip(&tids);
    for ((((number, one), frozen), looked), tids) in all {
        works.push(Work::new(number, one, frozen, looked, tids)?);
    }
    let (mut still, mut outcome) = (Vec::new(), Ok(()));
    for work in &mut works {
        outcome = outcome.and_then(|()| work.begin());
    }
    for mut work in works {
        // What has begun has to be met, whatever fails.
        let answers = work.meet();
        outcome = outcome
            .and_then(|()| work.end(answers?, generation, &mut looks, &mut common))
            .map(|one| still.push(one));
    }
    outcome?;
    // Behind all that was asked how long anybody still has to wait: by a clock of before, waits would end too early.
    if let Some(first) = still.first() {
        common.clocks = first.frozen.clocks()?;
    }
    if stop {
        let ids = dead.iter().map(|kin| kin.pid);
        let members: HashSet<Pid> = common.tables.of.iter().map(|t| t.pid).chain(ids).collect();
        still.iter_mut().for_each(|s| signals::forget_termination(&mut s.gathered, &members));
    }
    sysv::save(still.iter_mut().map(|s| (&mut s.gathered, &mut s.areas)), &mut common);
    memory::carried::carry(still.iter_mut().map(|s| (&mut s.gathered, &mut s.areas)), &mut common);
    Ok((still, common))
}

/// Looks at those that were not `looked` at yet, some abreast.
#[inline(never)]
fn look(equipped: &[Equipped], looked: Vec<Option<Looked>>) -> Result<Vec<Looked>> {
    let left: Vec<_> = equipped.iter().zip(&looked).filter(|(_, seen)| seen.is_none()).collect();
    let news =
        abreast::each(&left, 1, |(one, _)| Looked::at(&one.process, &one.memory, (None, false)));
    let mut news = news.into_iter();
    looked.into_iter().filter_map(|seen| seen.map(Ok).or_else(|| news.next())).collect()
}

/// What is seen of the threads of all processes beside what they are asked, by another thread.
struct Looks {
    seen: Vec<Vec<LookedThread>>,
    looking: Option<Aside<Vec<Vec<LookedThread>>>>,
}

impl Looks {
    /// Begins to look. Behind [`Looks::of`] nothing goes on.
    #[inline(never)]
    fn begin(equipped: &[Equipped], tids: &[Vec<Tid>], looked: &[Looked]) -> Self {
        /// So many are as much work as a thread costs.
        const FEW: usize = 32;
        let all = equipped.iter().zip(tids).zip(looked).map(|((one, tids), looked)| {
            let namespaces = looked.rest.as_ref().map(|rest| rest.namespaces.clone());
            (one.process.clone(), tids.clone(), namespaces)
        });
        let all = Arc::new(all.collect::<Vec<_>>());
        let look = |all: &[(Process, Vec<Tid>, Option<Namespaces>)]| {
            let of = |(process, tids, namespaces): &(_, Vec<Tid>, Option<Namespaces>)| {
                tids.iter()
                    .map(|tid| LookedThread::at(process, *tid, namespaces.as_ref()))
                    .collect::<Vec<_>>()
            };
            all.iter().map(of).collect::<Vec<_>>()
        };
        let theirs = Arc::clone(&all);
        let looking = (tids.iter().map(Vec::len).sum::<usize>() > FEW)
            .then(|| abreast::aside(move || look(&theirs)))
            .flatten();
        let seen = if looking.is_some() { Vec::new() } else { look(&all) };
        Self { seen, looking }
    }

    #[inline(never)]
    fn end(&mut self) {
        if let Some(looking) = self.looking.take() {
            self.seen = looking.join().unwrap_or_default();
        }
    }

    /// What was seen of the threads of one, when it was.
    fn of(&mut self, number: u32) -> Vec<LookedThread> {
        self.end();
        self.seen.get_mut(number as usize).map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        self.end();
    }
}

/// A process whose records are being gathered. Where there is no payload its threads are not asked, and where they do not
/// stand still there are no records of them.
struct Work<'a> {
    equipped: &'a Equipped,
    frozen: Frozen,
    looked: Looked,
    ids: Vec<u32>,
    /// What the kernel says of its first thread that lives, in words and in numbers.
    status: Rc<Status>,
    stat: Stat,
    first: Tid,
    gathered: Gathered,
    /// What its main thread is asked: for the process, and whether it answers already.
    asked: Option<(Questions, Option<threads::Asking>)>,
}

/// What only the process itself can say.
struct Questions {
    actions: Vec<Question>,
    timers: timers::TimerQuestions,
    privileges: privileges::PrivilegeQuestions,
    process: process::ProcessQuestions,
}

/// What it has said, and its main thread of itself.
type Said = (Questions, Option<threads::Answers>, Replies);

impl Questions {
    fn ask(target: &Target<'_>, list: &mut List) -> Self {
        Self {
            actions: signals::ask(list),
            timers: timers::ask(target, list),
            privileges: privileges::ask(list),
            process: process::ProcessQuestions::add(list, free_page(target)),
        }
    }
}

impl<'a> Work<'a> {
    fn new(
        number: u32,
        equipped: &'a Equipped,
        frozen: Frozen,
        mut looked: Looked,
        tids: &[Tid],
    ) -> Result<Self> {
        let Some(first) = tids.first().copied() else {
            return Err(Error::new(format!("process {} is gone", frozen.pid)).of(Kind::Gone));
        };
        let mut obstacles = std::mem::take(&mut looked.obstacles);
        obstacles.extend(threads::obstacles(&frozen));
        let gathered = Gathered { number, obstacles, ..Gathered::default() };
        let process = &equipped.process;
        let status = match frozen.threads.first() {
            Some(first) => first.look(frozen.pid)?,
            None => Rc::new(process.status(process.main_thread())?),
        };
        let stat = match first == process.main_thread() {
            true => looked.first.clone(),
            false => process.stat(first)?,
        };
        let ids = runtime::sorted(frozen.threads.iter().map(|thread| thread.tid.word()));
        Ok(Self { equipped, frozen, looked, ids, status, stat, first, gathered, asked: None })
    }

    fn target(&mut self) -> (Target<'_>, &[u32], &mut Gathered) {
        let Equipped { memory, region, .. } = self.equipped;
        let rest = self.looked.rest.as_ref();
        let target = Target {
            frozen: &mut self.frozen,
            memory,
            vmas: &self.looked.vmas,
            loaded: rest.map_or(&[][..], |rest| &rest.loaded),
            region,
            status: Rc::clone(&self.status),
            stat: &self.stat,
            first: self.first,
            rest,
        };
        (target, &self.ids, &mut self.gathered)
    }

    /// Begins to ask the main thread, so that those of several processes answer abreast. [`Work::meet`] has to follow.
    #[inline(never)]
    fn begin(&mut self) -> Result<()> {
        // To read what a handler of the program has to fill first would be to wait for it.
        if self.looked.rest.is_none() {
            return Ok(());
        }
        let (mut target, ids, gathered) = self.target();
        let before = gathered.obstacles.len();
        threads::settle_all(&mut target, ids, gathered)?;
        let mut list = List::default();
        let questions = Questions::ask(&target, &mut list);
        let first = ids.first().filter(|_| gathered.obstacles.len() == before);
        let asking = first.map(|_| threads::Asking::begin(&mut target, list, gathered));
        let asking = asking.transpose()?.flatten();
        // None of its threads may be unable to work for us.
        if gathered.obstacles.len() == before {
            self.asked = Some((questions, asking));
        }
        Ok(())
    }

    /// What the main thread answers; None if it was not asked.
    #[inline(never)]
    fn meet(&mut self) -> Result<Option<Said>> {
        let Some((questions, asking)) = self.asked.take() else { return Ok(None) };
        let (mut target, ..) = self.target();
        let answered = asking.map(|asking| asking.end(&mut target)).transpose()?;
        let (own, replies) =
            answered.map_or_else(|| (None, Replies::unknown()), |(own, all)| (Some(own), all));
        Ok(Some((questions, own, replies)))
    }

    /// Gathers the records, and the areas whose pages are to be written.
    #[inline(never)]
    fn end(
        mut self,
        said: Option<Said>,
        generation: u64,
        looks: &mut Looks,
        common: &mut Common,
    ) -> Result<Still<'a>> {
        let (mut target, ids, gathered) = self.target();
        let areas = read(&mut target, ids, said, gathered, (looks, common))?;
        let Equipped { memory, region, orphans_leave, .. } = self.equipped;
        let excluded = match region.is_there() {
            true => caller::read(memory, region)?.excluded,
            false => [[0; 2]; EXCLUDED],
        };
        let areas = excluded::cut(areas, &excluded);
        let Self { equipped, frozen, mut gathered, looked, .. } = self;
        if let Some(process) = &mut gathered.process {
            process.generation = generation;
        }
        let Looked { first, children, vmas, presumed, .. } = looked;
        let presumed = presumed.then_some(vmas);
        let orphans_leave = *orphans_leave;
        Ok(Still { equipped, frozen, first, children, gathered, areas, presumed, orphans_leave })
    }
}

fn read(
    target: &mut Target<'_>,
    ids: &[u32],
    said: Option<Said>,
    gathered: &mut Gathered,
    (looks, common): (&mut Looks, &mut Common),
) -> Result<Vec<Area>> {
    if target.rest.is_none() {
        descriptor::save(target, gathered, common)?;
        return Ok(Vec::new());
    }
    let before = gathered.obstacles.len();
    let said = said.map(|(questions, own, replies)| {
        own.map(|own| threads::save(target, ids, own, gathered)).transpose()?;
        Ok((questions, replies))
    });
    let said = said.transpose();
    // From here on there may be forks.
    let seen = looks.of(gathered.number);
    let said = said?;
    let mut areas = memory::save(target, gathered, common)?;
    if let Some((questions, replies)) = said.filter(|_| gathered.obstacles.len() == before) {
        save_answers(questions, &replies, target, gathered, (common, &mut areas))?;
    }
    unsaved::name(target, &seen, gathered);
    signals::save_pending(target, gathered)?;
    timers::name_overruns(gathered);
    signals::save_stop(target, gathered);
    descriptor::save(target, gathered, common)?;
    memory::leave_to_streams(&mut areas, gathered, common);
    memory::shown::save(target, &mut areas, gathered, common)?;
    Ok(areas)
}

/// The address of a page behind the region where nothing is. Nobody can map anything there while all stands still.
fn free_page(target: &Target<'_>) -> u64 {
    let mut free = target.region.end();
    while let Some(there) = target.vmas.iter().find(|vma| vma.start < free + PAGE && vma.end > free)
    {
        free = there.end;
    }
    free
}

/// Saves what the main thread has said of the process, and asks it what depends on that.
#[inline(never)]
fn save_answers(
    questions: Questions,
    answers: &Replies,
    target: &mut Target<'_>,
    gathered: &mut Gathered,
    (common, areas): (&mut Common, &mut [Area]),
) -> Result<()> {
    let Questions { actions, timers, privileges, process } = questions;
    let desk = target.region.desk();
    // The caller borrows the thread, the savers read the rest of the target.
    let stands = !target.frozen.threads.is_empty();
    let mut main = stands.then(|| target.frozen.threads.remove(0));
    let save = || {
        let main = main.as_mut();
        let mut caller = main.map(|main| Caller::new(main, target.memory, &desk)).transpose()?;
        signals::save_actions(&actions, answers, gathered)?;
        timers::save(timers, answers, target, gathered)?;
        if let Some(caller) = &mut caller {
            memory::look_into_shared(target, caller, areas, gathered)?;
        }
        if let Some(caller) = &mut caller {
            privileges::name_sandbox(target, caller, gathered)?;
            sysv::undo::save(target, caller, gathered, common)?;
        }
        process::save(&process, answers, target, gathered, common)?;
        privileges::save(&privileges, answers, target, gathered, common);
        Ok(())
    };
    let result = save();
    main.into_iter().for_each(|main| target.frozen.threads.insert(0, main));
    result
}
