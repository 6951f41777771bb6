// SPDX-License-Identifier: LGPL-2.1-only
//! The C API: programs that are linked with libckpt.so, preloaded with it, or run by `ckpt`.

mod desk;
mod harness;

use std::fs;
use std::path::Path;

use desk::{ALL, Desk, Libc, With, everywhere};
use harness::{Run, Who, until};
use nix::sys::signal::Signal::SIGTSTP;

#[test]
fn the_configuration_is_read_and_changed() {
    everywhere(|desk, libc, with| {
        let mut run = desk.start(libc, with, "config");
        run.expect("ok");
        run.ends_well();
    });
}

#[test]
fn callbacks_are_called_in_their_orders() {
    everywhere(|desk, libc, with| {
        let mut run = desk.start(libc, with, "order");
        run.expect("saved");
        run.ends_well();
        let mut run = desk.resume("order.ckpt");
        run.expect("restarted");
        run.ends_well();
    });
}

#[test]
fn failures_have_their_errno_and_do_no_harm() {
    everywhere(|desk, libc, with| {
        let mut run = desk.start(libc, with, "errors");
        run.expect("ok");
        run.ends_well();
    });
}

fn redirected(libc: Libc, with: With, part: &str, image: &str) {
    let desk = Desk::new(Who::Nobody);
    desk.start(libc, with, part).ends_well();
    desk.bench.file("new.txt", "abcd");
    fs::remove_file(desk.bench.path("out.txt")).expect("the file was there");
    let mut run = desk.resume(image);
    run.expect("open");
    run.ends_well();
    assert_eq!(desk.read("new.txt"), "abafter\n");
    assert!(!desk.bench.path("out.txt").exists());
}

#[test]
fn a_callback_redirects_a_file_that_is_gone() {
    for (libc, with) in ALL {
        redirected(libc, with, "redirect", "files.ckpt");
        redirected(libc, with, "early", "files.ckpt");
    }
    redirected(Libc::Glibc, With::Linked, "signal", "calls.ckpt");
    redirected(Libc::Musl, With::Launched, "signal", "launched.ckpt");
}

#[test]
fn an_ignored_descriptor_is_not_restored() {
    for part in ["ignore", "late", "post"] {
        for (libc, with) in [(Libc::Glibc, With::Linked), (Libc::Musl, With::Launched)] {
            let desk = Desk::new(Who::Nobody);
            desk.start(libc, with, part).ends_well();
            fs::remove_file(desk.bench.path("other.txt")).expect("the file was there");
            let mut run = desk.resume("files.ckpt");
            run.expect("closed");
            run.ends_well();
            assert_eq!(desk.read("out.txt"), "before\nafter\n");
        }
    }
}

#[test]
fn another_file_at_an_ignored_number_is_restored() {
    let desk = Desk::new(Who::Nobody);
    desk.start(Libc::Glibc, With::Linked, "reused").ends_well();
    let mut run = desk.resume("files.ckpt");
    run.expect("open");
    run.ends_well();
}

#[test]
fn what_cannot_be_restored_ends_the_restart_with_a_sentence() {
    let desk = Desk::new(Who::Nobody);
    desk.start(Libc::Glibc, With::Linked, "demand").ends_well();
    let ended = desk.resume("files.ckpt").end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("which is no regular file"), "{ended:?}");

    let desk = Desk::new(Who::Nobody);
    desk.start(Libc::Glibc, With::Linked, "nothing").ends_well();
    fs::remove_file(desk.bench.path("out.txt")).expect("the file was there");
    let ended = desk.resume("files.ckpt").end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("out.txt: No such file or directory"), "{ended:?}");
}

#[test]
fn every_kind_of_descriptor_has_its_type() {
    everywhere(|desk, libc, with| {
        let mut run = desk.start(libc, with, "types");
        run.expect("ok");
        run.ends_well();
    });
}

#[test]
fn excluded_memory_comes_back_as_zeros() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        desk.start(libc, with, "excluded").ends_well();
        let mut run = desk.resume("excluded.ckpt");
        run.expect("zeros");
        run.ends_well();
    }
}

#[test]
fn a_held_checkpoint_is_taken_at_the_release() {
    let desk = Desk::new(Who::Nobody);
    let mut run = desk.start(Libc::Glibc, With::Linked, "held");
    run.expect("held");
    run.signal(SIGTSTP);
    run.say("go");
    run.expect("still");
    run.say("go");
    run.ends_well();
    let mut run = desk.resume("calls.ckpt");
    run.expect("released");
    run.say("go");
    run.ends_well();
}

