// SPDX-License-Identifier: LGPL-2.1-only
mod completed;
mod documents;
mod machines;
mod messages;
mod resumes;
mod servers;
mod subcommands;

use crate::proc::Pid;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use super::table::{self, FORMS, Form, OPTIONS, Opt};
use super::{
    Command, Options, Resume, Rows, Shell, StubCommand, completions, help, man_page, parse,
    parse_stub, version,
};
use crate::resource::cpu::limit::CpuLimit;
use crate::restart::{Ids, MapPath, MapPort};
use crate::settings::server::Transfer;
use crate::settings::{Name, Settings};

fn words(command: &str, line: &[&str]) -> impl Iterator<Item = OsString> + use<> {
    let words: Vec<OsString> = [command].iter().chain(line).map(OsString::from).collect();
    words.into_iter()
}

fn with_env(line: &[&str], env: &[(&str, &str)]) -> Result<Command, String> {
    let find = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
    parse(words("ckpt", line), find).map_err(|error| {
        assert_eq!(error.status(), 125);
        error.to_string()
    })
}

fn run(line: &[&str]) -> Result<Command, String> {
    with_env(line, &[])
}

fn stub(line: &[&str]) -> Result<StubCommand, String> {
    parse_stub(words("./foo.ckpt", line)).map_err(|error| {
        assert_eq!(error.status(), 125);
        error.to_string()
    })
}

