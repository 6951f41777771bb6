// SPDX-License-Identifier: LGPL-2.1-only
//! What all processes of a checkpoint have in common: where it goes, its number, and what becomes of them.

use super::phase2_equip::Equipped;
use super::phase3_gather::Still;
use super::place::{Foreseen, Place, Whose};
use super::rolling::Rolling;
use super::{Demand, caller};
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::inject::region::Region;
use crate::progress::{self, Screen, Shown};
use crate::resource::Common;
use crate::resource::descriptor::socket;
use crate::resource::losses::{self, List};
use crate::resource::signals;
use crate::settings::{Name, Settings, Template};
use ckpt_abi::api::Request;
use ckpt_abi::image::Member;
use ckpt_abi::region::config_flag;
use nix::sys::termios::{LocalFlags, tcgetattr};
use std::cell::RefCell;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A checkpoint that is being taken.
pub(crate) struct Checkpoint<'a> {
    /// What was asked for.
    pub request: &'a Demand,
    /// Where it goes.
    pub place: Place,
    /// Whether the processes end after it.
    pub stop: bool,
    /// Whether it may go without nothing.
    pub strict: bool,
    /// Whether TCP connections to others are to go on; then, whether we may have them do so.
    pub keeps: Option<bool>,
    /// Its number in the chain of checkpoints.
    pub generation: u64,
}

impl<'a> Checkpoint<'a> {
    /// The checkpoint that is asked for, as its first process is configured.
    ///
    /// # Errors
    /// Those of [`Place::find`], and a name that is none.
    #[inline(never)]
    pub(crate) fn of(
        request: &'a Demand,
        whose: (Whose, Option<Foreseen>),
        first: &Equipped,
    ) -> Result<Self> {
        let control = &first.region.control;
        let template = template(request, first)?;
        let mut newest = control.generation;
        let place =
            Place::find(request, whose, template, &control.config, forked(first), &mut newest)?;
        let ends = control.config.continues == 0;
        let stop = match request.periodic {
            true => ends && control.config.flags & config_flag::CONTINUE_GIVEN != 0,
            false => request.stop.unwrap_or(ends),
        };
        let configured = control.config.flags & config_flag::STRICT != 0;
        let strict = request.settings.strict.unwrap_or(configured);
        let keeps = keeps(request, first, stop);
        Ok(Self { request, place, stop, strict, keeps, generation: newest + 1 })
    }

    /// What earlier ones know, if it may go by that: of one process that goes on, to a file.
    pub(super) fn rolling(&self, processes: &[Equipped]) -> Option<&'a RefCell<Rolling>> {
        let [only] = processes else { return None };
        let flags = only.region.control.config.flags;
        let may = !self.stop && self.place.is_plain() && flags & config_flag::INCREMENTAL != 0;
        let known = self.request.rolling.as_ref().filter(|known| known.borrow().moves || may)?;
        known.borrow_mut().all = flags & config_flag::TRACK_ALL != 0;
        Some(known)
    }

    /// The run that it is of, and what that began with, as [`ckpt_abi::image::Header::run`]: those of the first process.
    pub(crate) fn runs(&self, equipped: &[Equipped]) -> [[u64; 2]; 2] {
        let config = equipped.first().map(|first| first.region.control.config);
        config.map_or([[0; 2]; 2], |config| [[config.run, self.generation], config.before])
    }

    /// What there is to say beside losses: what `--verbose` asks for, and, by the monitor, that the checkpoint signal is
    /// the program's own by now.
    #[inline(never)]
    pub(crate) fn notes(&self, processes: &[Still<'_>], members: &[Member]) -> Vec<String> {
        let all: Vec<_> = processes.iter().map(|process| &process.gathered).collect();
        let mut notes = Vec::from_iter(losses::trifles(&all, members));
        let control = processes.first().map(|first| &first.equipped.region.control);
        let told = control.is_some_and(|control| control.config.flags & config_flag::VERBOSE != 0);
        if !self.request.settings.verbose.unwrap_or(told) {
            notes.clear();
        }
        let resets = |process: &Still<'_>| {
            process.gathered.lists.iter().any(|(list, _)| *list == List::Reset)
        };
        if self.keeps == Some(false) && processes.iter().any(resets) {
            notes.push(format!("connections to others are not kept: {}", socket::RIGHT));
        }
        // Of a descendant nobody expects it: between its fork and its exec each has given the signal back.
        for process in processes.iter().take(1).filter(|_| self.request.periodic) {
            let control = &process.equipped.region.control;
            let signal = control.config.asyncsig;
            let at = (signal as usize).wrapping_sub(1);
            let action = process.gathered.actions.get(at);
            notes.extend(action.filter(|action| action.handler != control.handler).map(|action| {
                signals::verdict(process.equipped.process.pid(), signal, action.handler, false)
            }));
        }
        notes
    }

    /// Shows how far it is from now on, if that is wanted: on the screen of a program that ends only, is in front, and lets
    /// the terminal make lines.
    pub(super) fn shown(&self, equipped: &[Equipped], common: &Common) -> Option<Shown> {
        let screen = match self.request.screen.as_ref()? {
            Screen::Own => Screen::Own,
            Screen::Of(file) => {
                let first = &equipped.first()?.process;
                let stat = first.stat(first.main_thread()).ok()?;
                let modes = tcgetattr(file).ok()?.local_flags;
                let takes_lines = modes.contains(LocalFlags::ICANON | LocalFlags::ECHO);
                let is_in_front = stat.tpgid == stat.pgrp && takes_lines;
                (self.stop && is_in_front)
                    .then(|| file.try_clone().ok())
                    .flatten()
                    .map(Screen::Of)?
            }
        };
        let memory = equipped.iter().filter_map(|process| process.process.resident());
        let files = common.streams.iter().map(|stream| stream.object as usize);
        let files = files.filter_map(|index| common.objects.get(index)).map(|object| object.size);
        let name = self.place.shown().display().to_string();
        Some(progress::begin(name, Some(memory.chain(files).sum()), screen))
    }

    /// It is whole: the next one has the next number, and older ones may go.
    pub(crate) fn sealed(&self, equipped: &[Equipped]) {
        equipped.iter().for_each(|process| process.sealed(self.generation));
        reach(Point::Numbered);
        // What was kept of those before an encrypted one is plain.
        if let Some(known) = self.request.rolling.as_ref().filter(|_| self.place.is_sealed()) {
            let _ = self.place.touch(|| known.borrow_mut().remove_older());
        }
        self.place.prune(self.request.prune);
    }
}

