// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel keeps for a process and nobody else: leases, locks, seals, rights; or a word about it.

mod harness;

use harness::{Bench, Build, Way, Who, survive};

const BOTH: [Who; 2] = [Who::Me, Who::Nobody];

/// Three generations of the subject, which looks at its state in each.
#[track_caller]
fn keeps(who: Who, kind: &str) {
    keeps_by(who, kind, &[]);
}

/// The same with options of the restarts.
#[track_caller]
fn keeps_by(who: Who, kind: &str, options: &[&str]) {
    subject_keeps(who, "own", kind, options);
}

#[track_caller]
fn subject_keeps(who: Who, subject: &str, kind: &str, options: &[&str]) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject(subject, Build::Pie), &[kind]);
    match run.line().as_str() {
        "ready" => {}
        "none" => return,
        other => panic!("{other}"),
    }
    bench.three_generations(run, options);
}

/// What few descriptors and threads have.
#[test]
fn edges() {
    const KINDS: [&str; 10] = [
        "fifo", "removed", "thread", "cancel", "slice", "marks", "point", "nofollow", "polls",
        "ring",
    ];
    for kind in KINDS {
        BOTH.into_iter().for_each(|who| subject_keeps(who, "edges", kind, &[]));
    }
}

/// While such a one stood still nobody could open a file.
#[test]
fn who_is_asked_for_leave_is_not_stopped() {
    let bench = Bench::new(Who::Me);
    let mut run = bench.run(bench.subject("edges", Build::Pie), &["asks"]);
    if run.line() == "none" {
        return;
    }
    let (pid, image) = (run.pid_text(), bench.name("x.ckpt"));
    for words in [&["save", &pid, "-n", &image][..], &["check", &pid]] {
        let said = bench.order(words);
        let all = format!("{}{}", said.stdout.concat(), said.stderr);
        assert!(all.contains("is asked when others open files"), "{said:?}");
        assert!(said.code() != Some(0) && !bench.path("x.ckpt").exists(), "{said:?}");
        run.check();
    }
    run.go();
}

/// The second dumper comes from within namespaces whose rights the restarted dead had.
#[test]
fn how_a_child_has_ended() {
    BOTH.into_iter().for_each(|who| survive(who, Way::Launch, "edges", Build::Pie, &["dead"]));
}

#[test]
fn leases() {
    BOTH.into_iter().for_each(|who| keeps(who, "lease"));
}

#[test]
fn a_lock_of_a_job() {
    BOTH.into_iter().for_each(|who| keeps(who, "flock"));
}

/// The same of another subject, which may go on for a while before.
#[track_caller]
fn survives(who: Who, subject: &str, goes_on: usize) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject(subject, Build::Pie), &[]);
    run.expect("ready");
    for _ in 0..goes_on {
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("0.ckpt")]);
        run.check();
    }
    bench.three_generations(run, &[]);
}

/// Rings of asynchronous I/O with events that nobody has taken.
#[test]
fn rings_of_asynchronous_io() {
    BOTH.into_iter().for_each(|who| survives(who, "aio", 0));
}

#[test]
fn many_rings_of_asynchronous_io() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("aio", Build::Pie), &["300"]);
    run.expect("ready");
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("0.ckpt")]);
    run.check();
    run.go();
}

/// Neither a checkpoint nor a restart counts as the program's.
#[test]
fn timers_of_cpu_time() {
    BOTH.into_iter().for_each(|who| survives(who, "ticks", 0));
}

/// Huge pages of hugetlbfs, where they are free, and else a sentence.
#[test]
fn huge_pages() {
    let pages = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(pages).unwrap();
    // The kernel makes fewer where memory is in pieces, and says nothing.
    let set = |number: &str| {
        (0..10).any(|again| {
            if again > 0 {
                let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
            }
            let _ = std::fs::write(pages, number);
            std::fs::read_to_string(pages).is_ok_and(|now| now.trim() == number)
        })
    };
    if before.trim() != "0" || !set("12") {
        return;
    }
    struct Without;
    impl Drop for Without {
        fn drop(&mut self) {
            let _ = std::fs::write("/proc/sys/vm/nr_hugepages", "0");
        }
    }
    let _without = Without;
    // Memory that a child has filled is in no page table of the process.
    let hows = [&["private"][..], &["shared"], &["shared", "child"], &["memfd", "child"]];
    let hows = hows.into_iter().chain([&["sysv"][..], &["sysv", "child"]]);
    let seen: Vec<_> = hows.map(|how| (how, huge_pages_of(how, &set))).collect();
    for (how, (kinds, said)) in seen {
        assert_eq!(kinds, ["2048", "2048", "4"], "{how:?} {said}");
        assert!(said.contains("8 MiB of huge pages of hugetlbfs are not free here"), "{said}");
    }
}