#[test]
fn a_save_waits_for_the_release() {
    let desk = Desk::new(Who::Nobody);
    let mut run = desk.start(Libc::Glibc, With::Linked, "held");
    run.expect("held");
    let saver = desk.bench.run(desk.bench.ckpt(), &["save", &run.pid_text(), "-n", "held.ckpt"]);
    run.say("go");
    run.expect("still");
    run.say("go");
    run.expect("released");
    saver.ends_well();
    run.say("go");
    run.ends_well();
    assert!(desk.bench.path("held.ckpt").exists());
}

#[test]
fn a_save_from_outside_has_the_callbacks_called() {
    everywhere(|desk, libc, with| {
        let mut run = desk.start(libc, with, "outside");
        run.expect("ready");
        desk.bench.must(&["save", &run.pid_text(), "-n", &desk.bench.name("saved.ckpt")]);
        run.say("");
        run.expect("1 1 0");
        run.finish();
        let mut run = desk.resume("saved.ckpt");
        run.say("");
        run.expect("1 0 1");
        run.finish();
    });
}

#[test]
fn the_signal_has_the_callbacks_called() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        let mut run = desk.start(libc, with, "outside");
        run.expect("ready");
        run.signal(SIGTSTP);
        run.ends_well();
        let name = if with == With::Launched { "launched.ckpt" } else { "calls.ckpt" };
        let mut run = desk.resume(name);
        run.say("");
        run.expect("1 0 1");
        run.finish();
    }
}

#[test]
fn an_attached_command_changes_the_configuration_of_a_linked_program() {
    for libc in [Libc::Glibc, Libc::Musl] {
        let desk = Desk::new(Who::Nobody);
        let mut run = desk.start(libc, With::Linked, "outside");
        run.expect("ready");
        let name = desk.bench.name("attached.ckpt");
        desk.bench.must(&["-p", &run.pid_text(), "-n", &name, "-c"]);
        run.signal(SIGTSTP);
        until("the checkpoint", || Path::new(&name).exists().then_some(()));
        run.say("");
        run.expect("1 1 0");
        run.finish();
    }
}

#[test]
fn a_thread_saves_while_twenty_compute() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        let mut run = desk.start(libc, with, "threads");
        run.expect("saved");
        run.ends_well();
        let mut run = desk.resume("threads.ckpt");
        run.expect("restarted");
        run.ends_well();
    }
}

#[test]
fn a_program_restarts_its_own_checkpoint() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        let mut run = desk.start(libc, with, "restart");
        run.expect("round");
        run.ends_well();
    }
}

#[test]
fn a_forked_child_has_its_own_name() {
    let desk = Desk::new(Who::Nobody);
    let mut run = desk.start(Libc::Glibc, With::Linked, "forked");
    run.expect("parent");
    let name = run.line();
    run.ends_well();
    let mut run = desk.resume(&name);
    run.expect("child restarted");
    run.ends_well();
}

#[test]
fn without_the_library_calls_fail() {
    for libc in [Libc::Glibc, Libc::Musl] {
        let desk = Desk::new(Who::Nobody);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/calls.c");
        let program = desk.compile(&source, "calls", libc, With::Preloaded);
        let mut run = desk.bench.run(&program, &["absent"]);
        run.expect("absent");
        run.ends_well();
        // Started by ckpt it can be saved, but has no API either.
        let mut run = desk.bench.launch(&[], &program, &["absent"]);
        run.expect("absent");
        run.ends_well();
    }
}

#[test]
fn what_a_preloaded_program_spawns_is_equipped_under_its_own_name() {
    let desk = Desk::new(Who::Nobody);
    let mut command = desk.bench.command("/bin/sh");
    command.args(["-c", "sleep 1000; echo $?"]).env("LD_PRELOAD", desk.library());
    let mut run = Run::start(command);
    let children = format!("/proc/{0}/task/{0}/children", run.pid());
    let equipped = |pid: &u32| harness::catches(*pid, SIGTSTP as i32);
    let child = until("the child", || {
        let pid = fs::read_to_string(&children).ok()?.trim().parse::<u32>().ok()?;
        let sleeps = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == "sleep";
        (sleeps && equipped(&pid)).then_some(pid)
    });
    let child = nix::unistd::Pid::from_raw(child.cast_signed());
    nix::sys::signal::kill(child, SIGTSTP).expect("the child lives");
    run.expect("0");
    run.ends_well();
    assert!(desk.bench.path("sleep.ckpt").exists());
}

#[test]
fn what_a_launched_program_spawns_is_not_equipped() {
    let desk = Desk::new(Who::Nobody);
    let script = "cat /proc/self/status | grep SigCgt";
    let mut run = desk.bench.launch(&[], "/bin/sh", &["-c", script]);
    let line = run.line();
    let mask = line.split_whitespace().last().and_then(|m| u64::from_str_radix(m, 16).ok());
    assert_eq!(mask.map(|m| m >> (SIGTSTP as i32 - 1) & 1), Some(0), "{line}");
    run.ends_well();
}

