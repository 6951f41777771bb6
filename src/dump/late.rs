// SPDX-License-Identifier: LGPL-2.1-only
//! What a checkpoint would go without, all of it, where none is written: also what is found only while one is.

use super::phase3_gather::Still;
use super::phase6_write::Writing;
use crate::image::write::Writer;
use crate::proc::Pid;
use crate::resource::losses::{self, List};
use crate::resource::memory::policy;
use crate::resource::{Common, Gathered};

/// What there is.
#[derive(Default)]
pub(crate) struct Losses {
    /// As a checkpoint says it: a sentence for each kind.
    pub sentences: Vec<String>,
    /// By process, each of them; None: of all.
    pub each: Vec<(Option<Pid>, String)>,
}

/// Whether anything is known by now.
pub(super) fn any(still: &[Still<'_>], common: &Common) -> bool {
    let told = |(list, _): &(List, String)| *list != List::Inherited;
    let has = |gathered: &Gathered| !gathered.losses.is_empty() || gathered.lists.iter().any(told);
    !common.losses.is_empty() || still.iter().any(|still| has(&still.gathered))
}

/// Lets the processes go on, and then looks for the rest.
pub(super) fn losses(still: Vec<Still<'_>>, common: Common) -> Losses {
    let mut nowhere = Vec::new();
    let writer = Writer::new(&mut nowhere, Vec::new());
    let mut writing = Writing::begin(writer, common, [[0; 2]; 2], false);
    let (mut all, mut pids) = (Vec::new(), Vec::new());
    // Children first: a parent finds them as they were.
    let mut looks = Vec::new();
    for Still { equipped, frozen, gathered, .. } in still.into_iter().rev() {
        frozen.thaw();
        looks.push((equipped, gathered));
    }
    for (equipped, mut gathered) in looks.into_iter().rev() {
        policy::save(&equipped.process, &mut gathered, |_| true);
        pids.push(equipped.process.pid());
        all.push(gathered);
    }
    writing.look_outside(pids.iter().copied().collect());
    let mut each: Vec<_> =
        writing.common_losses().iter().map(|loss| (None, loss.clone())).collect();
    for (pid, gathered) in pids.iter().zip(&all) {
        let listed = gathered.lists.iter().filter(|(list, _)| *list != List::Inherited);
        let listed = listed.map(|(list, what)| losses::alone(*list, what));
        let own = gathered.losses.iter().cloned().chain(listed);
        each.extend(own.map(|what| (Some(*pid), what)));
    }
    Losses { sentences: writing.losses(&all), each }
}
