// SPDX-License-Identifier: LGPL-2.1-only
//! What makes checkpoints restart on other machines, as far as one machine can show it; `scripts/machines`
//! shows the rest with other kernels and CPUs.

mod harness;

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal::SIGTSTP;
use nix::unistd::geteuid;

use harness::{Bench, Build, Run, Way, Who, until};

/// Launches a program with options and saves it to x.ckpt by the signal.
#[track_caller]
fn save(bench: &Bench, options: &[&str], program: &str, args: &[&str]) {
    let options = [&["-n", "x.ckpt"], options].concat();
    let mut run = bench.launch(&options, program, args);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
}

fn traveller(bench: &Bench, build: Build) -> String {
    bench.subject("traveller", build).into_os_string().into_string().expect("utf-8")
}

/// The value of a line of `ckpt info` or `ckpt check`.
fn value(text: &[String], name: &str) -> Option<String> {
    let line = text.iter().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.trim().to_owned())
}

#[test]
fn travellers_survive_at_home() {
    for build in Build::ALL {
        let bench = Bench::new(Who::Nobody);
        save(&bench, &[], &traveller(&bench, build), &[]);
        let mut run = bench.run(bench.path("x.ckpt"), &[]);
        run.check();
        run.check();
        run.go();
    }
}

#[test]
fn the_image_has_the_level_that_was_asked_for() {
    let bench = Bench::new(Who::Nobody);
    save(&bench, &["--cpu", "x86-64-v1"], &traveller(&bench, Build::Pie), &[]);
    let info = bench.must(&["info", "x.ckpt"]).stdout;
    assert_eq!(value(&info, "cpu level").as_deref(), Some("x86-64-v1"), "{info:?}");
    assert_eq!(value(&info, "cpu features").as_deref(), Some(""), "{info:?}");
    // It also has it when a restarted program is saved again.
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.check();
    run.signal(SIGTSTP);
    run.ends_well();
    let info = bench.must(&["info", "x.ckpt"]).stdout;
    assert_eq!(value(&info, "cpu level").as_deref(), Some("x86-64-v1"), "{info:?}");
    assert_eq!(value(&info, "generation").as_deref(), Some("2"), "{info:?}");
}

#[test]
fn without_an_option_the_image_has_what_the_machine_has() {
    let bench = Bench::new(Who::Nobody);
    save(&bench, &[], &traveller(&bench, Build::Static), &[]);
    let info = bench.must(&["info", "x.ckpt"]).stdout;
    let check = bench.must(&["check"]).stdout;
    for name in ["cpu level", "cpu features", "kernel", "processor"] {
        assert!(value(&check, name).is_some(), "{check:?}");
        assert_eq!(value(&info, name), value(&check, name));
    }
}

#[test]
fn the_environment_changes_only_with_the_option() {
    let bench = Bench::new(Who::Nobody);
    let environment = |options: &[&str], own: &[(&str, &str)]| {
        let mut command = bench.command(bench.ckpt());
        command.args(options).args(["--", "env"]).envs(own.iter().copied());
        Run::start(command).end().stdout
    };
    let names = [
        "GLIBC_TUNABLES",
        "LD_BIND_NOW",
        "OPENSSL_ia32cap",
        "OPENBLAS_CORETYPE",
        "JAVA_TOOL_OPTIONS",
    ];
    let has =
        |lines: &[String], name: &str| lines.iter().any(|l| l.starts_with(&format!("{name}=")));
    let plain = environment(&[], &[]);
    assert!(names.iter().all(|name| !has(&plain, name)), "{plain:?}");
    assert!(names.iter().all(|name| !has(&environment(&["--cpu", "native"], &[]), name)));
    let limited = environment(&["--cpu", "x86-64-v1"], &[("OPENSSL_ia32cap", "mine")]);
    assert!(has(&limited, "GLIBC_TUNABLES") && has(&limited, "OPENBLAS_CORETYPE"), "{limited:?}");
    assert!(limited.contains(&"OPENSSL_ia32cap=mine".to_owned()), "{limited:?}");
    let env = [("CKPT_CPU", "x86-64-v1")];
    assert!(has(&environment(&[], &env), "GLIBC_TUNABLES"));
}

