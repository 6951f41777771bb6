// SPDX-License-Identifier: LGPL-2.1-only
//! From words to commands, as the table says.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use lexopt::{Arg, Parser};

use super::nearest::{nearest_option, nearest_subcommand};
use super::table::{self, Draft, Entry, Form, Opt, Page};
use super::{Command, Options, Resume, ServeOptions, Shell, StubCommand, help, network};
use crate::error::{Because, Error, Result};
use crate::settings::server::{Key, ServerName};
use crate::settings::{self, Name, Settings, parse_pid, quoted};

/// The forms that are possible until a subcommand, a program or -p decides.
const UNDECIDED: &[Form] = &[Form::Launch, Form::Attach];

/// Reads the command line of ckpt. `args` begins with the command's own name, which is skipped;
/// `env` looks up environment variables, and is asked only for those that the form heeds and
/// that no option overrides.
///
/// # Errors
/// A sentence that names the bad word, with exit status 125.
pub(crate) fn parse(
    args: impl Iterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Command> {
    let mut reader = Reader::new(args.collect(), "ckpt".into());
    if reader.at_end() {
        return Ok(Command::Usage(help::usage()));
    }
    let program = match reader.next(UNDECIDED)? {
        Next::Word(word) => match table::subcommand(&word) {
            Some(entry) => return subcommand(entry, reader, env),
            None => Some(word),
        },
        Next::Dashes => reader.raw(),
        Next::End => None,
        Next::Page(Page::Help) => return Ok(Command::Help(help::overview())),
        Next::Page(Page::Version) => return Ok(Command::Version),
    };
    match (reader.draft.pid, program) {
        (Some(_), Some(program)) => Err(reader.bad(format!(
            "-p enables checkpointing in a running process, so the program {} is one word too many",
            quoted(&program)
        ))),
        (Some(pid), None) => {
            reader.only(Form::Attach, "ckpt -p")?;
            reader.heed(Form::Attach, env)?;
            Ok(Command::Attach { pid, settings: reader.draft.settings })
        }
        (None, Some(program)) if program.is_empty() => {
            Err(reader.bad("the program's name '' is empty"))
        }
        (None, Some(program)) => {
            reader.heed(Form::Launch, env)?;
            let args = reader.rest();
            let Draft { settings, cpu, resume, probe, restart, trust, replace, .. } = reader.draft;
            if probe.is_some() && resume.is_none() {
                return Err(Error::new("the option --probe goes with --resume"));
            }
            let resume = resume.map(|any| Resume {
                probe,
                truncate_files: restart.truncate_files,
                no_tty: restart.no_tty,
                any,
                trust,
                map_port: restart.map_port,
                ids: restart.ids,
            });
            Ok(Command::Launch { settings, cpu, program, args, resume, replace })
        }
        (None, None) => Err(reader.bad("there is no program to run after the options")),
    }
}

/// Reads the words after a checkpoint file that is executed. `args` begins with the file's name.
/// The environment is the program's saved one, and never read here.
///
/// # Errors
/// A sentence that names the bad word, with exit status 125.
pub(crate) fn parse_stub(args: impl Iterator<Item = OsString>) -> Result<StubCommand> {
    let args: Vec<OsString> = args.collect();
    let file = args.first().map_or("FILE".into(), |name| name.to_string_lossy().into_owned());
    let mut reader = Reader::new(args, file.clone());
    let word = match reader.next(&[Form::Stub])? {
        Next::Word(word) => Some(word),
        Next::Dashes if reader.draft.takes_rest => {
            reader.draft.restart.given.args = reader.rest();
            None
        }
        Next::Dashes => reader.raw(),
        Next::End => None,
        Next::Page(Page::Help) => return Ok(StubCommand::Help(help::stub(&file))),
        Next::Page(Page::Version) => return Ok(StubCommand::Version),
    };
    match word {
        None => {
            let Draft { settings, restart, .. } = reader.draft;
            Ok(StubCommand::Restart(Box::new(Options { settings, ..restart })))
        }
        Some(word) => Err(reader.bad(format!(
            "{} is one word too many; the program goes on with the arguments that it was saved with",
            quoted(&word)
        ))),
    }
}

/// What the environment of a program with the C API says; what is wrong with it says the error,
/// and does not hold.
pub(crate) fn environment(env: impl Fn(&str) -> Option<OsString>) -> (Settings, Option<Error>) {
    let (mut draft, mut problem) = (Draft::default(), None);
    for opt in table::OPTIONS.iter().filter(|opt| opt.is_of(&[Form::Launch])) {
        let Some(variable) = &opt.env else { continue };
        let Some(value) = env(variable.name) else { continue };
        let set = opt
            .set(&mut draft, &value)
            .because(|| format!("the environment variable {}", variable.name));
        problem = set.err().or(problem);
    }
    usual_key(&mut draft.settings, env);
    (draft.settings, problem)
}

/// Where nothing is said of a key, it is that of the home directory.
fn usual_key(settings: &mut Settings, env: impl Fn(&str) -> Option<OsString>) {
    if settings.transfer.key.is_none()
        && let Some(home) = env("HOME").filter(|home| home.as_encoded_bytes().starts_with(b"/"))
    {
        settings.transfer.key = Some(Key::of_home(Path::new(&home)));
    }
}

/// Reads what follows the word of a subcommand.
fn subcommand(
    entry: &'static Entry,
    mut reader: Reader,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Command> {
    let name = entry.word.unwrap_or_default();
    reader.only(entry.form, &format!("ckpt {name}"))?;
    let mut words = Vec::new();
    loop {
        match reader.next(std::slice::from_ref(&entry.form))? {
            Next::Word(word) if matches!(entry.form, Form::Restart | Form::Warm) => {
                words.push(word);
                words.extend(reader.rest());
            }
            // What follows the host is the checkpoint's.
            Next::Word(word) if entry.form == Form::Move && words.len() == 1 => {
                words.push(word);
                words.extend(reader.rest());
            }
            Next::Word(word) => words.push(word),
            Next::Dashes => words.extend(reader.rest()),
            Next::End => break,
            Next::Page(Page::Help) => return Ok(Command::Help(help::subcommand(entry))),
            Next::Page(Page::Version) => return Ok(Command::Version),
        }
    }
    let (least, most) = table::operands(entry);
    if let Some(extra) = most.and_then(|most| words.get(most)) {
        return Err(reader.bad(format!(
            "{} is one word too many for 'ckpt {name}', which takes {}; \
             a program called {name} is run by 'ckpt -- {name}'",
            quoted(extra),
            entry.operand.as_ref().map_or("none".into(), |o| format!("one {}", o.name)),
        )));
    }
    if let Some(operand) = entry.operand.as_ref().filter(|_| words.len() < least) {
        return Err(reader.bad(format!(
            "'ckpt {name}' needs a {}; a program called {name} is run by 'ckpt -- {name}'",
            operand.name
        )));
    }
    reader.heed(entry.form, env)?;
    build(entry, reader, words)
}

fn build(entry: &'static Entry, reader: Reader, words: Vec<OsString>) -> Result<Command> {
    if matches!(entry.form, Form::Restart | Form::List | Form::Get | Form::Put | Form::Remove) {
        return networked(entry, reader, words);
    }
    if matches!(entry.form, Form::Verify | Form::Info | Form::Check | Form::Core | Form::Cat) {
        return looking(entry, reader, words);
    }
    let mut words = words.into_iter();
    let word = words.next().unwrap_or_default();
    let pid = || parse_pid(&word).because(|| format!("ckpt {}", entry.word.unwrap_or_default()));
    Ok(match entry.form {
        Form::Warm => {
            let name = Some(Name::parse(&word)?);
            let Some(program) = words.next().filter(|program| !program.is_empty()) else {
                return Err(reader.bad("the program's name '' is empty"));
            };
            let settings = Settings { name, ..reader.draft.settings };
            Command::Warm { settings, program, args: words.collect() }
        }
        Form::Save => save(reader, &word)?,
        Form::Ps => Command::Ps { json: reader.draft.json, watch: reader.draft.watch },
        Form::Move => Command::Move { pid: pid()?, rsh: reader.draft.rsh, words: words.collect() },
        Form::Receive => Command::Receive { dir: word.into() },
        Form::Dump => Command::Dump { pid: pid()? },
        Form::Monitor => Command::Monitor { pid: pid()? },
        Form::Assist => Command::Assist { pid: pid()? },
        Form::Sdk if word.is_empty() => {
            return Err(reader.bad("the directory's name '' is empty"));
        }
        Form::Sdk => Command::Sdk { dir: word.into() },
        Form::Keygen => Command::Keygen { file: settings::parse_file(&word)? },
        Form::Serve => Command::Serve(serve(reader.draft)),
        Form::Help if word.is_empty() => Command::Help(help::overview()),
        Form::Help => match table::subcommand(&word) {
            Some(about) if !about.hidden => Command::Help(help::subcommand(about)),
            _ => {
                let meant = nearest_subcommand(&word).map(|w| format!(" (did you mean '{w}'?)"));
                let meant = meant.unwrap_or_default();
                return Err(reader.bad(format!("there is no subcommand {}{meant}", quoted(&word))));
            }
        },
        Form::Man => Command::Man,
        Form::Completions => Command::Completions(Shell::of_name(&word).ok_or_else(|| {
            let shells = table::SHELLS.join(", ");
            let word = quoted(&word);
            reader.bad(format!("there are no completions for {word}, only for {shells}"))
        })?),
        _ => {
            return Err(reader.bad("this form has no subcommand"));
        }
    })
}

fn save(reader: Reader, word: &OsStr) -> Result<Command> {
    let Draft { all, jobs, .. } = reader.draft;
    match (all, word.is_empty()) {
        (true, true) => {
            let Draft { settings, stop, .. } = reader.draft;
            Ok(Command::SaveAll { stop, jobs, settings })
        }
        (true, false) => Err(reader.bad("'ckpt save --all' saves all, and takes no PID")),
        (false, true) => Err(reader.bad("'ckpt save' needs a PID, or --all")),
        (false, false) if jobs.is_some() => {
            Err(reader.bad("the option --jobs goes with 'ckpt save --all'"))
        }
        (false, false) => {
            let pid = parse_pid(word).because(|| "ckpt save")?;
            let Draft { settings, stop, .. } = reader.draft;
            Ok(Command::Save { pid, stop, settings })
        }
    }
}

/// The commands that look at any number of checkpoints.
fn looking(entry: &'static Entry, reader: Reader, words: Vec<OsString>) -> Result<Command> {
    if words.iter().any(|word| word.is_empty()) {
        return Err(reader.bad("the checkpoint file's name '' is empty"));
    }
    let Draft { restart, json, table, settings: Settings { transfer, .. }, .. } = reader.draft;
    let map_path = restart.map_path;
    Ok(match entry.form {
        Form::Verify => Command::Verify { files: words, transfer },
        Form::Info => Command::Info { files: words, table, json, transfer },
        Form::Core | Form::Cat => {
            let mut words = words.into_iter();
            let (file, second) = (words.next().unwrap_or_default(), words.next());
            match entry.form {
                Form::Core => {
                    let out = second.map(|out| settings::parse_file(&out)).transpose()?;
                    Command::Core { file, out, transfer }
                }
                _ => Command::Cat { file, descriptor: second.unwrap_or_default(), transfer },
            }
        }
        _ => Command::Check { words, map_path, json, transfer },
    })
}

fn serve(draft: Draft) -> ServeOptions {
    ServeOptions { transfer: draft.settings.transfer, ..draft.serve }
}

/// The commands that talk to a server.
fn networked(entry: &'static Entry, reader: Reader, words: Vec<OsString>) -> Result<Command> {
    let Draft { settings: Settings { transfer, .. }, trust, json, .. } = reader.draft;
    let mut words = words.into_iter();
    let first = words.next().unwrap_or_default();
    Ok(match entry.form {
        Form::Restart => Command::Restart { name: first, transfer, args: words.collect(), trust },
        Form::List => Command::List { folder: ServerName::parse_folder(&first)?, transfer, json },
        Form::Remove => Command::Remove { name: ServerName::parse(&first)?, transfer },
        Form::Put => {
            let name = ServerName::parse(&words.next().unwrap_or_default())?;
            Command::Put { file: settings::parse_file(&first)?, name, transfer }
        }
        _ => {
            let file = words.next().map(|file| settings::parse_file(&file)).transpose()?;
            Command::Get { name: ServerName::parse(&first)?, file, transfer }
        }
    })
}

/// Reads the command line of ckptsrv, which is that of `ckpt serve`.
///
/// # Errors
/// A sentence that names the bad word, with exit status 125.
pub(crate) fn parse_ckptsrv(args: impl Iterator<Item = OsString>) -> Result<Command> {
    let mut reader = Reader::new(args.collect(), "ckptsrv".into());
    match reader.next(&[Form::Serve])? {
        Next::Page(_) => Ok(Command::Help(help::subcommand(table::entry(Form::Serve)))),
        Next::Word(word) => Err(reader.bad(format!("{} is one word too many", quoted(&word)))),
        Next::Dashes | Next::End => {
            Ok(Command::Serve(ServeOptions { original: true, ..serve(reader.draft) }))
        }
    }
}

/// What comes after the options that were just read.
enum Next {
    Word(OsString),
    /// "--"; what follows are no options.
    Dashes,
    End,
    /// A text is asked for; the remaining words do not matter.
    Page(Page),
}

struct Reader {
    parser: Parser,
    draft: Draft,
    given: Vec<&'static Opt>,
    /// The command to try with --help.
    command: String,
}

impl Reader {
    fn new(args: Vec<OsString>, command: String) -> Self {
        let parser = Parser::from_iter(args);
        Self { parser, draft: Draft::default(), given: Vec::new(), command }
    }

    fn bad(&self, sentence: impl Into<String>) -> Error {
        Error::new(sentence).hint(format!("try '{} --help'", self.command))
    }

    /// Refuses options that stood before it was clear which form this is.
    fn only(&self, form: Form, called: &str) -> Result<()> {
        match self.given.iter().find(|opt| !opt.is_of(&[form])) {
            Some(stray) => {
                let stray = stray.shortest();
                Err(self.bad(format!("the option {stray} does not go with '{called}'")))
            }
            None => Ok(()),
        }
    }

    fn at_end(&mut self) -> bool {
        self.parser.try_raw_args().is_some_and(|raw| raw.as_slice().is_empty())
    }

    /// The next word, untouched. Inside of a cluster of short options lexopt has none to give;
    /// raw words are only asked for behind a whole word.
    fn raw(&mut self) -> Option<OsString> {
        self.parser.try_raw_args()?.next()
    }

    /// All remaining words, untouched.
    fn rest(&mut self) -> Vec<OsString> {
        std::iter::from_fn(|| self.raw()).collect()
    }

    /// Reads options of `forms` up to the next word that is none.
    fn next(&mut self, forms: &[Form]) -> Result<Next> {
        loop {
            // lexopt swallows "--" without a word, and then calls a subcommand's name and a
            // program's the same.
            if let Some(mut raw) = self.parser.try_raw_args()
                && raw.next_if(|word| word == "--").is_some()
            {
                return Ok(Next::Dashes);
            }
            let written = match self.parser.next() {
                Ok(None) => return Ok(Next::End),
                Ok(Some(Arg::Value(word))) => return Ok(Next::Word(word)),
                Ok(Some(Arg::Short(short))) => format!("-{short}"),
                Ok(Some(Arg::Long(long))) => format!("--{long}"),
                Err(error) => return Err(self.refuse(error)),
            };
            self.option(&written, forms)?;
            if self.draft.takes_rest {
                return Ok(Next::Dashes);
            }
            if let Some(page) = self.draft.page {
                return Ok(Next::Page(page));
            }
        }
    }

    fn option(&mut self, written: &str, forms: &[Form]) -> Result<()> {
        let known = |opt: &&Opt| match written.strip_prefix("--") {
            Some(long) => opt.long == long,
            None => opt.short.is_some_and(|short| written[1..] == *short.encode_utf8(&mut [0; 4])),
        };
        let Some(opt) = table::OPTIONS.iter().filter(|opt| opt.is_of(forms)).find(known) else {
            let elsewhere = table::OPTIONS.iter().find(known);
            let restart = forms.contains(&Form::Stub);
            let among = table::OPTIONS.iter().filter(|opt| opt.is_of(forms));
            let meant = written.strip_prefix("--").and_then(|long| nearest_option(long, among));
            return Err(self.unknown(written, elsewhere.filter(|_| !restart), meant));
        };
        let value = match opt.value {
            None => "1".into(),
            Some(_) if opt.optional => self.parser.optional_value().unwrap_or("1".into()),
            Some((name, _)) => match self.parser.value() {
                Ok(value) => value,
                Err(_) => return Err(self.bad(format!("the option {written} needs a {name}"))),
            },
        };
        opt.set(&mut self.draft, &value).because(|| written)?;
        self.given.push(opt);
        Ok(())
    }

    /// `elsewhere` has the same name and belongs to other forms of the ckpt command; `meant` is spelt
    /// nearly so.
    fn unknown(&self, written: &str, elsewhere: Option<&Opt>, meant: Option<&str>) -> Error {
        let home = elsewhere.and_then(|opt| table::entry(*opt.forms.first()?).word);
        let written = quoted(OsStr::new(written));
        match (home, meant) {
            (Some(word), _) => self.bad(format!(
                "the option {written} is not known here; it stands after 'ckpt {word}'"
            )),
            (None, Some(meant)) => {
                self.bad(format!("unknown option {written} (did you mean '--{meant}'?)"))
            }
            (None, None) => self.bad(format!("unknown option {written}")),
        }
    }

    fn refuse(&self, error: lexopt::Error) -> Error {
        match error {
            lexopt::Error::UnexpectedValue { option, value } => self.bad(format!(
                "the option {option} takes no value, but {} is given",
                quoted(&value)
            )),
            error => self.bad(error.to_string()),
        }
    }

    /// Takes from the environment what `form` heeds there and no option said.
    fn heed(&mut self, form: Form, env: impl Fn(&str) -> Option<OsString>) -> Result<()> {
        for opt in table::OPTIONS.iter().filter(|opt| opt.is_of(&[form])) {
            let Some(variable) = &opt.env else { continue };
            if self.given.iter().any(|given| std::ptr::eq(*given, opt)) {
                continue;
            }
            if let Some(value) = env(variable.name) {
                opt.set(&mut self.draft, &value)
                    .because(|| format!("the environment variable {}", variable.name))?;
            }
        }
        if network::KEYED.contains(&form) {
            usual_key(&mut self.draft.settings, env);
        }
        Ok(())
    }
}
