// SPDX-License-Identifier: LGPL-2.1-only
//! What the entries of the table do with fields of settings and of a configuration.

use crate::error::Result;
use ckpt_abi::region::{Config, config_flag};
use std::ffi::OsString;

/// What there is to hand on of a setting.
pub(crate) enum Said {
    /// Nothing was said.
    Nothing,
    /// `--LONG=VALUE`
    Value(OsString),
    /// `--LONG`
    Switch,
    /// What an option cannot say: a switch turned off.
    Unsayable,
}

impl Said {
    pub(super) fn value(value: Option<impl Into<OsString>>) -> Self {
        value.map_or(Self::Nothing, |value| Self::Value(value.into()))
    }

    pub(super) fn number(value: Option<impl ToString>) -> Self {
        Self::value(value.map(|number| number.to_string()))
    }

    pub(super) fn switch(value: Option<bool>) -> Self {
        if value == Some(true) { Self::Switch } else { Self::Nothing }
    }
}

pub(super) fn fill<T>(field: &mut Option<T>, value: Result<T>) -> Result<()> {
    *field = Some(value?);
    Ok(())
}

pub(super) fn inherit<T: Clone>(field: &mut Option<T>, weaker: &Option<T>) {
    if field.is_none() {
        field.clone_from(weaker);
    }
}

pub(super) fn put<T>(field: &mut T, said: Option<T>) {
    if let Some(value) = said {
        *field = value;
    }
}

pub(super) fn put_flag(config: &mut Config, bit: u32, said: Option<bool>) {
    match said {
        Some(true) => config.flags |= bit,
        Some(false) => config.flags &= !bit,
        None => {}
    }
}

pub(super) fn flag(config: &Config, bit: u32) -> Option<bool> {
    (config.flags & bit != 0).then_some(true)
}

/// How much of what has changed periodic checkpoints go by, where that was said: 0, 1 or 2.
pub(super) fn level(config: &Config) -> Option<u8> {
    let flags = [config_flag::INCREMENTAL, config_flag::TRACK_ALL];
    match flags.map(|flag| config.flags & flag != 0) {
        [false, _] => Some(0),
        [_, true] => Some(2),
        _ => None,
    }
}
