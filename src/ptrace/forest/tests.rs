// SPDX-License-Identifier: LGPL-2.1-only
use super::*;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// No orphan is its descendant.
const NOBODY: Evidence<'static> = Evidence { is_heir: &|_| false, begun: None };

/// A script in a group of its own, all of which ends with it.
struct Job(Child);

impl Job {
    fn start(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::of_word(self.0.id())
    }

    fn process(&self) -> Process {
        Process::open(self.pid()).unwrap()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, killpg};
        let _ = killpg(self.pid().nix(), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

impl<'a> From<&'a Without> for Wanted<'a> {
    fn from(without: &'a Without) -> Self {
        Wanted { without, heirs: HashSet::new(), begun: None, seen: Seen::default() }
    }
}

/// Nothing of the job moves or appears while it is frozen.
fn stands_still(job: &Job, forest: &Forest) {
    let without = Without::default();
    let wanted = Wanted::from(&without);
    let frozen: HashSet<Pid> = forest.processes.iter().map(|frozen| frozen.pid).collect();
    for kin in list(job.pid(), &HashSet::new(), &wanted).unwrap().members {
        assert!(kin.dead || frozen.contains(&kin.pid), "{kin:?}");
    }
}

#[test]
fn a_child_is_of_a_later_generation_than_its_parent() {
    let pid = Pid::new;
    let kin = |own: i32, parent: i32| Kin {
        pid: pid(own),
        parent: pid(parent),
        group: pid(1),
        session: pid(1),
        start: 0,
        dead: false,
        ours: false,
    };
    let all = [kin(2, 1), kin(3, 2), kin(4, 2), kin(9, 1), kin(5, 4), kin(6, 3), kin(7, 6)];
    let cut = tree::generations(&all);
    let pids: Vec<Vec<_>> =
        cut.iter().map(|some| some.iter().map(|kin| kin.pid.get()).collect()).collect();
    assert_eq!(pids, [vec![2], vec![3, 4, 9], vec![5, 6], vec![7]]);
    assert_eq!(cut.concat(), all);
}

#[test]
fn a_storm_of_forks_stands_still() {
    let storm = "echo x; while :; do true | /bin/true; (sh -c '/bin/true & wait'; :) & wait; done";
    let job = Job::start(storm);
    for _ in 0..100 {
        let forest = Forest::freeze(&job.process(), &Without::default(), &NOBODY).unwrap();
        stands_still(&job, &forest);
        std::thread::sleep(Duration::from_micros(300));
        stands_still(&job, &forest);
        forest.thaw();
    }
}

#[test]
fn a_stranger_with_the_id_of_somebody_who_has_ended_is_none_of_them() {
    let (job, stranger) = (Job::start("echo x; sleep 100"), Job::start("echo x; sleep 100"));
    let without = Without::default();
    let wanted = Wanted::from(&without);
    let mut before = list(job.pid(), &HashSet::new(), &wanted).unwrap();
    let other = tree::kin(stranger.pid()).unwrap();
    before.members.push(Kin { start: other.start - 1, parent: job.pid(), ..other });
    let mut left = HashMap::new();
    let tried = Forest::attempt(&job.process(), &wanted, before, PATIENCE, &mut left);
    assert!(matches!(tried, Ok(Attempt::Anew)));
    left.clear();
    let forest = Forest::freeze(&job.process(), &Without::default(), &NOBODY).unwrap();
    assert!(forest.processes.iter().all(|frozen| frozen.pid != stranger.pid()));
}

#[test]
fn many_processes_stand_still_together() {
    let job = Job::start("i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done; echo x; wait");
    let forest = Forest::freeze(&job.process(), &Without::default(), &NOBODY).unwrap();
    assert_eq!(forest.processes.len(), 61);
    assert_eq!(forest.processes[0].pid, job.pid());
    stands_still(&job, &forest);
    forest.thaw();
}
