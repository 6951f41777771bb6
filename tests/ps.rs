// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt ps` and `ckpt save --all`, in PID namespaces of their own: what others run on this machine is none of ours.

mod harness;

use harness::{Bench, Build, Ended, Who};

/// Functions of the scripts. A program is there when `ckpt ps` shows it, or its own word.
const FUNCTIONS: &str = "
set -u
await() { n=0; until \"$@\" > /dev/null 2>&1; do n=$((n + 1)); [ $n -lt 3000 ] || { echo \"in vain: $*\"; exit 99; }; sleep 0.02; done; }
shown() { ./ckpt ps | grep -q -- \"$1\"; }
column() { ./ckpt ps --json | tr -d '\\n' | sed 's/},/}\\n/g' | grep -- \"\\\"pid\\\": $1,\" | grep -o \"\\\"$2\\\": [^,]*\" | cut -d' ' -f2- | tr -d '\"} ]'; }
is() { [ \"$(column $1 $2)\" = \"$3\" ]; }
";

/// Runs a script as the first process of a PID namespace.
fn inside(bench: &Bench, script: &str) -> Ended {
    let user = ["-U", "-r"];
    let options = ["-p", "-f", "--mount-proc", "bash", "-c"];
    let is_root = !bench.drops_privileges() && nix::unistd::geteuid().is_root();
    let user = if is_root { &[][..] } else { &user[..] };
    let script = format!("{FUNCTIONS}{script}");
    let ended = bench.run("unshare", &[user, &options[..], &[&script]].concat()).end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    ended
}

#[test]
fn all_kinds_are_listed_with_their_facts() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let ended = inside(
            &bench,
            r#"
./ckpt ps | grep -qx 'nothing runs under ckpt here' || exit 1
./ckpt -z 100 -n periodic.ckpt sleep 1000 & A=$!
./ckpt -a 0 -n %p.%n.ckpt sleep 1001 & B=$!
sleep 1002 & C=$!
sleep 1003 & D=$!
./ckpt -n tree.ckpt bash -c 'sleep 1004 & exec bash -c "sleep 1005; true"' & E=$!
await shown periodic.ckpt; await shown $B.1.ckpt; await shown tree.ckpt
./ckpt -p $C -n attached.ckpt -z 10m || exit 2
await is $A result saved
[ $(column $A period) = 100 ] || exit 3
[ $(column $A bytes) -gt 100000 ] || exit 4
[ $(column $A pause_us) -gt 0 ] || exit 5
[ $(column $A last) -le $(column $A next) ] || exit 6
[ $(column $B last)$(column $B next) = nullnull ] || exit 7
[ $(column $C next) -gt $(date +%s) ] || exit 8
# A monitor that is gone takes no more checkpoints.
kill -9 $(pgrep -f "__monitor $C\$"); await is $C next null
# Saved once from outside, but for no more.
./ckpt save $D -n once.ckpt || exit 9
[ "$(./ckpt ps --json | grep -c '"pid"')" = 4 ] || { ./ckpt ps; exit 10; }
# After an execve(2) the facts are there still.
./ckpt -n exec.ckpt sh -c 'read x < go; exec sleep 1006' & F=$!
mkfifo go; await shown exec.ckpt; ./ckpt save $F || exit 11
[ $(column $F result) = saved ] || exit 12
before=$(column $F last); echo > go; await is $F program sleep; await is $F result saved
[ $(column $F last) = $before ] || exit 13
# And after a restart; a tree is told by who stands for it.
./ckpt save --stop $E || exit 14; ./tree.ckpt & E=$!; await is $E result saved
[ "$(./ckpt ps | grep -c tree.ckpt)" = 1 ] || exit 15
./ckpt save $E || exit 16
# One that fails says why, and keeps the facts of the last.
mkdir gone; cd gone; ../ckpt sleep 1007 & G=$!
cd ..; await shown gone/sleep.ckpt; ./ckpt save $G; rm -r gone; ./ckpt save $G && exit 17
./ckpt ps | grep "$G.*failed.*No such file" || exit 18
[ $(column $G bytes) -gt 100000 ] || exit 19
./ckpt ps
"#,
        );
        assert!(ended.stdout.iter().any(|line| line.contains("PROGRAM")), "{ended:?}");
    }
}

#[test]
fn all_are_saved_once_and_the_status_tells() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        inside(
            &bench,
            r#"
for i in 1 2 3; do ./ckpt -n $i.ckpt sleep 100$i & eval P$i=$!; done
./ckpt -n tree.ckpt bash -c './ckpt -n inner.ckpt sleep 1004 & sleep 1005; true' &
mkdir gone; cd gone; ../ckpt -n gone.ckpt sleep 1006 & G=$!
cd ..
for i in 1.ckpt 2.ckpt 3.ckpt tree.ckpt inner.ckpt gone.ckpt; do await shown $i; done
./ckpt save --all > said 2>&1 || { cat said; exit 1; }
grep -qx 'all 5 saved' said || { cat said; exit 2; }
[ ! -e inner.ckpt ] || exit 3
rm -r gone
./ckpt save --all -n x.ckpt 2> why && exit 4
grep -q '%p' why || exit 5
./ckpt save --all --stop --jobs 2 > said 2>&1; [ $? = 1 ] || { cat said; exit 6; }
grep -qx '1 of 5 NOT saved' said || { cat said; exit 7; }
grep -q "$G sleep: .*No such file" said || { cat said; exit 8; }
[ "$(./ckpt ps --json | grep -c '"pid"')" = 1 ] || exit 9
# Who has failed runs on, unharmed.
kill -0 $G || exit 10
for i in 1 2 3 tree; do ./ckpt verify $i.ckpt || exit 11; done
# Two of one name: the second must not take the place of the first.
./ckpt -n one.ckpt sleep 1007 & ./ckpt -n one.ckpt sleep 1008 & kill $G
until [ "$(./ckpt ps | grep -c one.ckpt)" = 2 ]; do sleep 0.02; done
./ckpt save --all > said 2>&1 && exit 12
grep -q 'has the name of that of process' said || { cat said; exit 13; }
./ckpt save --all --stop -n "$PWD/%p.ckpt" > said 2>&1 || { cat said; exit 14; }
"#,
        );
    }
}

#[test]
fn root_saves_programs_of_others_as_they_would() {
    let bench = Bench::new(Who::Me);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let theirs = bench.subdirectory("theirs");
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).expect("chown");
    inside(
        &bench,
        r#"
chmod 755 .
cd theirs
setpriv --reuid 65534 --regid 65534 --clear-groups ../ckpt sleep 1000 & A=$!
cd ..
./ckpt -n mine.ckpt sleep 1001 &
await shown theirs/sleep.ckpt; await shown mine.ckpt
[ $(column $A user) = 65534 ] || exit 1
# An ordinary user sees his own.
[ "$(setpriv --reuid 65534 --regid 65534 --clear-groups ./ckpt ps | grep -c sleep)" = 1 ] || exit 2
./ckpt save --all --stop || exit 3
[ "$(stat -c %u theirs/sleep.ckpt)" = 65534 ] || exit 4
[ "$(stat -c %u mine.ckpt)" = 0 ] || exit 5
"#,
    );
}

