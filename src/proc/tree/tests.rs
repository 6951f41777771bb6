// SPDX-License-Identifier: LGPL-2.1-only
use super::*;

fn kin(pid: i32, parent: i32, group: i32, session: i32) -> Kin {
    let [pid, parent, group, session] = [pid, parent, group, session].map(Pid::new);
    Kin { pid, parent, group, session, start: pid.word().into(), dead: false, ours: false }
}

fn numbers(ids: Vec<Pid>) -> Vec<i32> {
    ids.into_iter().map(Pid::get).collect()
}

fn members_of(begun: Option<[i32; 2]>, all: &[Kin]) -> Vec<i32> {
    let begun = begun.map(|all| all.map(Pid::new));
    numbers(below(Pid::new(50), begun, &HashSet::new(), all))
}

fn members(all: &[Kin]) -> Vec<i32> {
    members_of(None, all)
}

fn unsure(members: &[i32], all: &[Kin]) -> Vec<i32> {
    let members: Vec<_> = members.iter().copied().map(Pid::new).collect();
    numbers(doubtful(Pid::new(50), &members, all))
}

#[test]
fn who_has_come_or_gone_since_is_seen() {
    let start = || std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let (mut stays, mut goes) = (start(), start());
    let pid = |child: &std::process::Child| Pid::of_word(child.id());
    let mut seen = everybody().unwrap();
    let was = seen.iter_mut().find(|kin| kin.pid == pid(&stays)).unwrap();
    was.group = Pid::new(1);
    goes.kill().unwrap();
    goes.wait().unwrap();
    let mut comes = start();
    let group = |all: &[Kin], of: Pid| all.iter().find(|kin| kin.pid == of).map(|kin| kin.group);
    let (as_before, anew) =
        [true, false].map(|stays| everybody_since(&seen, |_| stays).unwrap()).into();
    let real = super::kin(Pid::own()).unwrap().group;
    for (all, old) in [(as_before, Pid::new(1)), (anew, real)] {
        assert_eq!(group(&all, pid(&stays)), Some(old));
        assert_eq!((group(&all, pid(&goes)), group(&all, pid(&comes))), (None, Some(real)));
        assert!(all.is_sorted_by_key(|kin| kin.pid));
    }
    for child in [&mut stays, &mut comes] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_snapshot_whose_original_has_ended_is_ours() {
    let of = |comm: &str| {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (head, rest) = text.split_once('(').unwrap();
        let (_, rest) = rest.rsplit_once(')').unwrap();
        stat::parse(format!("{head}({comm}){rest}").as_bytes()).unwrap()
    };
    let ours = |comm: &str| of_stat(Pid::own(), &of(comm)).ours;
    assert!(ours(SNAPSHOT) && !ours("ckpt-other"));
}

#[test]
fn descendants_come_after_their_parents() {
    let shell = [kin(1, 0, 1, 1), kin(40, 1, 40, 40)];
    let tree = [kin(50, 40, 50, 40), kin(60, 55, 50, 40), kin(55, 50, 50, 40), kin(70, 40, 70, 40)];
    assert_eq!(members(&[&shell[..], &tree].concat()), [50, 55, 60]);
}

#[test]
fn a_restarter_of_the_same_tick_is_no_orphan() {
    let shell = [kin(1, 0, 1, 1), kin(40, 1, 40, 40)];
    let restarted = [Kin { start: 50, ..kin(45, 40, 45, 40) }, kin(50, 45, 45, 40)];
    let all = [&shell[..], &restarted].concat();
    assert_eq!(orphans(Pid::new(50), &all), []);
    assert_eq!(members(&all), [50]);
}

#[test]
fn orphans_are_found_by_what_began_in_the_tree() {
    let all = [
        kin(1, 0, 1, 1),
        kin(40, 1, 40, 40),
        kin(45, 1, 40, 40),
        kin(50, 40, 50, 40),
        // In the same pipeline, the shell's child.
        kin(51, 40, 50, 40),
        // The leader of its group lives in the tree; so does that of the next.
        kin(61, 50, 61, 40),
        kin(62, 1, 61, 40),
        // Its session's leader is gone, and a member of the tree is in it.
        kin(71, 50, 70, 70),
        kin(72, 1, 70, 70),
        // In the group that the root leads.
        kin(80, 1, 50, 40),
        // Older than the root, or of another job.
        kin(30, 1, 61, 40),
        kin(90, 1, 90, 90),
    ];
    let mut found = members(&all);
    found.sort_unstable();
    assert_eq!(found, [50, 61, 62, 71, 72, 80]);
    assert_eq!(unsure(&found, &all), []);
}

#[test]
fn orphans_of_a_group_that_others_lead_are_doubtful() {
    let all = [
        kin(1, 0, 1, 1),
        kin(40, 1, 40, 40),
        kin(41, 40, 40, 40),
        kin(30, 1, 40, 40),
        kin(50, 40, 40, 40),
        kin(60, 1, 40, 40),
        kin(70, 1, 70, 40),
    ];
    assert_eq!(members(&all), [50]);
    assert_eq!(unsure(&[50], &all), [60]);
}

#[test]
fn nobody_above_the_root_is_doubtful() {
    // As of `timeout ckpt program` in the background of a script: all begin in one tick.
    let of = |pid, parent| Kin { start: 7, ..kin(pid, parent, 40, 40) };
    let all = [kin(1, 0, 1, 1), of(40, 1), of(41, 40), of(42, 41), of(50, 42)];
    assert_eq!(unsure(&[50], &all), []);
}

#[test]
fn what_a_script_starts_beside_the_root_is_not_doubtful() {
    // As of `timeout ckpt program & other &`.
    let all = [
        kin(1, 0, 1, 1),
        kin(40, 1, 40, 40),
        kin(42, 40, 40, 40),
        kin(50, 42, 40, 40),
        kin(60, 40, 40, 40),
        kin(61, 1, 40, 40),
    ];
    assert_eq!(unsure(&[50], &all), [61]);
}

#[test]
fn an_orphan_needs_no_sibling() {
    let all = [kin(1, 0, 1, 1), kin(40, 1, 40, 40), kin(50, 40, 50, 40), kin(60, 1, 50, 40)];
    assert_eq!(members(&all), [50, 60]);
}

#[test]
fn nobody_is_below_who_is_gone() {
    assert_eq!(members(&[kin(1, 0, 1, 1)]), Vec::<i32>::new());
}

#[test]
fn who_is_in_a_session_that_the_root_has_left_is_no_orphan_of_it() {
    for left in [40, 0] {
        let init = kin(1, 0, 1, 1);
        let all = [init, kin(50, 1, 50, 50), kin(51, 50, left, left), kin(52, 1, left, left)];
        for begun in [None, Some([left, left]), Some([50, 50]), Some([left, 50])] {
            assert_eq!(members_of(begun, &all), [50, 51], "{left}: {begun:?}");
        }
        assert_eq!(unsure(&[50, 51], &all), [52; 1][usize::from(left == 0)..]);
    }
    // A daemon's, where it is known that the root was never in it.
    let all = [kin(1, 0, 1, 1), kin(50, 1, 50, 50), kin(51, 50, 60, 60), kin(70, 1, 60, 60)];
    assert_eq!(members_of(Some([40, 40]), &all), [50, 51, 70]);
}

#[test]
fn who_is_in_a_group_that_the_root_has_left_is_no_orphan_of_it() {
    let all = [kin(1, 0, 1, 1), kin(50, 1, 50, 40), kin(51, 50, 45, 40), kin(52, 1, 45, 40)];
    assert_eq!(members_of(Some([40, 45]), &all), [50, 51]);
    assert_eq!(unsure(&[50, 51], &all), [52]);
    assert_eq!(members_of(Some([40, 50]), &all), [50, 51, 52]);
    // One that is older is in it, or one whose parent is no process of the tree.
    for other in [kin(44, 1, 45, 40), kin(53, 43, 45, 40)] {
        let all = [&all[..], &[kin(43, 1, 43, 43), other]].concat();
        assert_eq!(members_of(None, &all), [50, 51]);
    }
}

#[test]
fn a_group_of_the_session_that_the_root_leads_is_its_own() {
    let all = [kin(1, 0, 1, 1), kin(50, 1, 50, 50), kin(51, 50, 45, 50), kin(52, 1, 45, 50)];
    assert_eq!(members(&all), [50, 51, 52]);
}
