// SPDX-License-Identifier: LGPL-2.1-only
//! What the table of forms and options is made of.

use crate::proc::Pid;
use std::ffi::{OsStr, OsString};

use super::{Rows, ServeOptions};
use crate::error::Result;
use crate::resource::cpu::limit::CpuLimit;
use crate::restart;
use crate::settings::Settings;
pub(super) use crate::settings::setting::{Kind, Variable};

/// A way to call ckpt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Launch,
    Attach,
    Warm,
    Save,
    Ps,
    Move,
    /// What `ckpt move` starts on the other host.
    Receive,
    Verify,
    Info,
    Core,
    Cat,
    Check,
    Help,
    Man,
    Completions,
    Serve,
    Keygen,
    /// `ckpt restart NAME`.
    Restart,
    List,
    Get,
    Put,
    Remove,
    Dump,
    Monitor,
    Assist,
    Sdk,
    /// A checkpoint file, executed.
    Stub,
}

/// The word that is no option.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    /// In help texts.
    pub name: &'static str,
    pub kind: Kind,
    pub optional: bool,
}

/// One line of the table of forms.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub form: Form,
    /// The subcommand's word; `None` for forms that are recognised otherwise.
    pub word: Option<&'static str>,
    pub operand: Option<Operand>,
    /// One line, without a full stop.
    pub help: &'static str,
    /// Paragraphs, separated by empty lines.
    pub long: &'static str,
    /// Not for users: in no help text, man page or completion.
    pub hidden: bool,
}

/// One line of the table of options.
#[derive(Clone, Copy)]
pub(super) struct Opt {
    pub short: Option<char>,
    pub long: &'static str,
    /// `None`: a flag.
    pub value: Option<(&'static str, Kind)>,
    /// The value may be missing (`--resume`, `--resume=any`), and is "1" then.
    pub optional: bool,
    pub env: Option<Variable>,
    /// What holds for a launched program when nothing is said.
    pub default: Option<&'static str>,
    /// One line, without a full stop.
    pub help: &'static str,
    /// Paragraphs, separated by empty lines.
    pub description: &'static str,
    pub forms: &'static [Form],
    /// The forms are recognised by this option.
    pub required: bool,
    /// Takes the value of the option (of a flag: "1") or of the environment variable.
    pub set: Set,
}

/// Where the value of an option goes.
#[derive(Clone, Copy)]
pub(super) enum Set {
    Setting(fn(&mut Settings, &OsStr) -> Result<()>),
    Draft(fn(&mut Draft, &OsStr) -> Result<()>),
}

/// What was read so far.
#[derive(Default)]
pub(super) struct Draft {
    pub settings: Settings,
    pub cpu: Option<CpuLimit>,
    /// Those of a restart, but for the settings.
    pub restart: restart::Options,
    /// All words that follow are the program's.
    pub takes_rest: bool,
    pub json: bool,
    pub pid: Option<Pid>,
    pub stop: bool,
    pub all: bool,
    pub jobs: Option<usize>,
    pub watch: bool,
    pub table: Option<Rows>,
    /// Some(true): also a checkpoint of another run.
    pub resume: Option<bool>,
    pub probe: Option<OsString>,
    pub trust: bool,
    pub replace: bool,
    pub rsh: Option<OsString>,
    pub serve: ServeOptions,
    pub page: Option<Page>,
}

/// A text that is asked for in place of any action.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    Help,
    Version,
}

impl Operand {
    /// `PID` or `[SUBCOMMAND]`.
    pub(super) fn written(&self) -> String {
        if self.optional { format!("[{}]", self.name) } else { self.name.to_owned() }
    }
}

impl Opt {
    /// What most options are in most of their fields; an entry says the others.
    pub(super) const SWITCH: Self = Self {
        short: None,
        long: "",
        value: None,
        optional: false,
        env: None,
        default: None,
        help: "",
        description: "",
        forms: &[],
        required: false,
        set: Set::Draft(|_, _| Ok(())),
    };

    /// Takes a value, which a flag has as "1".
    pub(super) fn set(&self, draft: &mut Draft, value: &OsStr) -> Result<()> {
        match self.set {
            Set::Setting(set) => set(&mut draft.settings, value),
            Set::Draft(set) => set(draft, value),
        }
    }

    /// "-n" or "--stop".
    pub(super) fn shortest(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}"),
            None => format!("--{}", self.long),
        }
    }

    /// Whether the option only shows a text; synopses leave those out.
    pub(super) fn is_page(&self) -> bool {
        matches!(self.long, "help" | "version")
    }

    pub(super) fn is_of(&self, forms: &[Form]) -> bool {
        forms.iter().any(|form| self.forms.contains(form))
    }
}