fn help_of(line: &[&str]) -> String {
    match run(line) {
        Ok(Command::Help(text)) => text,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn launch(settings: Settings, program: &str, args: &[&str]) -> Result<Command, String> {
    let args = args.iter().map(OsString::from).collect();
    Ok(Command::Launch {
        settings,
        cpu: None,
        program: program.into(),
        args,
        resume: None,
        replace: false,
    })
}

fn named(name: &str) -> Settings {
    Settings { name: Some(Name::File(name.into())), ..Settings::default() }
}

#[test]
fn everything_after_the_program_is_its_own() {
    let none = Settings::default();
    assert_eq!(run(&["foo"]), launch(none.clone(), "foo", &[]));
    let line = ["foo", "-n", "x", "--help", "--", "save", "-p"];
    assert_eq!(run(&line), launch(none.clone(), "foo", &line[1..]));
    assert_eq!(run(&["--", "save", "--", "1"]), launch(none.clone(), "save", &["--", "1"]));
    assert_eq!(run(&["--", "-x", "y"]), launch(none.clone(), "-x", &["y"]));
    assert_eq!(run(&["-n", "a", "--", "info"]), launch(named("a"), "info", &[]));
    assert_eq!(run(&["-", "-c"]), launch(none, "-", &["-c"]));
}

#[test]
fn any_bytes() {
    let bad = || OsString::from_vec(b"\xff=\xfe".to_vec());
    let line = [OsString::from("ckpt"), "-n".into(), bad(), bad(), bad()];
    let command = parse(line.into_iter(), |_| None).unwrap();
    let settings = Settings { name: Some(Name::File(bad().into())), ..Settings::default() };
    assert_eq!(
        command,
        Command::Launch {
            settings,
            cpu: None,
            program: bad(),
            args: vec![bad()],
            resume: None,
            replace: false
        }
    );
    let env = |name: &str| (name == "CKPT_ASYNCSIG").then(bad);
    let sentence = parse(words("ckpt", &["foo"]), env).unwrap_err().to_string();
    assert!(sentence.contains("CKPT_ASYNCSIG"), "{sentence}");
}

#[test]
fn spellings_of_options() {
    let all = Settings {
        name: Some(Name::File("a".into())),
        asyncsig: Some(10),
        continues: Some(true),
        msperiod: Some(500),
        embed: Some(65536),
        ..Settings::default()
    };
    for line in [
        &["-n", "a", "-c", "-a", "USR1", "-z", "500"][..],
        &["-na", "-caUSR1", "-z500"],
        &["--name=file://a", "--continue", "--signal=10", "--period=500"],
        &["--name", "b", "--name", "a", "--continue", "--signal", "usr1", "-cz", "500"],
    ] {
        let line = [line, &["--embed-files", "64K", "--", "foo"]].concat();
        assert_eq!(run(&line), launch(all.clone(), "foo", &[]), "{line:?}");
    }
    let options = Options { settings: all, ..Options::default() };
    let line = ["-n", "a", "-c", "-a", "USR1", "-z", "500", "--embed-files=64K"];
    assert_eq!(stub(&line), Ok(StubCommand::Restart(Box::new(options))));
}

#[test]
fn bad_usage_names_the_word() {
    let cases: &[(&[&str], &str)] = &[
        (&["-x", "foo"], "unknown option '-x'"),
        (&["--nam", "foo"], "unknown option '--nam' (did you mean '--name'?)"),
        (&["info", "--jsno", "f"], "unknown option '--jsno' (did you mean '--json'?)"),
        (&["-cx", "foo"], "unknown option '-x'"),
        (
            &["--stop", "save", "7"],
            "the option '--stop' is not known here; it stands after 'ckpt save'",
        ),
        (&["-n"], "the option -n needs a NAME"),
        (&["-c"], "no program"),
        (&["--"], "no program"),
        (&[""], "the program's name '' is empty"),
        (&["--continue=1", "foo"], "--continue takes no value, but '1' is given"),
        (&["-p", "7", "foo"], "'foo' is one word too many"),
        (&["-p", "7", "--", "foo"], "'foo' is one word too many"),
        (&["-p", "7", "save", "7"], "-p does not go with 'ckpt save'"),
        (&["-c", "save", "7"], "-c does not go with 'ckpt save'"),
        (&["save"], "'ckpt save' needs a PID"),
        (&["save", "7", "8"], "'8' is one word too many"),
        (&["save", "-c", "7"], "unknown option '-c'"),
        (&["verify"], "'ckpt verify' needs a FILE"),
        (&["verify", ""], "name '' is empty"),
        (&["sdk", "a", "b"], "'b' is one word too many for 'ckpt sdk', which takes one DIR"),
        (&["man", "ls"], "'ckpt -- man'"),
        (&["help", "foo"], "no subcommand 'foo'"),
        (&["help", "verfy"], "no subcommand 'verfy' (did you mean 'verify'?)"),
        (&["help", "__dump"], "no subcommand '__dump'"),
        (&["completions", "csh"], "'csh', only for bash, zsh, fish"),
        (&["__dump", "--help"], "unknown option '--help'"),
    ];
    for (line, part) in cases {
        let sentence = run(line).unwrap_err();
        assert!(sentence.contains(part), "{line:?}: {sentence}");
        assert!(sentence.ends_with("; try 'ckpt --help'"), "{line:?}: {sentence}");
    }
}

#[test]
fn bad_values_name_the_option_and_the_value() {
    let cases: &[(&[&str], &str, &str)] = &[
        (&["-p", "0"], "-p: ", "'0' is not a process id"),
        (&["-p", "-5"], "-p: ", "'-5' is not a process id"),
        (&["save", "x"], "ckpt save: ", "'x' is not a process id"),
        (&["-n", "", "foo"], "-n: ", "''"),
        (&["-n", "cssrv://h/", "foo"], "-n: ", "'cssrv://h/'"),
        (&["-n", "http://h/n", "foo"], "-n: ", "'http://'"),
        (&["ls", "h"], "the checkpoint name", "'h'"),
        (&["serve", "-p", "65536"], "-p: ", "'65536' is not a port"),
        (&["serve", "--quota", "1X"], "--quota: ", "'1X' is not a size"),
        (&["--signal", "KILL", "foo"], "--signal: ", "'KILL'"),
        (&["-z", "1w", "foo"], "-z: ", "'1w'"),
    ];
    for (line, start, part) in cases {
        let sentence = run(line).unwrap_err();
        assert!(sentence.starts_with(start) && sentence.contains(part), "{line:?}: {sentence}");
    }
}

#[test]
fn bad_restarts() {
    for (line, part) in [
        (&["-x"][..], "unknown option '-x'"),
        (&["-p", "7"], "unknown option '-p'"),
        (&["--stop"], "unknown option '--stop'"),
        (&["arg"], "'arg' is one word too many"),
        (&["--", "arg"], "'arg' is one word too many"),
        (&["-a"], "-a needs a SIGNAL"),
    ] {
        let sentence = stub(line).unwrap_err();
        assert!(sentence.starts_with(part) || sentence.contains(part), "{line:?}: {sentence}");
        assert!(sentence.ends_with("; try './foo.ckpt --help'"), "{sentence}");
        assert!(!sentence.contains("ckpt save"), "{sentence}");
    }
    assert_eq!(stub(&[]), Ok(StubCommand::Restart(Box::default())));
    assert_eq!(stub(&["--version", "x"]), Ok(StubCommand::Version));
}

#[test]
fn environment() {
    let env = [
        ("CKPT_NAME", "e.ckpt"),
        ("CKPT_CONTINUE", "0"),
        ("CKPT_ASYNCSIG", "SIGUSR2"),
        ("CKPT_MSPERIOD", "60000"),
        ("CKPT_EXIT", "85"),
    ];
    let said = Settings {
        name: Some(Name::File("e.ckpt".into())),
        asyncsig: Some(12),
        continues: Some(false),
        msperiod: Some(60000),
        exit_status: Some(85),
        ..Settings::default()
    };
    assert_eq!(with_env(&["foo"], &env), launch(said.clone(), "foo", &[]));
    let attach = with_env(&["-p", "7"], &env);
    assert_eq!(attach, Ok(Command::Attach { pid: Pid::new(7), settings: said.clone() }));
    let save = with_env(&["save", "7"], &env);
    assert_eq!(
        save,
        Ok(Command::Save { pid: Pid::new(7), stop: false, settings: named("e.ckpt") })
    );
    let won = Settings { continues: Some(true), asyncsig: Some(0), ..said };
    assert_eq!(with_env(&["-c", "-a0", "foo"], &env), launch(won, "foo", &[]));
}

#[test]
fn bad_environment() {
    let env = [
        ("CKPT_NAME", ""),
        ("CKPT_CONTINUE", "yes"),
        ("CKPT_ASYNCSIG", "NOPE"),
        ("CKPT_MSPERIOD", "1 m"),
    ];
    for (name, value) in env {
        let sentence = with_env(&["foo"], &[(name, value)]).unwrap_err();
        let start = format!("the environment variable {name}: ");
        assert!(sentence.starts_with(&start), "{sentence}");
        assert!(sentence.contains(&format!("'{value}'")), "{sentence}");
    }
    let line = ["-n", "a", "-c", "-a", "1", "-z", "0", "foo"];
    assert!(with_env(&line, &env).is_ok(), "an option hides the variable");
    for line in [&["--help"][..], &["help", "info"], &["sdk", "d"], &["man"], &["__dump", "7"]] {
        assert!(with_env(line, &env).is_ok(), "{line:?} heeds no variable");
    }
}

#[test]
fn nothing_said() {
    let Ok(Command::Usage(text)) = run(&[]) else { panic!("no usage") };
    assert!(text.starts_with("usage: ckpt [-n NAME]") && text.contains("--help"), "{text}");
    assert!(text.lines().count() <= 5, "{text}");
    assert!(matches!(parse(std::iter::empty(), |_| None), Ok(Command::Usage(_))));
}

/// The words of a text, so that "-n" is not found in "--name" and "help" not in "--help".
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    text.split(|c: char| !part(c)).any(|found| found == word)
}

fn assert_option(text: &str, opt: &Opt, place: &str) {
    assert!(has_word(text, &format!("--{}", opt.long)), "{place} lacks --{}:\n{text}", opt.long);
    if let Some(short) = opt.short {
        assert!(has_word(text, &format!("-{short}")), "{place} lacks -{short}:\n{text}");
    }
    if let Some((value, _)) = opt.value {
        assert!(has_word(text, value), "{place} lacks {value}:\n{text}");
    }
}

#[test]
fn every_option_is_in_every_help() {
    let overview = help_of(&["--help"]);
    assert_eq!(help_of(&["-h"]), overview);
    assert_eq!(help_of(&["help"]), overview);
    for opt in OPTIONS.iter().filter(|opt| opt.forms != [Form::Stub]) {
        assert_option(&overview, opt, "ckpt --help");
        if let Some(env) = &opt.env {
            assert!(has_word(&overview, env.name));
        }
        assert!(!opt.forms.is_empty());
    }
    for (word, entry) in table::subcommands() {
        let text = help_of(&["help", word]);
        assert_eq!(help_of(&[word, "--help"]), text);
        assert!(text.contains(&format!("Usage: ckpt {word}")), "{text}");
        for opt in OPTIONS.iter().filter(|opt| opt.forms.contains(&entry.form)) {
            assert_option(&text, opt, word);
            assert!(opt.env.as_ref().is_none_or(|env| has_word(&text, env.name)));
        }
        assert!(has_word(&overview, word));
    }
    let Ok(StubCommand::Help(text)) = stub(&["--help"]) else { panic!("no help") };
    for opt in table::options(&[Form::Stub]) {
        assert_option(&text, opt, "./foo.ckpt --help");
    }
    assert!(text.contains("Usage: ./foo.ckpt [-n NAME]"), "{text}");
    assert!(!has_word(&text, "CKPT_NAME"), "{text}");
}

#[test]
fn every_option_is_in_the_man_page() {
    let page = man_page();
    let read = page.replace("\\-", "-").replace("\\fB", " ").replace("\\fI", " ");
    for opt in OPTIONS {
        assert_option(&read, opt, "ckpt man");
        let heading = format!(" --{}", opt.long);
        assert!(read.contains(&heading), "{heading}");
        assert!(opt.env.as_ref().is_none_or(|env| has_word(&read, env.name)));
    }
    for (word, _) in table::subcommands() {
        assert!(has_word(&read, word), "{word}");
    }
    assert!(page.contains(&version().replace('-', "\\-")));
}

#[test]
fn the_man_page_is_clean_roff() {
    let known =
        [".TH", ".nh", ".ad", ".SH", ".SS", ".PP", ".TP", ".IP", ".B", ".BR", ".br", ".EX", ".EE"];
    for line in man_page().lines() {
        assert!(!line.is_empty());
        assert!(!line.starts_with('\''), "{line}");
        if line.starts_with('.') {
            let request = line.split(' ').next().unwrap_or_default();
            assert!(known.contains(&request), "{line}");
        }
    }
}

#[test]
fn hidden_forms_are_nowhere() {
    let mut texts = vec![help::overview(), help::usage(), man_page()];
    texts.extend([Shell::Bash, Shell::Zsh, Shell::Fish].map(completions));
    for entry in FORMS.iter().filter(|entry| entry.hidden) {
        let word = entry.word.unwrap_or("?");
        assert!(texts.iter().all(|text| !text.contains(word)), "{word}");
    }
    assert!(FORMS.iter().any(|entry| entry.hidden));
}

#[test]
fn help_fits_a_terminal() {
    let mut texts = vec![help::overview(), help::usage(), help::stub("./foo.ckpt")];
    texts.extend(table::subcommands().map(|(_, entry)| help::subcommand(entry)));
    for text in texts {
        for line in text.lines() {
            assert!(line.chars().count() < 80 && line.trim_end() == line, "{line:?}");
        }
    }
    assert!(help::overview().lines().count() <= 129, "{}", help::overview());
}

#[test]
fn the_table_is_sound() {
    let forms = [
        Form::Launch,
        Form::Attach,
        Form::Warm,
        Form::Save,
        Form::Ps,
        Form::Move,
        Form::Verify,
        Form::Info,
        Form::Core,
        Form::Cat,
        Form::Check,
        Form::Help,
        Form::Man,
        Form::Completions,
        Form::Sdk,
        Form::Assist,
        Form::Dump,
        Form::Monitor,
        Form::Receive,
        Form::Stub,
        Form::Restart,
        Form::Serve,
        Form::List,
        Form::Get,
        Form::Put,
        Form::Remove,
        Form::Keygen,
    ];
    assert_eq!(FORMS.iter().map(|entry| entry.form).collect::<Vec<_>>(), forms);
    for entry in FORMS {
        assert!(!entry.help.ends_with('.') && !entry.long.is_empty());
        assert!(entry.word.is_none_or(|word| !word.starts_with('-')));
    }
    for (index, opt) in OPTIONS.iter().enumerate() {
        assert!(!opt.help.ends_with('.') && opt.description.ends_with('.'), "{}", opt.long);
        for other in &OPTIONS[index + 1..] {
            let clash = opt.long == other.long || opt.short.is_some() && opt.short == other.short;
            assert!(!clash || !opt.is_of(other.forms), "{} and {}", opt.long, other.long);
            let undecided = &[Form::Launch, Form::Attach];
            assert!(!clash || !opt.is_of(undecided) || !other.is_of(undecided));
        }
    }
}
