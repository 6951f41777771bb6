//! What the table of forms and options is made of.

use std::ffi::OsStr;

use super::ServeOptions;
use crate::error::Result;
use crate::resource::cpu::limit::Limit;
use crate::restart::MapPath;
use crate::settings::Settings;

/// A way to call ckpt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Launch,
    Attach,
    Save,
    Verify,
    Info,
    Check,
    Help,
    Man,
    Completions,
    Serve,
    Keygen,
    /// `ckpt restart`.
    Resume,
    List,
    Get,
    Put,
    Remove,
    Dump,
    Monitor,
    Assist,
    Sdk,
    /// A checkpoint file, executed.
    Restart,
}

/// What a value or an operand is; completions complete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Pid,
    Signal,
    Number,
    Subcommand,
    Shell,
    Program,
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

/// An environment variable that says the same as an option; only the forms that a user calls
/// through the ckpt command read it.
#[derive(Clone, Copy)]
pub(super) struct Variable {
    pub name: &'static str,
    /// The values, in help texts.
    pub value: &'static str,
}

/// One line of the table of options.
#[derive(Clone, Copy)]
pub(super) struct Opt {
    pub short: Option<char>,
    pub long: &'static str,
    /// `None`: a flag.
    pub value: Option<(&'static str, Kind)>,
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
    pub set: fn(&mut Draft, &OsStr) -> Result<()>,
}

/// What was read so far.
#[derive(Default)]
pub(super) struct Draft {
    pub settings: Settings,
    pub cpu: Option<Limit>,
    pub force_cpu: bool,
    pub map_path: MapPath,
    pub json: bool,
    pub pid: Option<i32>,
    pub stop: bool,
    pub resume: bool,
    pub truncate_files: bool,
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
    pub fn written(&self) -> String {
        if self.optional { format!("[{}]", self.name) } else { self.name.to_owned() }
    }
}

impl Opt {
    /// "-n" or "--stop".
    pub fn shortest(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}"),
            None => format!("--{}", self.long),
        }
    }

    /// Whether the option only shows a text; synopses leave those out.
    pub fn is_page(&self) -> bool {
        matches!(self.long, "help" | "version")
    }

    pub fn is_of(&self, forms: &[Form]) -> bool {
        forms.iter().any(|form| self.forms.contains(form))
    }
}