#[test]
fn the_environment_configures_a_preloaded_program() {
    let desk = Desk::new(Who::Nobody);
    let mut command = desk.bench.command("/bin/sleep");
    command.arg("1000").env("LD_PRELOAD", desk.library()).env("CKPT_NAME", "file://named");
    command.env("CKPT_ASYNCSIG", "SIGUSR2").env("CKPT_CONTINUE", "7");
    let run = Run::start(command);
    run.complaint("CKPT_CONTINUE");
    until("the handler", || harness::catches(run.pid(), 12).then_some(()));
    assert!(!harness::catches(run.pid(), SIGTSTP as i32));
    run.signal(nix::sys::signal::Signal::SIGUSR2);
    run.ends_well();
    assert!(desk.bench.path("named").exists());
}

#[test]
fn the_environment_asks_for_periodic_checkpoints() {
    let desk = Desk::new(Who::Nobody);
    let mut command = desk.bench.command("/bin/sleep");
    command.arg("1000").env("LD_PRELOAD", desk.library()).env("CKPT_MSPERIOD", "20");
    let run = Run::start(command);
    let image = desk.bench.path("sleep.ckpt");
    until("a periodic checkpoint", || image.exists().then_some(()));
    run.signal(nix::sys::signal::Signal::SIGKILL);
    run.end();
}

#[test]
fn cpp_programs_include_the_header() {
    const PROGRAM: &str = "#include <ckpt.h>\n\
        static void f(void *) {}\n\
        int main() { ckpt_on_restart(f, nullptr); return ckpt_ckpt(\"plus.ckpt\") < 0; }\n";
    let desk = Desk::new(Who::Me);
    let source = desk.bench.file("plus.cc", PROGRAM);
    for with in [With::Linked, With::Preloaded] {
        let program = desk.compile(&source, "plus", Libc::Glibc, with);
        let mut command = desk.bench.command(program);
        if with == With::Preloaded {
            command.env("LD_PRELOAD", desk.library());
        }
        Run::start(command).ends_well();
        desk.resume("plus.ckpt").ends_well();
    }
}

#[test]
fn the_example_of_the_manual_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/api.md")).expect("docs/api.md");
    let code = page.split("```c\n").nth(1).and_then(|s| s.split("```").next());
    let desk = Desk::new(Who::Nobody);
    let source = desk.bench.file("count.c", code.expect("an example in C"));
    for libc in [Libc::Glibc, Libc::Musl] {
        let program = desk.compile(&source, "count", libc, With::Linked);
        let mut run = desk.bench.run(&program, &[]);
        (1..=5).for_each(|i| run.expect(&i.to_string()));
        run.ends_well();
        let mut run = desk.resume("count.ckpt");
        run.expect("restarted from generation 1");
        (6..=10).for_each(|i| run.expect(&i.to_string()));
        run.ends_well();
    }
}

#[test]
fn python_programs_use_the_module() {
    for launched in [false, true] {
        let desk = Desk::new(Who::Nobody);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/module.py");
        let script = desk.bench.file("module.py", fs::read(script).expect("the script"));
        let program = if launched { desk.bench.ckpt() } else { "/usr/bin/python3".into() };
        let mut command = desk.bench.command(program);
        if launched {
            command.args(["--", "/usr/bin/python3"]);
        } else {
            command.env("LD_PRELOAD", desk.library());
        }
        command.arg(script).env("PYTHONPATH", desk.bench.path("sdk/lib/python"));
        let mut run = Run::start(command);
        run.expect("before");
        run.expect("after");
        run.expect("checkpoint gave 0");
        run.ends_well();
        let mut run = desk.resume("module.ckpt");
        run.expect("restart");
        run.expect("checkpoint gave 1");
        run.ends_well();
    }
}

#[test]
fn pages_and_pkg_config_are_written() {
    let desk = Desk::new(Who::Me);
    let header = desk.read("sdk/include/ckpt.h");
    for line in header.lines().filter(|l| {
        l.starts_with("int ckpt_") || l.starts_with("void ckpt_") || l.contains("*ckpt_fds(")
    }) {
        let name = line.split(['*', ' ', '(']).find(|w| w.starts_with("ckpt_")).expect("a name");
        let page = desk.read(&format!("sdk/share/man/man3/{name}.3"));
        let page = match page.strip_prefix(".so ") {
            Some(other) => desk.read(&format!("sdk/share/man/{}", other.trim())),
            None => page,
        };
        assert!(page.contains(name), "{name}");
    }
    assert!(desk.read("sdk/lib/pkgconfig/ckpt.pc").contains("-lckpt"));
}
