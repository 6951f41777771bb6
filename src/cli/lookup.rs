// SPDX-License-Identifier: LGPL-2.1-only
//! Looking things up in the table.

use std::ffi::OsStr;

use super::entry::{Entry, Form, Opt};
use super::table::{FORMS, OPTIONS};

/// The entry of a form.
pub(super) fn entry(form: Form) -> &'static Entry {
    FORMS.iter().find(|entry| entry.form == form).unwrap_or(&FORMS[0])
}

/// How many words a subcommand takes, at least and at most; None: any number.
pub(super) fn operands(entry: &Entry) -> (usize, Option<usize>) {
    match entry.form {
        Form::Warm | Form::Move => (2, None),
        Form::Restart | Form::Verify | Form::Info => (1, None),
        Form::Check => (0, None),
        Form::Get | Form::Core => (1, Some(2)),
        Form::Put | Form::Cat => (2, Some(2)),
        _ => match &entry.operand {
            Some(operand) => (usize::from(!operand.optional), Some(1)),
            None => (0, Some(0)),
        },
    }
}

/// The subcommand of this word, hidden ones included.
pub(super) fn subcommand(word: &OsStr) -> Option<&'static Entry> {
    FORMS.iter().find(|entry| entry.word.is_some_and(|known| known == word))
}

/// The subcommands that users see.
pub(super) fn subcommands() -> impl Iterator<Item = (&'static str, &'static Entry)> {
    FORMS.iter().filter(|entry| !entry.hidden).filter_map(|entry| Some((entry.word?, entry)))
}

/// The options that any of the forms takes.
pub(super) fn options(forms: &'static [Form]) -> impl Iterator<Item = &'static Opt> {
    OPTIONS.iter().filter(|opt| opt.is_of(forms))
}

/// The words that the SHELL operand may be.
pub(super) const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];
