// SPDX-License-Identifier: LGPL-2.1-only
//! The table of forms (ways to call ckpt) and of options.
//!
//! A new subcommand is a [`Form`], an entry of `forms.rs` and an arm where `parse` builds the
//! command; a new option is an entry of `options.rs` and a field that its `set` fills; a new setting is an
//! entry of [`SETTINGS`].

pub(super) use super::entry::{Draft, Entry, Form, Kind, Operand, Opt, Page, Set};
pub(super) use super::lookup::{SHELLS, entry, operands, options, subcommand, subcommands};
use super::{forms, network, options as own};
use crate::settings::setting::Reach;
use crate::settings::table::SETTINGS;

/// All forms: those of `forms.rs`, then those of the checkpoint server.
pub(super) static FORMS: &[Entry] =
    &joined::<Entry, { forms::FORMS.len() + network::FORMS.len() }>(forms::FORMS, network::FORMS);

/// All options: -p, the settings, and those that are none.
pub(super) static OPTIONS: &[Opt] = &joined::<Opt, { 1 + SETTINGS.len() + REST }>(
    &joined::<Opt, { 1 + SETTINGS.len() }>(&[own::PID], &of_settings()),
    &joined::<Opt, REST>(own::OPTIONS, network::OPTIONS),
);

const REST: usize = own::OPTIONS.len() + network::OPTIONS.len();

/// The forms whose options are the parameters of the original manual.
const EQUIPPING: &[Form] = &[Form::Launch, Form::Attach, Form::Stub];
const SAVING: &[Form] = &[Form::Launch, Form::Attach, Form::Stub, Form::Save];

const fn of_settings() -> [Opt; SETTINGS.len()] {
    let mut all = [Opt::SWITCH; SETTINGS.len()];
    let mut at = 0;
    while at < all.len() {
        let setting = &SETTINGS[at];
        all[at] = Opt {
            short: setting.short,
            long: setting.long,
            value: setting.value,
            optional: setting.optional,
            env: setting.env,
            default: setting.default,
            help: setting.help,
            description: setting.description,
            forms: match setting.reach {
                Reach::Equips => EQUIPPING,
                Reach::Saves => SAVING,
                Reach::Keyed => network::KEYED,
            },
            set: Set::Setting(setting.parse),
            ..Opt::SWITCH
        };
        at += 1;
    }
    all
}

const fn joined<T: Copy, const N: usize>(first: &[T], second: &[T]) -> [T; N] {
    let mut all = [first[0]; N];
    let mut at = 0;
    while at < N {
        all[at] = if at < first.len() { first[at] } else { second[at - first.len()] };
        at += 1;
    }
    all
}
