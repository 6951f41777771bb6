// SPDX-License-Identifier: LGPL-2.1-only
//! `--resume` and what goes with it.

use super::*;

#[test]
fn resuming() {
    let line = ["--resume", "--exit-status", "85", "--keep=3", "-n", "x%n", "foo"];
    let settings = Settings { exit_status: Some(85), keep: Some(3), ..named("x%n") };
    let resumed = |truncate_files| {
        let resume = Some(Resume {
            probe: None,
            truncate_files,
            no_tty: false,
            any: false,
            trust: false,
            map_port: MapPort::default(),
            ids: Ids::Auto,
        });
        Ok(Command::Launch {
            settings: settings.clone(),
            cpu: None,
            program: "foo".into(),
            args: vec![],
            resume,
            replace: false,
        })
    };
    assert_eq!(run(&line), resumed(false));
    assert_eq!(run(&[&["--truncate-files"], &line[..]].concat()), resumed(true));
    let sentence = run(&["--resume", "-p", "7"]).unwrap_err();
    assert!(sentence.contains("--resume does not go with 'ckpt -p'"), "{sentence}");
    let options = Options { truncate_files: true, ..Options::default() };
    assert_eq!(stub(&["--truncate-files"]), Ok(StubCommand::Restart(Box::new(options))));
    let how = |line: &[&str]| match run(line) {
        Ok(Command::Launch { resume, replace, .. }) => (resume, replace),
        other => panic!("{other:?}"),
    };
    let resume = Resume {
        probe: None,
        truncate_files: false,
        no_tty: true,
        any: true,
        trust: true,
        map_port: MapPort::default(),
        ids: Ids::Auto,
    };
    assert_eq!(how(&["--resume=any", "--no-tty", "--trust", "foo"]), (Some(resume.clone()), false));
    assert_eq!(how(&["--replace", "foo"]), (None, true));
    assert!(run(&["--resume=all", "foo"]).unwrap_err().contains("--resume=any"));
    let resume = Resume { any: false, no_tty: false, trust: false, ids: Ids::Keep, ..resume };
    assert_eq!(how(&["--resume", "--ids=keep", "foo"]), (Some(resume), false));
    let options = Options { ids: Ids::New, ..Options::default() };
    assert_eq!(stub(&["--ids", "new"]), Ok(StubCommand::Restart(Box::new(options))));
    assert!(stub(&["--ids=old"]).unwrap_err().contains("keep, new and auto"));
}