#[test]
fn glibc_obeys_the_level() {
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let known = Command::new(loader).arg("--list-diagnostics").output();
    if !known.is_ok_and(|o| o.status.success()) {
        println!("not run: the dynamic linker lists no diagnostics");
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let diagnosed = |level: &str, name: &str| {
        let run = bench.launch(&["--cpu", level], loader, &["--list-diagnostics"]).end();
        let line = run.stdout.iter().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        let number = line.expect("a line").trim_start_matches("0x").to_owned();
        u64::from_str_radix(&number, 16).expect("a hexadecimal number")
    };
    // CPUID 7, EBX: BMI1, AVX2, BMI2, AVX-512 F, DQ, CD, BW and VL.
    let above = 1 << 3 | 1 << 5 | 1 << 8 | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31;
    let active = diagnosed("x86-64-v1", "x86.cpu_features.features[0x1].active[0x1]");
    assert_eq!(active & above, 0, "{active:x}");
    // For this memcpy takes AVX.
    let preferred = "x86.cpu_features.preferred.AVX_Fast_Unaligned_Load";
    assert_eq!(diagnosed("x86-64-v1", preferred), 0);
    // The lazy resolver does without XSAVE.
    assert_eq!(diagnosed("x86-64-v1", "x86.cpu_features.xsave_state_size"), 0);
}

#[test]
fn levels_that_do_not_exist_are_refused() {
    let bench = Bench::new(Who::Nobody);
    let ended = bench.order(&["--cpu", "x86-64-v9", "true"]);
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("'x86-64-v9'"), "{ended:?}");
}

#[test]
fn missing_files_are_named_and_found_elsewhere() {
    let bench = Bench::new(Who::Nobody);
    let old = bench.subdirectory("old");
    fs::write(old.join("words"), "one\ntwo\nthree\n").expect("a file");
    bench.give(&old.join("words"));
    let script =
        "exec 5< old/words; read a <&5; echo ready; read l; read b <&5; echo $a $b; [ $l = go ]";
    save(&bench, &[], "bash", &["-c", script]);
    let new = bench.path("new");
    fs::rename(&old, &new).expect("rename");
    let words = bench.name("old/words");
    let info = bench.must(&["info", "x.ckpt"]).stdout;
    assert!(info.iter().any(|l| l.starts_with("files ") && l.ends_with(&words)), "{info:?}");
    let ended = bench.order(&["check", "x.ckpt"]);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_eq!(value(&ended.stdout, "can restart here").as_deref(), Some("no"), "{ended:?}");
    assert_eq!(value(&ended.stdout, "files missing"), Some(words.clone()), "{ended:?}");
    let refused = bench.run(bench.path("x.ckpt"), &[]).end();
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains(&words) && refused.stderr.contains("--map-path"),
        "{refused:?}"
    );
    let map = format!("{}={}", bench.name("old"), bench.name("new"));
    assert_eq!(bench.must(&["check", "--map-path", &map, "x.ckpt"]).code(), Some(0));
    let mut run = bench.run(bench.path("x.ckpt"), &["--map-path", &map]);
    run.say("go");
    run.expect("one two");
    run.ends_well();
}

#[test]
fn embedded_files_are_read_where_there_are_none() {
    let bench = Bench::new(Who::Nobody);
    bench.file("words", "one\ntwo\nthree\n");
    bench.file("written", "");
    let script = "exec 5< words 6>> written; read a <&5; echo $a >&6; echo ready; read l; \
                  read b <&5; echo $b >&6; echo $a $b; [ $l = go ]";
    let alone = ["-c", script];
    let below = ["-c", "bash -c \"$0\"; exit $?", script];
    for (limit, carried, words) in
        [("4", false, &alone[..]), ("64K", true, &alone), ("64K", true, &below)]
    {
        bench.file("words", "one\ntwo\nthree\n");
        bench.file("written", "");
        save(&bench, &["--embed-files", limit], "bash", words);
        let info = bench.must(&["info", "x.ckpt"]).stdout;
        let has = |name: &str| info.iter().any(|l| l.starts_with(name) && l.contains("/words"));
        assert_eq!((has("files embedded "), has("not saved ")), (carried, !carried), "{info:?}");
        fs::remove_file(bench.path("words")).expect("remove");
        fs::remove_file(bench.path("written")).expect("remove");
        let mut run = bench.run(bench.path("x.ckpt"), &[]);
        if !carried {
            let ended = run.end();
            assert!(ended.stderr.contains(&bench.name("words")), "{ended:?}");
            continue;
        }
        run.say("go");
        run.expect("one two");
        run.ends_well();
        let written = fs::read_to_string(bench.path("written")).expect("made anew");
        assert_eq!(written, "one\ntwo\n");
    }
}