/// The pages that such memory has in three generations, for the last of which none are there, and what that says.
fn huge_pages_of(how: &[&str], set: &dyn Fn(&str) -> bool) -> (Vec<String>, String) {
    set("12");
    let bench = Bench::new(Who::Me);
    let mut run = bench.run(bench.subject("hugetlb", Build::Pie), how);
    let mut kinds = Vec::new();
    if run.line() != "ready" {
        return (kinds, "no huge pages".into());
    }
    for image in ["0.ckpt", "1.ckpt", "2.ckpt"] {
        Way::SaveStop.save(&bench, image, run);
        set(if image == "2.ckpt" { "0" } else { "12" });
        run = bench.run(bench.path(image), &[]);
        run.check();
        kinds.push(std::fs::read_to_string(bench.path("kind")).unwrap());
    }
    let said = run.stderr();
    run.go();
    (kinds, said)
}

/// The text of such a program has breakpoints that are the kernel's.
#[test]
fn a_program_that_is_probed_is_refused() {
    let events = std::path::Path::new("/sys/kernel/tracing/uprobe_events");
    let bench = Bench::new(Who::Me);
    let subject = bench.path("probed");
    std::fs::copy(bench.subject("ticks", Build::NoPie), &subject).unwrap();
    let table = bench.command("nm").arg(&subject).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let line = table.lines().find(|line| line.ends_with(" left")).unwrap();
    let at = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap() - 0x40_0000;
    let name = format!("ckpt_test_{}", std::process::id());
    let tell = |path: &std::path::Path, text: String| {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().append(true).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
    };
    let probe = format!("p:{name}/{name} {}:{at:#x}\n", subject.display());
    if tell(events, probe).is_err() {
        return;
    }
    let switch = events.with_file_name("events").join(&name).join("enable");
    let on = tell(&switch, "1\n".into());
    let mut run = bench.run(&subject, &[]);
    run.expect("ready");
    run.check();
    let refused = bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    run.go();
    tell(&switch, "0\n".into()).and_then(|()| tell(events, format!("-:{name}/{name}\n"))).unwrap();
    on.unwrap();
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("somebody probes it (uprobes)"), "{refused:?}");
}

#[test]
fn sealed_memory() {
    BOTH.into_iter().for_each(|who| keeps(who, "seal"));
}

/// What root has given up, or to whom it has become, is not back after a restart by root.
#[test]
fn rights_and_root_directories() {
    if nix::unistd::geteuid().is_root() {
        ["rights", "dropped", "root"].into_iter().for_each(|kind| keeps(Who::Me, kind));
        // Also where no parent is seen that has others.
        keeps_by(Who::Me, "groups", &["--ids", "keep"]);
    }
}

/// The same of its children, which differ from the restarter and not from their parent, or are others.
#[test]
fn rights_and_root_directories_of_children() {
    if nix::unistd::geteuid().is_root() {
        ["worker", "ambient", "jail"].into_iter().for_each(|kind| keeps(Who::Me, kind));
    }
}

/// Who becomes an ordinary user gets files that this user may open, or the very ones that it had.
#[test]
fn files_are_opened_for_whom_they_are() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    keeps(Who::Me, "opened");
    let bench = Bench::new(Who::Me);
    let mut run = bench.run(bench.subject("own", Build::Pie), &["opened"]);
    run.expect("ready");
    Way::SaveStop.save(&bench, "1.ckpt", run);
    std::fs::remove_file(bench.path("mine")).unwrap();
    std::os::unix::fs::symlink("secret", bench.path("mine")).unwrap();
    let again = bench.run(bench.path("1.ckpt"), &[]);
    again.complaint("mine: Permission denied");
}

/// Nor does a user hear of what only the restarter may look at.
#[test]
fn files_are_watched_for_whom_they_are() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for (subject, kind, watched) in [("rare", "watches", "tree/a/b"), ("edges", "marks", "marked")]
    {
        let bench = Bench::new(Who::Me);
        let mode = |path, mode| {
            let all = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, all).unwrap();
        };
        mode(bench.path("."), 0o777);
        let program = bench.subject(subject, Build::Pie);
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
        let program = program.to_string_lossy();
        let words = [&user[..], &[&*program, kind]].concat();
        let mut run = bench.run("/usr/bin/setpriv", &words);
        if run.line() == "none" {
            continue;
        }
        Way::SaveStop.save(&bench, "1.ckpt", run);
        std::fs::create_dir(bench.path("secret")).unwrap();
        mode(bench.path("secret"), 0o700);
        let watched = bench.path(watched);
        std::fs::remove_dir(&watched).unwrap();
        symlink(bench.path("secret"), &watched).unwrap();
        let again = bench.run(bench.path("1.ckpt"), &[]);
        again.complaint("descriptor 3: Permission denied");
    }
}

