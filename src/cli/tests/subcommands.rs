// SPDX-License-Identifier: LGPL-2.1-only
//! Subcommands and their words.

use super::*;

#[test]
fn attach_and_save() {
    let settings = Settings { continues: Some(true), ..Settings::default() };
    assert_eq!(
        run(&["-p", "7", "-c"]),
        Ok(Command::Attach { pid: Pid::new(7), settings: settings.clone() })
    );
    assert_eq!(run(&["-c", "--pid=7", "--"]), Ok(Command::Attach { pid: Pid::new(7), settings }));
    let save = |stop, settings| Ok(Command::Save { pid: Pid::new(7), stop, settings });
    assert_eq!(run(&["save", "7"]), save(false, Settings::default()));
    assert_eq!(run(&["save", "--stop", "7", "-n", "x"]), save(true, named("x")));
    assert_eq!(run(&["-n", "x", "save", "7"]), save(false, named("x")));
    assert_eq!(run(&["save", "--", "7"]), save(false, Settings::default()));
    let all = |jobs, settings| Ok(Command::SaveAll { stop: true, jobs, settings });
    assert_eq!(run(&["save", "--all", "--stop"]), all(None, Settings::default()));
    let words = ["save", "--stop", "--jobs", "2", "--all", "-n", "x"];
    assert_eq!(run(&words), all(Some(2), named("x")));
    for words in [&["save"][..], &["save", "--all", "7"], &["save", "7", "--jobs", "2"]] {
        assert!(run(words).is_err(), "{words:?}");
    }
    assert_eq!(run(&["__dump", "7"]), Ok(Command::Dump { pid: Pid::new(7) }));
}

#[test]
fn other_subcommands() {
    let transfer = Transfer::default;
    let files = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
    let verify = |names| Ok(Command::Verify { files: files(names), transfer: transfer() });
    assert_eq!(run(&["verify", "--", "-f"]), verify(&["-f"]));
    assert_eq!(run(&["verify", "f", "cssrv://h/x"]), verify(&["f", "cssrv://h/x"]));
    let shown = |names, table, json| {
        Ok(Command::Info { files: files(names), table, json, transfer: transfer() })
    };
    let info = |names, json| shown(names, None, json);
    assert_eq!(run(&["info", "f", "--maps"]), shown(&["f"], Some(Rows::Maps), false));
    assert_eq!(run(&["info", "--env", "f", "--json"]), shown(&["f"], Some(Rows::Env), true));
    let core = |out: Option<&str>| {
        Ok(Command::Core { file: "f".into(), out: out.map(Into::into), transfer: transfer() })
    };
    assert_eq!(run(&["core", "f"]), core(None));
    assert_eq!(run(&["core", "f", "o"]), core(Some("o")));
    let cat = Command::Cat { file: "f".into(), descriptor: "3".into(), transfer: transfer() };
    assert_eq!(run(&["cat", "f", "3"]), Ok(cat));
    let warm =
        Command::Warm { settings: named("x"), program: "foo".into(), args: vec!["--json".into()] };
    assert_eq!(run(&["warm", "x", "foo", "--json"]), Ok(warm));
    assert_eq!(run(&["ps", "--watch"]), Ok(Command::Ps { json: false, watch: true }));
    assert_eq!(run(&["info", "f"]), info(&["f"], false));
    assert_eq!(run(&["info", "f", "--json", "g"]), info(&["f", "g"], true));
    assert_eq!(run(&["man"]), Ok(Command::Man));
    assert_eq!(run(&["--version"]), Ok(Command::Version));
    assert_eq!(run(&["-V"]), Ok(Command::Version));
    for (name, shell) in [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)] {
        assert_eq!(run(&["completions", name]), Ok(Command::Completions(shell)));
    }
    assert!(table::SHELLS.iter().all(|name| Shell::of_name(OsStr::new(name)).is_some()));
}
