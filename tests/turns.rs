//! Whose turn it is: what a checkpoint leaves in a program, and what comes between its orders, its signals and its
//! children.

mod harness;

use std::fs;

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGTSTP};

use harness::{Bench, Build, Who, catches, status_line, until};

const SIGTSTP_NUMBER: i32 = SIGTSTP as i32;

#[test]
fn a_save_takes_no_signal() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert!(!catches(run.pid(), SIGTSTP_NUMBER), "the signal is taken");
    // It stops the program as ever, which goes on.
    run.signal(SIGTSTP);
    until("a stopped program", || {
        status_line(run.pid(), "State").is_some_and(|s| s.starts_with('T')).then_some(())
    });
    run.signal(SIGCONT);
    run.check();
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    assert!(!catches(again.pid(), SIGTSTP_NUMBER), "the restarted program's signal is taken");
    again.go();
    // Asked for, it is taken still.
    bench.must(&["-p", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
    assert!(catches(run.pid(), SIGTSTP_NUMBER));
    run.signal(SIGTSTP);
    run.ends_well();
    bench.run(bench.path("y.ckpt"), &[]).go();
}

#[test]
fn a_handler_is_replaced_only_where_it_is_named() {
    let bench = Bench::new(Who::Nobody);
    let script = "$| = 1; $SIG{TSTP} = sub { print \"mine\\n\" }; print \"ready\\n\"; \
                  while (<STDIN>) { print \"ok\\n\" }";
    for saved in [false, true] {
        let mut run = bench.run("perl", &["-e", script]);
        run.expect("ready");
        let pid = run.pid_text();
        if saved {
            bench.must(&["save", &pid, "-n", &bench.name("x.ckpt")]);
        }
        let said = bench.must(&["-p", &pid, "-n", &bench.name("x.ckpt")]);
        assert!(said.stderr.contains("SIGTSTP"), "{said:?}");
        run.signal(SIGTSTP);
        run.say("");
        let mut lines = [run.line(), run.line()];
        lines.sort();
        assert_eq!(lines, ["mine", "ok"]);
        let _ = fs::remove_file(bench.path("x.ckpt"));
        bench.must(&["-p", &pid, "-a", "TSTP", "-c"]);
        run.signal(SIGTSTP);
        until("a checkpoint", || bench.path("x.ckpt").exists().then_some(()));
        run.signal(SIGKILL);
        run.end();
    }
}
