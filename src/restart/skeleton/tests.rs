// SPDX-License-Identifier: LGPL-2.1-only
//! Trees of real processes, made as a restart makes them.

use super::init::Init;
use super::make::{Processes, Role, clone, end};
use super::namespaces::Place;
use super::rendezvous::{Rendezvous, Stage};
use crate::proc::{Pid, Process};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::resource::kinship::plan::{Node, OUTSIDE, plan};
use crate::resource::kinship::sharing::Births;
use crate::restart::pooled::Pool;
use nix::unistd::{getpgrp, getpid, getppid, getsid};
use std::collections::HashMap;
use std::io::{PipeWriter, Read, Write};
use std::sync::atomic::AtomicU64;

const PAGE: u64 = 0x3100_0000_0000;

fn member(pid: i32, parent: Option<usize>, group: i32, session: i32) -> Node {
    let [pid, group, session] = [pid, group, session].map(Pid::new);
    Node { pid, parent, group, session, reaps: false, rank: 0 }
}

/// Makes the tree in namespaces of its own, and says what every process sees of itself: id, parent, group, session.
fn made(members: &[Node]) -> Vec<[i32; 4]> {
    let (mut hear, tell) = std::io::pipe().unwrap();
    if clone(None, nix::libc::SIGCHLD).unwrap().is_none() {
        drop(hear);
        let done = restart(members, tell);
        done.unwrap_or_else(|error| eprintln!("{error}"));
        end(0);
    }
    drop(tell);
    let mut lines = String::new();
    hear.read_to_string(&mut lines).unwrap();
    let numbers = |line: &str| line.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<i32>>();
    let mut seen: Vec<[i32; 4]> = lines.lines().map(|l| numbers(l).try_into().unwrap()).collect();
    seen.sort_unstable();
    seen
}

fn restart(members: &[Node], mut tell: PipeWriter) -> crate::error::Result<()> {
    let rendezvous = Rendezvous::map(PAGE)?;
    let place = if nix::unistd::geteuid().is_root() { Place::Apart } else { Place::AsUser };
    place.enter([0, 0], false)?;
    let last = members.iter().map(|m| m.pid).max().unwrap_or(Pid::NONE);
    let init = Init::start(rendezvous)?;
    assert!(init.pid() > Pid::NONE);
    let lives = plan(members).map_err(|at| crate::error::Error::new(format!("member {at}")))?;
    let exit_signals = vec![nix::libc::SIGCHLD; members.len()];
    let all = members.len() as u32;
    let tree = Processes {
        members,
        lives: &lives,
        exit_signals: &exit_signals,
        births: &Births::default(),
        rendezvous,
        apart: Some(last),
        gives_way: false,
        terminals: &HashMap::new(),
    };
    let watch = super::children::none_ended;
    match tree.make(&mut Pool::default())? {
        Role::Restarter(_) => {
            rendezvous.meet(Stage::Joined, all + 1, watch)?;
            rendezvous.watch(Stage::Planned, all, watch)?;
            // Each has the pipe, and says its line before it ends.
            init.leave(rendezvous);
        }
        Role::Member(made) => {
            made?;
            assert!(crate::proc::fork::own_id().is_some());
            let session = getsid(None).map_or(-1, nix::unistd::Pid::as_raw);
            let ids = [getpid(), getppid(), getpgrp()].map(nix::unistd::Pid::as_raw);
            let line = format!("{} {} {} {session}\n", ids[0], ids[1], ids[2]);
            tell.write_all(line.as_bytes()).unwrap();
            rendezvous.meet(Stage::Planned, all, watch)?;
            end(0);
        }
    }
    Ok(())
}

#[test]
fn every_process_is_who_it_was() {
    let out = OUTSIDE.get();
    let members = [
        member(5000, None, out, out),
        member(5001, Some(0), 5001, out),
        member(5010, Some(1), 5001, out),
        member(5002, Some(0), 5002, 5002),
        member(5003, Some(3), out, out),
        member(5020, None, out, out),
        member(6001, None, 6000, 6000),
        member(6002, Some(6), 6000, 6000),
        member(7001, Some(0), 7000, out),
        member(7002, Some(0), 7000, out),
        member(301, Some(8), 5001, out),
    ];
    let expected = |m: &Node| {
        let alone = if m.pid == Pid::new(5000) { Pid::NONE } else { Pid::INIT };
        let parent = m.parent.map_or(alone, |p| members[p].pid);
        [m.pid, parent, m.group, m.session].map(Pid::get)
    };
    let mut all: Vec<_> = members.iter().map(expected).collect();
    all.sort_unstable();
    assert_eq!(made(&members), all);
}

#[test]
fn two_hundred_processes_meet() {
    let mut members = vec![member(1000, None, 0, 0)];
    members.extend((1..200).map(|i| member(1000 + i, Some(i as usize / 3), 0, 0)));
    let seen = made(&members);
    assert_eq!(seen.len(), 200);
    assert!(seen.iter().zip(&members).all(|(seen, member)| seen[0] == member.pid.get()));
}

#[test]
fn an_id_that_is_taken_ends_them_all() {
    let members = [member(50, None, 0, 0), member(51, Some(0), 0, 0), member(51, Some(0), 0, 0)];
    assert!(made(&members).len() < 3);
}

/// Ends a child and waits for it.
fn bury(child: Pid) {
    let _ = nix::sys::signal::kill(child.nix(), nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(child.nix(), None);
}

#[test]
fn a_stranger_with_an_id_is_neither_read_nor_written() {
    static WORD: AtomicU64 = AtomicU64::new(3);
    let sleeper = |id: Option<Pid>| {
        let made = clone(id, nix::libc::SIGCHLD);
        if made == Ok(None) {
            loop {
                nix::unistd::pause();
            }
        }
        made.ok().flatten()
    };
    let first = sleeper(None).unwrap();
    let process = Process::open(first).unwrap();
    let memory = Memory::open(&process).unwrap();
    let at = WORD.as_ptr().addr() as u64;
    memory.put(at, &4u64).unwrap();
    bury(first);
    // To choose an id takes a privilege.
    let Some(other) = sleeper(Some(first)) else { return };
    assert_eq!(other, first);
    let stranger = Memory::open(&Process::open(other).unwrap()).unwrap();
    let written = memory.put(at, &5u64);
    let left = stranger.get::<u64>(at);
    let (name, frozen) = (process.name().is_err(), Frozen::freeze_one(&process).is_err());
    bury(other);
    assert!(written.is_err() && memory.was_its().is_err() && name && frozen);
    assert_eq!(left.unwrap(), 3);
}
