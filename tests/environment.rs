// SPDX-License-Identifier: LGPL-2.1-only
//! Where programs are saved and restarted: chroots, kernels that tell less, file systems and limits that leave no room.

mod harness;

use harness::faults::stands_at;
use harness::{Bench, Build, Run, Who, until};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

/// A job in a chroot whose root directory is that of no mount, restarted while its ids are taken by an earlier one.
const CHROOT: &str = r#"
    mount --make-rprivate /
    mkdir -p root/proc root/dev && mount --rbind /proc root/proc
    : > root/dev/null && mount --bind /dev/null root/dev/null
    cp "$(command -v busybox)" root/busybox && cp ckpt root/ckpt && chmod 777 root
    cat > root/job <<'END'
        (until [ -e gate ]; do /busybox sleep 0.05; done; exit 7) & child=$!
        : > ready; wait $child; echo "child $?"
END
    chroot root /busybox sh -c '
        /ckpt -n a.ckpt /busybox sh job & first=$!
        until [ -e ready ]; do /busybox sleep 0.05; done
        /ckpt save $first -n a.ckpt; ./a.ckpt & again=$!
        /ckpt save --stop $again -n b.ckpt; wait $again; ./b.ckpt & again=$!
        /ckpt save --stop $again -n c.ckpt; wait $again; ./c.ckpt & again=$!
        : > third; wait' & all=$!
    until [ -e root/third ]; do sleep 0.05; done
    chmod 755 root/a.ckpt; chroot --userspec 65534:65534 root /a.ckpt --ids keep; echo "kept $?"
    : > root/gate; wait $all
"#;

#[test]
fn a_job_in_a_chroot_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let ended = bench.run("unshare", &["-m", "sh", "-c", CHROOT]).end();
    let children = ended.stdout.iter().filter(|line| *line == "child 7").count();
    assert_eq!(children, 2, "{ended:?}");
    assert!(ended.stdout.iter().any(|line| line == "kept 125"), "{ended:?}");
    assert!(ended.stderr.contains("forbidden here, as in a chroot"), "{ended:?}");
    for wrong in ["new process ids", "descriptors", "a copy of its own"] {
        assert!(!ended.stderr.contains(wrong), "{wrong}: {ended:?}");
    }
}

/// Saved by and as a user who may have hardly more processes; whoever can make none harms nobody in its process group.
const FEW: &str = r#"
    for most in 3 4 5 6 7 8 9 10 11 12; do
        prlimit --nproc=$most ./ckpt -n a.ckpt sleep 1000 & job=$!
        while [ "$(cat /proc/$job/comm 2> /dev/null)" = ckpt ]; do :; done
        prlimit --nproc=$most ./ckpt save $job -n $most.ckpt
        echo "$most $?"
        kill $job 2> /dev/null; wait $job
    done
    echo end
"#;

#[test]
fn a_job_with_few_processes_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // Nobody else's count.
    const USER: u32 = 64_321;
    let bench = Bench::new(Who::Me);
    std::fs::set_permissions(bench.path("."), std::fs::Permissions::from_mode(0o777))
        .expect("chmod");
    let mut command = bench.command("sh");
    command.args(["-c", FEW]).uid(USER).gid(USER);
    let ended = Run::start(command).end();
    assert_eq!(ended.stdout.last().map(String::as_str), Some("end"), "{ended:?}");
    assert!(ended.stdout.iter().any(|line| line.ends_with(" 0")), "{ended:?}");
}

/// Where memory runs out, be it only that of a control group, the program is not what the kernel ends.
#[test]
fn a_dumper_and_its_snapshot_end_before_the_program() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let run =
            bench.launch(&["-n", "x.ckpt"], bench.subject("compute", Build::Static), &["1000000"]);
        bench.must(&["save", &run.pid_text()]);
        let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok();
        let before = score(&run.pid_text());
        let save = stands_at(&bench, "thawed", &["save", &run.pid_text()]);
        let is_ours = |pid: &str| {
            let file = |name| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let here = bench.name("compute.static");
            file("comm") == b"ckpt-snapshot\n" && file("cmdline").starts_with(here.as_bytes())
        };
        let snapshot = until("a snapshot", || {
            let mut all = std::fs::read_dir("/proc").ok()?.flatten();
            all.find_map(|it| it.file_name().into_string().ok().filter(|pid| is_ours(pid)))
        });
        until("the mark of the snapshot", || (score(&snapshot)?.trim() == "1000").then_some(()));
        assert_eq!(score(&save.pid_text()).as_deref(), Some("1000\n"));
        assert_eq!(score(&run.pid_text()), before);
        save.signal(nix::sys::signal::Signal::SIGCONT);
        save.ends_well();
        run.signal(nix::sys::signal::Signal::SIGKILL);
        run.end();
    }
}

/// What cannot be said, because the disk is full that it would be written to, changes nothing else.
#[test]
fn a_full_disk_for_what_is_said_changes_no_status() {
    const STEPS: &str = "\
        ./ckpt -n a.ckpt sh -c '> ready; until [ -e gate ]; do sleep 0.05; done; exit 3' > out & job=$!\n\
        until [ -e ready ]; do sleep 0.05; done\n\
        ./ckpt save $job > /dev/full; echo $?\n\
        ./ckpt save -n no/where.ckpt $job 2> /dev/full; echo $?\n\
        ./ckpt save --stop $job 2>&1 | true; wait $job; echo $?\n\
        echo more >> out; > gate; ./a.ckpt 2> /dev/full; echo $?";
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let ended = bench.run("bash", &["-c", STEPS]).ends_well();
        assert_eq!(ended.stdout, ["0", "125", "0", "3"], "{ended:?}");
    }
}

