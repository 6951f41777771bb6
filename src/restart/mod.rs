// SPDX-License-Identifier: LGPL-2.1-only
//! A program is restarted from an image: the phases, in running order.
//!
//! [`phase1_check`] → [`phase2_adapt`] → [`phase3_open`] → [`phase4_fill`] → [`phase5_settle`] →
//! [`phase6_plan`] → [`phase7_leave`]. All that can fail is tried in the first six, in ordinary code,
//! with nothing destroyed; the memory of the program is already filled when the last one, the point
//! of no return, hands over to the restorer in the payload.
//!
//! Of an image of several processes the first three phases are done for all at once; then each process of the [`tree`]
//! goes through the others by itself, and they meet before the last.

pub(crate) mod auxv;
pub(crate) mod callers;
pub(crate) mod clock;
mod early;
mod failure;
mod following;
pub(crate) mod frames;
pub(crate) mod gate;
mod huge;
mod ids;
mod lazy;
pub(crate) mod machine;
pub(crate) mod mapping;
mod origin;
mod pages;
mod painter;
pub mod phase1_check;
pub(crate) mod phase2_adapt;
pub(crate) mod phase3_open;
pub(crate) mod phase4_fill;
pub(crate) mod phase5_settle;
pub(crate) mod phase6_plan;
pub(crate) mod phase7_leave;
mod placed;
mod pooled;
mod region;
mod shares;
pub(crate) mod skeleton;
pub(crate) mod space;
mod tree;
mod vdso;

use crate::error::{Because, Result, printable};
use crate::fault::{Point, reach};
use crate::image::read::Image;
use crate::inject::monitor::Monitor;
use crate::proc::{Pid, forebear};
use crate::progress::{self, Screen};
use crate::resource::descriptor::{grown, pty::screen::Front};
use crate::resource::kinship;
use crate::resource::memory::hugetlb;
use crate::resource::{regained, sysv};
use crate::settings::{self, Settings};
pub use callers::Given;
use ckpt_abi::image::SectionKind;
use ckpt_abi::region::{Config, GROUP_LEFT, config_flag};
use gate::Gate;
pub use ids::Ids;
use lazy::{Eager, Lazy};
use phase1_check::{Saved, Whole};
use phase3_open::{Files, Opened};
use pooled::Kept;
use skeleton::rendezvous::Stage;
use skeleton::stay;
use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use tree::{Tree, Who};

/// What the restarter asks for: the options of a checkpoint file that is executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Changes to the configuration of the restarted run; relative names are resolved before it begins.
    pub settings: Settings,
    /// Whether files that grew since the checkpoint are cut back.
    pub truncate_files: bool,
    /// Go on although the CPU lacks what the program may use.
    pub force_cpu: bool,
    /// Where files of the image are now.
    pub map_path: MapPath,
    /// What its ports are now.
    pub map_port: MapPort,
    /// What the program is given.
    pub given: Given,
    /// Where it works; None: where it did.
    pub cwd: Option<PathBuf>,
    /// Which process ids the program has.
    pub ids: Ids,
    /// Go on without a terminal, and leave the one that there is alone.
    pub no_tty: bool,
}