/// Does what takes long before anybody stands still, if TCP connections to others are to go on.
#[inline(never)]
pub(super) fn foresee(request: &Demand) {
    let Settings { keep_tcp, .. } = request.settings;
    if request.stop == Some(false) || keep_tcp == Some(false) || request.periodic {
        return;
    }
    let found = Region::of(&request.process).ok().flatten();
    let config = found.map(|(_, region)| region.control.config);
    let flags = config.map_or(0, |config| config.flags);
    let ends = config.is_some_and(|config| config.continues == 0);
    if request.stop.unwrap_or(ends) && wants_kept(request, flags) {
        socket::look_ahead();
    }
}

/// Whether TCP connections to others are to go on, which only those do whose program ends, as it may send more; then,
/// whether we may have them do so.
pub(super) fn keeps(request: &Demand, first: &Equipped, stop: bool) -> Option<bool> {
    let flags = first.region.control.config.flags;
    (stop && wants_kept(request, flags)).then(socket::is_allowed)
}

fn wants_kept(request: &Demand, flags: u32) -> bool {
    request.settings.keep_tcp.unwrap_or(flags & config_flag::KEEP_TCP != 0)
}

/// The name of the checkpoint: for this call, else as configured; a forked child's has its id
/// appended, so that a signal to the whole group does not make two write one file.
fn template(request: &Demand, first: &Equipped) -> Result<Template> {
    if let Some(name) = called(request, first)? {
        return Template::parse(Path::new(&name.written()));
    }
    if let Some(name) = request.settings.name.as_ref() {
        return Template::parse(Path::new(&name.written()));
    }
    let mut name = first.region.name()?;
    if forked(first) {
        name.as_mut_os_string().push(format!(".{}", first.process.pid()));
    }
    Template::parse(&name)
}

/// The name that the program has given to ckpt_ckpt().
fn called(request: &Demand, first: &Equipped) -> Result<Option<Name>> {
    let api = caller::read(&first.memory, &first.region)?;
    let len = api.name.iter().position(|b| *b == 0).unwrap_or(0);
    if !request.triggered || api.request != Request::Call as u32 || len == 0 {
        return Ok(None);
    }
    let name = Name::parse(std::ffi::OsStr::from_bytes(&api.name[..len]))?;
    name.resolve(&first.process.cwd()?.path).map(Some)
}

/// Whether the process has inherited its payload from the one that it was made for.
fn forked(first: &Equipped) -> bool {
    !first.region.is_for(&first.process)
}
