// SPDX-License-Identifier: LGPL-2.1-only
//! Families, and who makes whom in them.

use super::*;

fn member(pid: i32, parent: Option<usize>, group: i32, session: i32) -> Node {
    let [pid, group, session] = [pid, group, session].map(Pid::new);
    Node { pid, parent, group, session, reaps: false, rank: 0 }
}

#[test]
fn a_script_with_commands_makes_them_in_turn() {
    let all = [
        member(50, None, 0, 0),
        member(51, Some(0), 0, 0),
        member(52, Some(0), 0, 0),
        member(60, Some(1), 0, 0),
    ];
    let lives = plan(&all).unwrap();
    assert_eq!(lives[0].steps, [Step::Make(1), Step::Make(2)]);
    assert_eq!(lives[1].steps, [Step::Make(3)]);
    assert!(lives.iter().all(|life| life.join.is_none() && life.revive.is_none()));
}

#[test]
fn a_child_of_the_old_session_is_made_before_the_new_one_begins() {
    let all = [
        member(50, None, 0, 0),
        member(51, Some(0), 51, 51),
        member(52, Some(1), 0, 0),
        member(53, Some(1), 51, 51),
    ];
    let lives = plan(&all).unwrap();
    assert_eq!(lives[1].steps, [Step::Make(2), Step::LeadSession, Step::Make(3)]);
}

#[test]
fn jobs_of_a_shell_lead_and_join_their_groups() {
    let all = [
        member(50, None, 0, 0),
        member(51, Some(0), 51, 0),
        member(52, Some(0), 51, 0),
        member(53, Some(1), 0, 0),
        member(54, Some(1), 51, 0),
    ];
    let lives = plan(&all).unwrap();
    assert_eq!(lives[1].steps, [Step::Make(3), Step::LeadGroup, Step::Make(4)]);
    assert_eq!(lives[2].join, Some(Pid::new(51)));
    assert_eq!(lives[4].join, None);
}

#[test]
fn a_group_whose_leader_is_gone_begins_again_once() {
    let all = [member(50, None, 0, 0), member(52, Some(0), 51, 0), member(53, Some(0), 51, 0)];
    let lives = plan(&all).unwrap();
    assert_eq!((lives[1].revive, lives[1].join), (Some(Pid::new(51)), None));
    assert_eq!((lives[2].revive, lives[2].join), (None, Some(Pid::new(51))));
}

#[test]
fn a_daemon_is_an_orphan_of_a_session_without_a_leader() {
    let all = [member(50, None, 0, 0), member(52, None, 51, 51), member(53, Some(1), 51, 51)];
    let lives = plan(&all).unwrap();
    assert_eq!(lives[0].steps, [Step::MakeSession(Pid::new(51), vec![1])]);
    assert_eq!(lives[1].steps, [Step::Make(2)]);
    assert!(lives.iter().all(|life| life.join.is_none() && life.revive.is_none()));
}

#[test]
fn an_orphan_comes_from_its_session_and_below_its_reaper() {
    let mut all = [
        member(50, None, 0, 0),
        member(51, Some(0), 51, 51),
        member(52, None, 51, 51),
        member(53, Some(1), 0, 0),
    ];
    let lives = plan(&all).unwrap();
    assert_eq!(lives[1].steps, [Step::Make(3), Step::LeadSession, Step::MakeOrphan(2)]);
    all[0].reaps = true;
    all[2].parent = Some(0);
    let lives = plan(&all).unwrap();
    assert_eq!(lives[0].steps, [Step::Reap, Step::Make(1)]);
    assert_eq!(lives[1].steps, [Step::Make(3), Step::LeadSession, Step::MakeOrphan(2)]);
}

#[test]
fn who_reaps_has_made_orphans_before() {
    let mut all = [
        member(50, None, 0, 0),
        member(51, Some(0), 51, 51),
        member(52, None, 51, 51),
        member(53, Some(1), 51, 51),
        member(54, None, 51, 51),
    ];
    all[1].reaps = true;
    let orphans = [Step::MakeOrphan(2), Step::MakeOrphan(4)];
    let [one, other] = orphans;
    let wanted = [Step::LeadSession, one, other, Step::Reap, Step::Make(3)];
    assert_eq!(plan(&all).unwrap()[1].steps, wanted);
    // Below a child of it there is nobody who could make it.
    all[2].session = Pid::new(0);
    assert_eq!(plan(&all).unwrap()[0].steps, [Step::Make(1), Step::MakeOrphan(2)]);
}

#[test]
fn children_come_in_the_order_in_which_their_parent_had_them() {
    let mut all = [member(50, None, 0, 0), member(51, Some(0), 0, 0), member(52, Some(0), 0, 0)];
    all[1].rank = 1;
    assert_eq!(plan(&all).unwrap()[0].steps, [Step::Make(2), Step::Make(1)]);
}

#[test]
fn who_leads_a_session_is_born_where_its_children_were() {
    // Each of them has begun a session when its child was there.
    let all = [
        member(50, None, 0, 0),
        member(51, Some(0), 51, 51),
        member(52, Some(1), 52, 52),
        member(53, Some(2), 0, 0),
    ];
    let lives = plan(&all).unwrap();
    for (index, child) in [(0, None), (1, Some(2)), (2, Some(3))] {
        let steps = &lives[index].steps;
        assert!(child.is_none_or(|child| steps[..] == [Step::Make(child), Step::LeadSession]));
    }
    // The same in a session whose leader is gone.
    let all = [
        member(50, None, 0, 0),
        member(52, None, 52, 52),
        member(53, Some(1), 51, 51),
        member(54, None, 51, 51),
    ];
    let lives = plan(&all).unwrap();
    assert_eq!(lives[0].steps, [Step::MakeSession(Pid::new(51), vec![1, 3])]);
    assert_eq!(lives[1].steps, [Step::Make(2), Step::LeadSession]);
    // Children of clone(2) with CLONE_PARENT, of one that lives and of one that is gone.
    let all = [
        member(50, None, 0, 0),
        member(51, Some(0), 51, 51),
        member(52, Some(0), 51, 51),
        member(53, Some(0), 40, 40),
    ];
    let lives = plan(&all).unwrap();
    let made = Step::MakeSession(Pid::new(40), vec![3]);
    assert_eq!(lives[0].steps, [Step::Make(1), made]);
    assert_eq!(lives[1].steps, [Step::LeadSession, Step::MakeSibling(2)]);
    // Who reaps has got its child from elsewhere.
    let mut all =
        [member(50, None, 0, 0), member(51, Some(0), 51, 51), member(53, Some(1), 52, 52)];
    all[1].reaps = true;
    let lives = plan(&all).unwrap();
    let made = Step::MakeSession(Pid::new(52), vec![2]);
    assert_eq!(lives[1].steps, [Step::Reap, Step::LeadSession, made]);
}

#[test]
fn what_the_kernel_does_not_allow_is_named() {
    // In one session whose leader is gone, below two parents.
    let all = [
        member(50, None, 0, 0),
        member(51, Some(0), 0, 0),
        member(52, Some(1), 77, 77),
        member(53, Some(0), 77, 77),
    ];
    assert_eq!(plan(&all), Err(3));
    // A leader of a session in another group.
    let all = [member(50, None, 0, 0), member(51, Some(0), 50, 51)];
    assert_eq!(plan(&all), Err(1));
}