/// Replaces this process by the program in the image, behind a `gate` if there is one.
///
/// # Errors
/// Why it cannot be; nothing has happened then.
pub(crate) fn restart(
    image: &Image,
    options: &Options,
    program_name: &str,
    gate: Option<&Gate>,
) -> Result<Infallible> {
    // Schedulers may send the checkpoint signal at any time, and it would kill the restarter: all wait until it
    // is known which that is.
    let mask = mapping::block_all_signals();
    mapping::ignore_file_limit();
    // Our own memory is read by our number in /proc.
    crate::proc::of_this_namespace()?;
    let (mut whole, mut all) = phase1_check::check_all(image, &options.map_path)?;
    gate.map_or(Ok(()), |gate| gate.fill(image, &all))?;
    whole.map_port.clone_from(&options.map_port);
    whole.given.clone_from(&options.given);
    if let Some(cwd) = &options.cwd {
        all[0].cwd.clone_from(cwd);
    }
    whole.keeps_tcp = options.settings.keep_tcp != Some(false);
    reach(Point::Checked);
    let mut config = phase1_check::config(&all[0], options)?;
    (config.run, config.before) = (settings::fresh_run(), image.header().run);
    config.begun = kinship::begun(Pid::own());
    mapping::set_signals_but(mask, config.asyncsig);
    let memory =
        all.iter().flat_map(|saved| saved.memory.iter()).map(|chunk| u64::from(chunk.stored));
    let total = memory.sum::<u64>().max(image.header().file_len - image.header().start);
    let _shown = progress::begin(image.path().display().to_string(), Some(total), Screen::Own);
    let mut warnings = Vec::new();
    for saved in &mut all {
        phase2_adapt::convert(&whole, saved, options, &mut warnings)?;
    }
    for saved in &all {
        regained::find_root(&saved.root, false)?;
    }
    let mut tree = options.ids.tree(image, &all, &mut warnings)?;
    let takes_group = match &mut tree {
        Some(tree) => tree.takes_group(),
        None => Tree::of_image(image)?.is_some_and(|mut one| one.takes_group()),
    };
    if takes_group {
        config.begun[1] = GROUP_LEFT;
    }
    if tree.is_none() || options.ids == Ids::New {
        whole.unfurnish(&mut warnings);
    }
    let front = origin::front(image, &all, options, &mut warnings)?;
    let start = Start { whole, options, program_name, gate, config, front };
    warnings.extend(phase1_check::missing(image)?);
    stay::stay_if_needed(tree.is_none() && forebear::is_served(), tree.is_none())?;
    if let Some(tree) = tree {
        return tree.restart(&start, all, warnings);
    }
    let saved = all.swap_remove(0);
    warnings.extend(saved.denied(false)?);
    let monitor = phase2_adapt::monitor(&config)?;
    let _painter = painter::start(start.front.as_ref(), true);
    phase2_adapt::adapt_to(&saved, &mut warnings)?;
    let way = phase3_open::Way::Restart;
    let mut files = phase3_open::open(&start.whole, &[&saved], way, &mut warnings)?;
    files.finish(&start.whole, None, &mut warnings)?;
    reach(Point::Reopened);
    let monitor = monitor.as_ref().map_or(0, Monitor::pid);
    let early = start.early();
    early.bequeath();
    start.become_program(saved, files, monitor, &early, Who::Alone, warnings)
}

/// A restart that has been asked for.
struct Start<'a> {
    whole: Whole<'a>,
    options: &'a Options,
    program_name: &'a str,
    /// Who says when the program may go on, where that is to be said.
    gate: Option<&'a Gate>,
    /// The configuration that the program will have.
    config: Config,
    /// The terminal that it will have in the place of its own.
    front: Option<Front>,
}

impl Start<'_> {
    /// What of its memory is there already.
    fn early(&self) -> Kept {
        self.gate.map(Gate::kept).unwrap_or_default()
    }

    /// Makes the System V objects, in the first process, so that they know it as their maker.
    /// How many bytes of huge pages are ordinary ones then.
    #[inline(never)]
    fn furnish(&self, saved: &Saved<'_>, who: Who<'_>) -> Result<u64> {
        let (records, objects) = (&self.whole.systemv, &self.whole.objects);
        if records.is_empty() || who.member().is_none() {
            return Ok(0);
        }
        let mut lacking = 0;
        if saved.part.is_first() {
            let content = self.whole.image.bytes(SectionKind::SystemVContent)?;
            let page = |object: u32| objects.get(object as usize).map_or(0, |object| object.page);
            let fill = |object, memory: &mut [u8]| self.whole.read(object, memory);
            lacking = sysv::make::all(records, &content, fill, page)?;
        }
        who.meet(Stage::Furnished)?;
        let undone = sysv::undo::restore(&saved.undo);
        undone.because(|| "cannot have semaphores given back (SEM_UNDO)").map(|()| lacking)
    }

    /// The memory that is to be missing when the program goes on, if that was asked for.
    #[inline(never)]
    fn lazy(&self, saved: &Saved<'_>, warnings: &mut Vec<String>) -> Option<Lazy> {
        if self.config.flags & config_flag::LAZY == 0 || self.gate.is_some() {
            return None;
        }
        let lazy = match self.whole.image.processes().count() {
            1 => Lazy::of(&self.whole, saved),
            _ => Err(Eager::Because("there are several processes".into())),
        };
        let why = match lazy {
            Ok(lazy) => return Some(lazy),
            Err(Eager::Small) => return None,
            Err(Eager::Because(why)) => why,
        };
        warnings.push(format!(
            "all memory is read before the program goes on, as without --lazy: {why}"
        ));
        None
    }

    /// Becomes one of the image's processes.
    #[inline(never)]
    fn become_program(
        &self,
        mut saved: Saved<'_>,
        files: Files,
        monitor: u32,
        kept: &Kept,
        who: Who<'_>,
        mut warnings: Vec<String>,
    ) -> Result<Infallible> {
        let others = Settings::default();
        let is_first = saved.part.is_first();
        let settings = if is_first { &self.options.settings } else { &others };
        let opened = files.of_process(&saved)?;
        let lacking = self.furnish(&saved, who)?;
        let lazy = self.lazy(&saved, &mut warnings);
        let mut filled = phase4_fill::fill(&self.whole, &mut saved, &opened, settings, kept, lazy)?;
        warnings.extend(hugetlb::lacking(lacking + filled.lacking));
        reach(Point::Filled);
        who.meet(Stage::Filled)?;
        progress::end();
        if is_first {
            sysv::make::remove(&self.whole.systemv);
        }
        phase5_settle::settle(&self.whole, &mut saved, &opened, &mut filled, who)?;
        let config = &mut filled.control.config;
        if !is_first && config.run == self.config.before[0] {
            // A fork of the first lives as long.
            config.run = self.config.run;
        }
        if is_first {
            (config.run, config.before) = (self.config.run, self.config.before);
            config.begun = who.begun(self.config.begun);
            filled.control.monitor = monitor;
        }
        let line = self.gate.filter(|_| is_first);
        let line = line.map(|gate| gate.line(&saved.descriptors)).transpose()?;
        let plan = phase6_plan::plan(&saved, &opened, filled, (who, line))?;
        phase7_leave::be_alone()?;
        if is_first && let Some(gate) = self.gate {
            gate.pass()?;
        }
        who.meet(Stage::Planned)?;
        who.bury()?;
        // The last that can fail, for they alone change something.
        if who.member().is_none() {
            Tree::begin(self.whole.image)?;
        }
        if is_first {
            opened.objects.name_all()?;
            // Who begins a group of its own is in the background by now.
            mapping::block_all_signals();
            self.front.iter().for_each(Front::set);
        }
        let left = self.cut_and_say(&opened, who, warnings).and_then(|()| {
            reach(Point::Planned);
            phase7_leave::leave(opened, plan, &saved.locks, who)
        });
        if who.member().is_none() {
            self.front.iter().for_each(Front::give_back);
        }
        left
    }

    /// Cuts files back that grew, and says what there is to be said.
    fn cut_and_say(&self, opened: &Opened, who: Who<'_>, warnings: Vec<String>) -> Result<()> {
        let led = opened.descriptors.iter().filter(|r| opened.led.contains(&r.record.fd));
        let grown = grown::cut(led, self.options.truncate_files, self.program_name)?;
        for warning in warnings.into_iter().chain(grown) {
            if who.is_news(&warning) {
                // In one piece: others speak, too.
                let line = format!("{}: {}\n", self.program_name, printable(&warning));
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
        }
        Ok(())
    }
}