#[test]
fn json_is_one_object() {
    let bench = Bench::new(Who::Nobody);
    save(&bench, &[], &traveller(&bench, Build::Musl), &["a \"b\"", "\u{e9}\n"]);
    let script = "import json,sys; o = json.load(open(sys.argv[1])); print(*sorted(o), sep='\\n')";
    for (args, name) in [
        (&["info", "--json", "x.ckpt"][..], "arguments"),
        (&["check", "--json"], "pagemap_scan"),
        (&["check", "--json", "x.ckpt"], "can_restart_here"),
    ] {
        let text = bench.file("text", bench.must(args).stdout.join("\n"));
        let keys = bench.run("/usr/bin/python3", &["-c", script, text.to_str().expect("utf-8")]);
        let keys = keys.end();
        assert_eq!(keys.code(), Some(0), "{keys:?}");
        assert!(keys.stdout.iter().any(|key| key == name), "{keys:?}");
    }
}

/// A time namespace stands for another machine whose clock began at another time.
#[test]
fn deadlines_on_another_clock() {
    if !geteuid().is_root() || !std::path::Path::new("/proc/self/ns/time").exists() {
        println!("not run: time namespaces need root");
        return;
    }
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let program = bench.subject("deadline", Build::Pie);
        let mut run = bench.run(program, &[]);
        run.expect("ready");
        // A signal would end the sleep, as any other does.
        Way::SaveStop.save(&bench, "x.ckpt", run);
        for offset in ["-100", "1000000"] {
            let mut command = Command::new("unshare");
            command.args(["--time", "--monotonic", offset, "--fork", "--kill-child", "--"]);
            if bench.drops_privileges() {
                command.args(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
                command.args(["--inh-caps=-all", "--bounding-set=-all", "--"]);
            }
            command.arg(bench.path("x.ckpt")).current_dir(&bench.dir);
            let mut run = Run::start(command);
            run.expect("woke");
            run.ends_well();
        }
    }
}

/// Every stop finds threads inside of the vdso; they leave it, and neither they nor the timer suffer.
#[test]
fn threads_that_read_clocks_go_on() {
    for (who, stranger) in [(Who::Me, true), (Who::Nobody, false)] {
        let bench = Bench::new(who);
        let program = bench.subject("clockloop", Build::Pie);
        let mut run = match stranger {
            true => bench.run(program, &[]),
            false => bench.launch(&["-n", "x.ckpt"], program, &[]),
        };
        run.expect("ready");
        for generation in 0..10 {
            let image = format!("{generation}.ckpt");
            run = Way::Save.save(&bench, &image, run).expect("it goes on");
            let mut second = bench.run(bench.path(&image), &[]);
            second.check();
            second.go();
            run.check();
        }
        run.go();
    }
}

/// What the program's clock said is not what ours says when it is saved from outside of its time
/// namespace: notes about waits are on its clock.
#[test]
fn notes_about_waits_are_on_the_program_s_clock() {
    if !geteuid().is_root() || !std::path::Path::new("/proc/self/ns/time").exists() {
        println!("not run: time namespaces need root");
        return;
    }
    let uptime = fs::read_to_string("/proc/uptime").expect("/proc/uptime");
    let seconds: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).expect("seconds");
    let behind = format!("-{}", seconds as u64 / 2);
    let bench = Bench::new(Who::Me);
    let mut command = Command::new("unshare");
    command.args(["--time", "--monotonic", &behind, "--fork", "--kill-child", "--", "perl", "-e"]);
    command.arg(r#"$| = 1; print "$$\n"; sleep 5; print "woke\n""#).current_dir(&bench.dir);
    let mut run = Run::start(command);
    let pid = run.line();
    bench.must(&["save", &pid, "--stop", "-n", "1.ckpt"]);
    drop(run.end());
    // The restarter becomes it: nsenter(1) looks for its clocks by that id.
    let run = bench.run(bench.path("1.ckpt"), &["--ids=new"]);
    let pid = run.pid_text();
    let name = format!("/proc/{pid}/comm");
    until("the restart", || fs::read_to_string(&name).ok().filter(|n| n == "perl\n"));
    // One dumper beside the program's clock, one with it.
    let saved = || bench.order(&["save", &pid, "-n", "2.ckpt"]).code() == Some(0);
    until("a whole program", || saved().then_some(()));
    let mut inside = Command::new("nsenter");
    inside.args(["--time", "--target", &pid, "--"]).arg(bench.ckpt()).current_dir(&bench.dir);
    inside.args(["save", &pid, "--stop", "-n", "3.ckpt"]);
    Run::start(inside).ends_well();
    let mut run = bench.run(bench.path("3.ckpt"), &["--ids=new"]);
    run.expect("woke");
    run.ends_well();
}
