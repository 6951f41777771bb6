// SPDX-License-Identifier: LGPL-2.1-only
//! What a line of the table of settings is made of.

use std::ffi::OsStr;

use ckpt_abi::region::Config;

use super::Settings;
use super::fields::Said;
use crate::error::Result;

/// One line of the table.
pub(crate) struct Setting {
    /// The option's letter.
    pub short: Option<char>,
    /// The option's word.
    pub long: &'static str,
    /// The placeholder of its value in help texts; `None`: a switch.
    pub value: Option<(&'static str, Kind)>,
    /// The value may be missing, and is "1" then.
    pub optional: bool,
    /// The environment variable that says the same, and its values in help texts.
    pub env: Option<Variable>,
    /// What holds for a launched program when nothing is said.
    pub default: Option<&'static str>,
    /// Who heeds it.
    pub reach: Reach,
    /// One line, without a full stop.
    pub help: &'static str,
    /// Paragraphs, separated by empty lines.
    pub description: &'static str,
    /// Reads the value of the option (of a switch: "1") or of the variable.
    pub parse: fn(&mut Settings, &OsStr) -> Result<()>,
    /// The value for the option of another ckpt, which reads it in another directory.
    pub written: fn(&Settings) -> Said,
    /// Takes what the other says where the first says nothing.
    pub inherit: fn(&mut Settings, &Settings),
    /// Writes what was said into a region's configuration.
    pub apply: fn(&Settings, &mut Config),
    /// Reads a configuration, which may come from another process's memory.
    pub read: fn(&mut Settings, &Config) -> Result<()>,
}

/// What a value or an operand is; completions complete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    /// A process of the user's that has an executable.
    Pid,
    /// What a program may use of the CPU.
    Cpu,
    /// Which process ids a restart gives.
    Ids,
    /// A checkpoint of another run, too.
    Any,
    Signal,
    Number,
    Subcommand,
    Shell,
    Program,
}

/// An environment variable that says the same as an option.
#[derive(Clone, Copy)]
pub(crate) struct Variable {
    pub name: &'static str,
    /// The values, in help texts.
    pub value: &'static str,
}

/// Which commands heed a setting.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// What equips a process: `ckpt PROGRAM`, `ckpt -p`, a checkpoint file.
    Equips,
    /// These, and `ckpt save`.
    Saves,
    /// Whatever talks to a checkpoint server, and the server.
    Keyed,
}