/// The restarter opens for all; where it may not have so many files, one sentence says so.
#[test]
fn too_many_files_of_many_processes_are_one_sentence() {
    const JOB: &str = "import os, time\n\
        if [os.fork() for _ in range(2)][1]: print('ready', flush=True)\n\
        all = [open(f'f{os.getpid()}.{n}', 'w') for n in range(60)]\n\
        open(f'there{os.getpid()}', 'w').close()\n\
        time.sleep(1000)";
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], "/usr/bin/python3", &["-c", JOB]);
    run.expect("ready");
    until("all files", || (bench.names("there").len() == 4).then_some(()));
    bench.must(&["save", "--stop", &run.pid_text()]);
    run.end();
    let again = bench.run("prlimit", &["--nofile=200:200", "./x.ckpt"]).end();
    assert_eq!(again.code(), Some(125), "{again:?}");
    let said = "4 processes have 240 open files, which are opened by one of them for all, and a process may have only 200 here; raise the limit on open files (ulimit -Hn)";
    assert!(again.stderr.contains(said), "{again:?}");
    assert!(!again.stderr.contains("bring these back"), "{again:?}");
    assert_eq!(
        again.stderr.lines().filter(|line| line.contains("cannot restart")).count(),
        1,
        "{again:?}"
    );
}

/// Pairs of sockets of every kind, in a process and to its child, one with an end that is shut, one whose other end is gone.
const PAIRS: &str = r#"
import os, socket, time
def pair(kind): return socket.socketpair(socket.AF_UNIX, kind)
kinds = socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM
own = [pair(kind) for kind in kinds]
for a, b in own: a.send(b"to b"); b.send(b"to a")
down, up = pair(socket.SOCK_STREAM)
shut, ended = pair(socket.SOCK_STREAM)
shut.send(b"last"); shut.shutdown(socket.SHUT_WR)
left, gone = pair(socket.SOCK_STREAM)
gone.send(b"left"); gone.close()
if not os.fork():
    down.close()
    up.send(up.recv(9) + b" back")
    os._exit(0)
up.close()
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
print(*[b.recv(9).decode() + a.recv(9).decode() for a, b in own])
down.send(b"there"); print(down.recv(20).decode(), os.wait()[1])
ended.send(b"other way")
print(ended.recv(9), ended.recv(9), shut.recv(9), left.recv(9), left.recv(9), flush=True)
"#;

/// Where the kernel tells nothing of unix sockets (UNIX_DIAG), as where a filter refuses the question.
#[test]
fn pairs_of_sockets_go_on_where_the_kernel_does_not_tell() {
    let refused = [nix::libc::EPERM, nix::libc::SYS_socket as i32].map(|word| word.to_string());
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.py", PAIRS);
        let filter = bench.subject("refuse", Build::Static);
        let mut run = bench.launch(&["-n", "x.ckpt"], "/usr/bin/python3", &["job.py"]);
        run.expect("ready");
        for _ in 0..3 {
            let save = ["./ckpt", "save", "--stop", &run.pid_text(), "-n", "x.ckpt"];
            let words = [&[&*refused[0], &*refused[1]], &save[..]].concat();
            let saved = bench.run(&filter, &words).ends_well();
            assert!(!saved.stderr.contains("not saved: descriptors"), "{saved:?}");
            run.ends_well();
            run = bench.run(bench.path("x.ckpt"), &[]);
        }
        bench.file("gate", "");
        run.expect("to bto a to bto a to bto a");
        run.expect("there back 0");
        run.expect("b'last' b'' b'other way' b'left' b''");
        run.ends_well();
    }
}

/// The id of the copy that is read is in the program's memory, which others of its user may write to.
#[test]
fn a_forged_id_of_the_snapshot_harms_nobody() {
    use ckpt_abi::region::{MAGIC, STACK_LEN, STACKS};
    use std::os::unix::fs::FileExt;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("own", Build::Static), &["plain"]);
        run.expect("ready");
        bench.must(&["save", &run.pid_text(), "-n", "x.ckpt"]);
        let victim = bench.run("sleep", &["1000"]);
        let score =
            || std::fs::read_to_string(format!("/proc/{}/oom_score_adj", victim.pid())).ok();
        let before = score();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", run.pid())).unwrap();
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true);
        let memory = options.open(format!("/proc/{}/mem", run.pid())).unwrap();
        let starts = maps.lines().filter_map(|line| line.split_once('-'));
        let mut starts = starts.filter_map(|(start, _)| u64::from_str_radix(start, 16).ok());
        let mut magic = [0; MAGIC.len()];
        let region = starts
            .find(|at| memory.read_exact_at(&mut magic, *at).is_ok() && magic == MAGIC)
            .unwrap();
        // Others than these would harm whoever runs the test, should it fail.
        for forged in [victim.pid(), 0] {
            let args = ["save", &run.pid_text(), "-n", "x.ckpt"];
            let save = stands_at(&bench, "cloned", &args);
            memory.write_all_at(&forged.to_ne_bytes(), region + STACKS + 2 * STACK_LEN).unwrap();
            save.signal(nix::sys::signal::Signal::SIGCONT);
            save.ends_well();
            assert_eq!(score(), before);
        }
        run = bench.reborn("x.ckpt", run);
        run.go();
        victim.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(victim.end().signal(), Some(15));
    }
}