/// A main thread that has ended before the others has ended after a restart, too.
mod headless {
    use super::*;

    #[test]
    fn three_generations() {
        BOTH.into_iter().for_each(|who| keeps(who, "headless"));
    }

    #[test]
    fn launched() {
        survive(Who::Nobody, Way::LaunchContinue, "own", Build::Static, &["headless"]);
        survive(Who::Me, Way::Launch, "own", Build::Pie, &["headless"]);
    }

    /// It has ended with the same status, which is the program's where the others end by themselves (before Linux 5.18).
    #[test]
    fn status() {
        BOTH.into_iter().for_each(|who| keeps(who, "status"));
    }

    /// The restarted main thread ends once more, and children would be told.
    #[test]
    fn mourned() {
        for who in BOTH {
            let bench = Bench::new(who);
            let mut run = bench.run(bench.subject("own", Build::Pie), &["mourned"]);
            run.expect("ready");
            let saved = bench.order(&["save", &run.pid_text(), "-n", "x.ckpt"]);
            assert!(saved.stderr.contains("PR_SET_PDEATHSIG"), "{saved:?}");
            assert!(!bench.path("x.ckpt").exists());
            run.signal(nix::sys::signal::Signal::SIGKILL);
            run.end();
        }
    }

    /// With a parent, to which it is a child that lives.
    #[test]
    fn of_a_job() {
        const JOB: &str = "mkfifo p; exec 3<>p; \"$0\" headless <&3 & read x; kill -0 $!; echo $?; \
            read x; kill $!; wait $!; echo $?";
        for who in BOTH {
            let bench = Bench::new(who);
            let program = bench.subject("own", Build::Pie);
            let mut run = bench.run("/bin/bash", &["-c", JOB, &program.to_string_lossy()]);
            run.expect("ready");
            for image in ["1.ckpt", "2.ckpt"] {
                run = bench.reborn(image, run);
            }
            run.say("");
            run.expect("0");
            run.say("");
            run.expect("143");
            run.ends_well();
        }
    }
}

/// Who may not give it says so.
#[test]
fn rights_that_nobody_can_give_are_named() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let program = bench.subject("own", Build::Pie);
    for (kind, sentence) in
        [("rights", "the program was user 0 and group 65533"), ("root", "had the root directory")]
    {
        let mut run = bench.run(&program, &[kind]);
        run.expect("ready");
        let image = bench.name(&format!("{kind}.ckpt"));
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &image]);
        drop(run);
        let weak = ["--bounding-set=-setuid,-setgid,-sys_chroot", &image];
        let again = bench.run("/usr/bin/setpriv", &weak);
        again.complaint(sentence);
    }
}

/// Where a program may have no more memory ckpt finds no place in it: said with the way out, and no harm done.
#[test]
fn limits_of_memory_are_explained() {
    for who in BOTH {
        let bench = Bench::new(who);
        let program = bench.subject("own", Build::Static);
        let mut run = bench.run(&program, &["narrow"]);
        run.expect("ready");
        let said = bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        assert_eq!(said.code(), Some(125), "{said:?}");
        assert!(said.stderr.contains("its limits of memory (ulimit -v, -d, -l)"), "{said:?}");
        run.go();
        let mut run = bench.launch(&["-n", "y.ckpt"], &program, &["narrow"]);
        run.expect("ready");
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
        drop(run);
        let mut again = bench.run(bench.path("y.ckpt"), &[]);
        again.check();
        again.go();
    }
}

#[test]
fn what_is_lost_is_named() {
    for (kind, loss) in [
        ("overrun", "how often POSIX timer 0 has expired since its signal waits"),
        ("children", "the CPU time that it has used, or its children"),
    ] {
        let bench = Bench::new(Who::Nobody);
        let mut run = bench.run(bench.subject("own", Build::Pie), &[kind]);
        run.expect("ready");
        let said = bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        assert!(said.stderr.contains(loss), "{said:?}");
        run.go();
    }
}
