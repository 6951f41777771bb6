// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt warm`, and restarts with arguments, variables and a directory of their own.

mod desk;
mod harness;

use desk::{Desk, Libc, With};
use harness::{Bench, Ended, Run, Who};

/// Says what it was given, and saves itself again where it is told to.
const SERVICE: &str = r#"
#define _GNU_SOURCE
#include <ckpt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	struct ckptgiven given;
	char *here = 0;
	if (ckpt_given(&given) != 0 || given.argc || given.argv || given.env || ckpt_given(NULL) != -1)
		return 9;
	if (argc > 1)
		return atoi(argv[1]);
	for (;;) {
		if (ckpt_ckpt(NULL) != 1)
			return 8;
		if (ckpt_given(&given) != 0)
			return 7;
		here = get_current_dir_name();
		printf("%s %d", strrchr(here, '/') + 1, given.argc);
		for (char **at = given.argv; at && *at; at++)
			printf(" %s", *at);
		for (char **at = given.env; at && *at; at++)
			printf(" %s", *at);
		puts("");
		fflush(stdout);
		if (!given.argc || strcmp(given.argv[0], "again"))
			return 0;
	}
}
"#;

fn restarted(bench: &Bench, args: &[&str]) -> Ended {
    bench.run(bench.path("x.ckpt"), args).ends_well()
}

#[test]
fn restarts_have_what_they_are_given() {
    for (who, libc, with) in
        [(Who::Me, Libc::Glibc, With::Linked), (Who::Nobody, Libc::Musl, With::Linked)]
    {
        let desk = Desk::new(who);
        let bench = &desk.bench;
        let source = bench.file("service.c", SERVICE);
        desk.compile(&source, "service", libc, with);
        let said = bench.must(&["warm", "x.ckpt", "./service"]).stdout;
        assert!(said[0].contains("x.ckpt") && said[0].contains("ready"), "{said:?}");
        let last = bench.subdirectory("elsewhere");
        let own = bench.path("x");
        let own = own.parent().and_then(|dir| dir.file_name()).expect("a name").to_string_lossy();
        assert_eq!(restarted(bench, &[]).stdout, [format!("{own} 0")]);
        // Whatever the words are.
        let words = ["--args", "--name", "a b", "--", ""];
        assert_eq!(restarted(bench, &words).stdout, [format!("{own} 4 --name a b -- ")]);
        let words = ["--env", "A=1", "--cwd", "elsewhere", "--env", "B=x=y", "--args", "one"];
        assert_eq!(restarted(bench, &words).stdout, ["elsewhere 1 one A=1 B=x=y"]);
        let through = [&["restart", "x.ckpt"][..], &words].concat();
        assert_eq!(bench.must(&through).stdout, ["elsewhere 1 one A=1 B=x=y"]);
        // Three generations, the last of which is given nothing new.
        let mut all = vec![restarted(bench, &["--env", "A=2", "--args", "again", "x"])];
        all.push(restarted(bench, &["--args", "again"]));
        all.push(restarted(bench, &["--cwd", last.to_str().expect("utf-8"), "--args", "done"]));
        let said: Vec<_> = all.iter().map(|ended| ended.stdout.join("\n")).collect();
        let expected =
            [format!("{own} 2 again x A=2"), format!("{own} 1 again"), "elsewhere 1 done".into()];
        assert_eq!(said, expected);
        for (words, why) in
            [(&["--env", "A"][..], "NAME=VALUE"), (&["--cwd", "/nonexistent"], "/nonexistent")]
        {
            let ended = bench.run(bench.path("x.ckpt"), words).end();
            assert!(ended.code() == Some(125) && ended.stderr.contains(why), "{ended:?}");
        }
    }
}

#[test]
fn who_ends_before_it_is_ready_is_no_warm_start() {
    let desk = Desk::new(Who::Nobody);
    let bench = &desk.bench;
    desk.compile(&bench.file("service.c", SERVICE), "service", Libc::Glibc, With::Linked);
    for status in ["0", "3"] {
        let ended = bench.order(&["warm", "y.ckpt", "./service", status]);
        assert!(
            ended.code() == Some(125) && ended.stderr.contains("without a checkpoint"),
            "{ended:?}"
        );
        assert!(!bench.path("y.ckpt").exists());
    }
    assert_eq!(bench.order(&["warm", "y.ckpt", "./missing"]).code(), Some(127));
    // A checkpoint of before is none of this one's.
    bench.must(&["warm", "x.ckpt", "./service"]);
    assert_eq!(bench.order(&["warm", "x.ckpt", "./service", "0"]).code(), Some(125));
}

#[test]
fn python_starts_where_it_was_ready() {
    let desk = Desk::new(Who::Nobody);
    let bench = &desk.bench;
    let program = "
import os, sys
import ckpt
assert ckpt.given() == ([], {})
ckpt.ready()
print(sys.argv, os.environ['A'], os.path.basename(os.getcwd()), flush=True)
";
    bench.file("warm.py", program);
    bench.subdirectory("there");
    let mut command = bench.command(bench.ckpt());
    command.env("PYTHONPATH", bench.path("sdk/lib/python"));
    command.args(["warm", "x.ckpt", "/usr/bin/python3", "warm.py", "old"]);
    Run::start(command).ends_well();
    for number in ["1", "2"] {
        let words = ["--cwd", "there", "--env", &format!("A={number}"), "--args", "new", number];
        let said = restarted(bench, &words).stdout;
        assert_eq!(said, [format!("['warm.py', 'new', '{number}'] {number} there")]);
    }
}