/// Whether [`restart`] would succeed in a process like this one, as far as can be seen without
/// becoming the program: the image is whole, and what it needs is there.
///
/// # Errors
/// Those of [`restart`].
pub fn rehearse(image: &Image) -> Result<()> {
    foresee(image, &MapPath::default())?;
    image.verify()
}

/// The same but for the content, which may be known.
///
/// # Errors
/// As [`rehearse`].
pub(crate) fn foresee(image: &Image, map_path: &MapPath) -> Result<()> {
    let (whole, all) = phase1_check::check_all(image, map_path)?;
    let all: Vec<_> = all.iter().collect();
    let mut said = Vec::new();
    let mut files = phase3_open::open(&whole, &all, phase3_open::Way::Rehearsal, &mut said)?;
    files.finish(&whole, None, &mut said)
}

/// Paths of the other machine and what they are here (`--map-path OLD=NEW`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapPath(pub Vec<(PathBuf, PathBuf)>);

impl MapPath {
    /// The path here: the longest OLD that is the path or a directory above it becomes its NEW.
    pub fn apply(&self, path: PathBuf) -> PathBuf {
        let fits = self.0.iter().filter(|(old, _)| path.starts_with(old));
        let Some((old, new)) = fits.max_by_key(|(old, _)| old.as_os_str().len()) else {
            return path;
        };
        match path.strip_prefix(old) {
            Ok(rest) if rest.as_os_str().is_empty() => new.clone(),
            Ok(rest) => new.join(rest),
            Err(_) => path,
        }
    }
}

/// Ports of the image and what they are here (`--map-port OLD=NEW`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapPort(pub Vec<(u16, u16)>);

impl MapPort {
    /// The port here.
    pub fn apply(&self, port: u16) -> u16 {
        self.0.iter().find(|(old, _)| *old == port).map_or(port, |(_, new)| *new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_of_whole_names_wins() {
        let pair = |(old, new): (&str, &str)| (old.into(), new.into());
        let map = MapPath([("/a", "/x"), ("/a/b", "/y"), ("/c/d", "/z")].map(pair).to_vec());
        for (from, to) in [
            ("/a/q", "/x/q"),
            ("/a/b/c", "/y/c"),
            ("/a/bc", "/x/bc"),
            ("/c/d", "/z"),
            ("/c/dd", "/c/dd"),
            ("/b", "/b"),
        ] {
            assert_eq!(map.apply(from.into()), PathBuf::from(to), "{from}");
        }
    }
}
