// SPDX-License-Identifier: LGPL-2.1-only
//! Options for other machines.

use super::*;

#[test]
fn other_machines() {
    let check = |file: Option<&str>, map_path, json| {
        let words = file.into_iter().map(Into::into).collect();
        let transfer = Transfer::default();
        Ok(Command::Check { words, map_path: MapPath(map_path), json, transfer })
    };
    assert_eq!(run(&["check"]), check(None, vec![], false));
    assert_eq!(run(&["check", "--json"]), check(None, vec![], true));
    let map = || vec![("/a".into(), "/b".into()), ("/c".into(), "/d".into())];
    assert_eq!(
        run(&["check", "--map-path=/a=/b", "f", "--map-path", "/c=/d"]),
        check(Some("f"), map(), false)
    );
    let options = Options { force_cpu: true, map_path: MapPath(map()), ..Options::default() };
    let line = ["--map-path", "/a=/b", "--force-cpu", "--map-path", "/c=/d"];
    assert_eq!(stub(&line), Ok(StubCommand::Restart(Box::new(options))));
    let options = Options { map_port: MapPort(vec![(1, 2), (3, 4), (5, 6)]), ..Options::default() };
    assert_eq!(
        stub(&["--map-port", "1=2,3=4", "--map-port=5=6"]),
        Ok(StubCommand::Restart(Box::new(options)))
    );
    assert!(stub(&["--map-port", "1"]).unwrap_err().contains("OLD=NEW"));
    assert!(stub(&["--map-path", "x"]).unwrap_err().contains("OLD=NEW"));
    match run(&["--cpu", "x86-64-v2", "foo"]) {
        Ok(Command::Launch { cpu: Some(CpuLimit::Level(2, avoided)), .. }) => {
            assert!(avoided.is_empty())
        }
        other => panic!("{other:?}"),
    }
    let env = |name: &str| (name == "CKPT_CPU").then(|| "avx9".into());
    let sentence = parse(words("ckpt", &["foo"]), env).unwrap_err().to_string();
    assert!(sentence.contains("CKPT_CPU") && sentence.contains("'avx9'"), "{sentence}");
}