#[test]
fn rubbish_in_a_program_is_rubbish_in_a_line() {
    let bench = Bench::new(Who::Me);
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("observer", Build::Static), &[]);
    run.expect("ready");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", run.pid())).expect("maps");
    let is_base =
        |at: &u64| (0x4100_0000_0000..0x4f00_0000_0000).contains(at) && at.is_multiple_of(1 << 36);
    let mut starts =
        maps.lines().filter_map(|line| u64::from_str_radix(line.split('-').next()?, 16).ok());
    let base = starts.find(is_base).expect("a region");
    let mem = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", run.pid()));
    let mem = mem.expect("its memory");
    for round in 0..3u8 {
        // All but the magic number, then the configuration alone, then names that do something to a terminal.
        let (at, bytes) = match round {
            0 => (16, vec![0xff; 0x3f00]),
            1 => (600, vec![0x1b; 0x3000]),
            _ => (8, vec![b'A'; 0x3ff0]),
        };
        std::os::unix::fs::FileExt::write_all_at(&mem, &bytes, base + at).expect("written");
        for words in [&["ps"][..], &["ps", "--json"]] {
            let said = bench.must(words);
            let harmful = |line: &String| line.chars().any(char::is_control);
            assert!(!said.stdout.iter().any(harmful), "{said:?}");
        }
    }
    run.signal(nix::sys::signal::Signal::SIGKILL);
    run.end();
}
