// SPDX-License-Identifier: LGPL-2.1-only
//! What an image goes without, in sentences: one for each kind of loss, which names the processes that it is of.

use super::Gathered;
use super::kinship;
use ckpt_abi::image::Member;

/// How many groups of processes a sentence names, and how many processes of one name.
const NAMED: usize = 12;

/// Losses that come in numbers: those of a process become one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Files that are too large for --embed-files.
    Large,
    /// Descriptors that will answer EBADF.
    Lost,
    /// Connections that will be reset.
    Reset,
    /// The same of those that nobody is likely to miss.
    Inherited,
}

impl List {
    const fn heading(self) -> &'static str {
        match self {
            Self::Large => "files above the limit of --embed-files:",
            Self::Lost => "descriptors that a restart cannot open again:",
            Self::Reset => "connections to others, which a restart finds reset: descriptors",
            Self::Inherited => "not saved, since its parent has them too: descriptors",
        }
    }
}

/// The sentence about one of a list.
pub(crate) fn alone(list: List, what: &str) -> String {
    format!("{} {what}", list.heading())
}

/// What is said without being asked for.
pub(crate) fn sentences(processes: &[&Gathered], members: &[Member]) -> Vec<String> {
    let several = processes.len() > 1;
    let mut all: Groups<'_> = Vec::new();
    for (index, gathered) in processes.iter().enumerate() {
        gathered.losses.iter().for_each(|loss| put(&mut all, loss, index));
    }
    let sentence = |(loss, of): (&str, Vec<usize>)| match several {
        true => format!("of {}: {loss}", who(&of, processes, members)),
        false => loss.to_owned(),
    };
    let sentences = all.into_iter().map(sentence);
    let lists = [List::Large, List::Lost, List::Reset].into_iter();
    sentences.chain(lists.filter_map(|list| listed(list, processes, members))).collect()
}

/// What only --verbose tells.
pub(crate) fn trifles(processes: &[&Gathered], members: &[Member]) -> Option<String> {
    listed(List::Inherited, processes, members)
}

/// Texts in the order in which they came, and the processes that have them.
type Groups<'a> = Vec<(&'a str, Vec<usize>)>;

fn put<'a>(groups: &mut Groups<'a>, text: &'a str, index: usize) {
    match groups.iter_mut().find(|(known, _)| *known == text) {
        Some((_, of)) if of.last() == Some(&index) => {}
        Some((_, of)) => of.push(index),
        None => groups.push((text, vec![index])),
    }
}

fn listed(list: List, processes: &[&Gathered], members: &[Member]) -> Option<String> {
    let of = |gathered: &&Gathered| {
        let own = gathered.lists.iter().filter(|(kind, _)| *kind == list);
        own.map(|(_, what)| what.as_str()).collect::<Vec<_>>().join(", ")
    };
    let texts: Vec<String> = processes.iter().map(of).collect();
    let mut groups: Groups<'_> = Vec::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        put(&mut groups, text, index);
    }
    let part = |(text, of): &(&str, Vec<usize>)| match processes.len() {
        1 => (*text).to_owned(),
        _ => format!("{text} of {}", who(of, processes, members)),
    };
    let mut parts: Vec<String> = groups.iter().take(NAMED).map(part).collect();
    if let Some(rest) = groups.len().checked_sub(NAMED).filter(|rest| *rest > 0) {
        parts.push(format!("others of {rest} further processes"));
    }
    (!parts.is_empty()).then(|| format!("{} {}", list.heading(), parts.join("; ")))
}

/// "bash (12), sleep (13, 14)"
fn who(of: &[usize], processes: &[&Gathered], members: &[Member]) -> String {
    match of.len() {
        2 if processes.len() == 2 => return "both processes".to_owned(),
        all if all == processes.len() => return format!("all {all} processes"),
        _ => {}
    }
    let named = |index: &usize| {
        let gathered = processes.get(*index)?;
        let member = members.iter().find(|member| member.process == gathered.number);
        let pid = gathered.process.map_or(0, |process| process.pid);
        Some(member.map_or((pid, "process".into()), kinship::named))
    };
    let all: Vec<(u32, String)> = of.iter().filter_map(named).collect();
    names(&all)
}

/// Processes by their names, each with its ids: "bash (12), sleep (13, 14)".
pub(crate) fn names(all: &[(u32, String)]) -> String {
    let mut by_name: Vec<(&str, Vec<String>)> = Vec::new();
    for (pid, name) in all {
        match by_name.iter_mut().find(|(known, _)| known == name) {
            Some((_, pids)) => pids.push(pid.to_string()),
            None => by_name.push((name, vec![pid.to_string()])),
        }
    }
    let one = |(name, pids): &(&str, Vec<String>)| match pids.len() {
        count if count > NAMED => {
            format!("{name} ({}, … {count} of them)", pids[..NAMED].join(", "))
        }
        _ => format!("{name} ({})", pids.join(", ")),
    };
    by_name.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_abi::image::ProcessRecord;
    use zerocopy::FromZeros;

    fn process(number: u32, losses: &[&str], lost: &[&str]) -> Gathered {
        let record = ProcessRecord { pid: 50 + number, ..ProcessRecord::new_zeroed() };
        Gathered {
            number,
            process: Some(record),
            losses: losses.iter().map(|loss| (*loss).to_owned()).collect(),
            lists: lost.iter().map(|what| (List::Lost, (*what).to_owned())).collect(),
            ..Gathered::default()
        }
    }

    fn member(process: u32, name: &[u8]) -> Member {
        let mut member = Member { pid: 50 + process, process, ..Member::new_zeroed() };
        member.name[..name.len()].copy_from_slice(name);
        member
    }

    #[test]
    fn each_kind_is_said_once() {
        let all = [
            process(0, &["its keys"], &["5 (a pipe)", "6"]),
            process(1, &["its keys", "its seal"], &["5 (a pipe)", "6"]),
            process(2, &["its keys"], &["7"]),
            process(3, &["its keys", "its seal"], &[]),
        ];
        let members =
            [member(0, b"bash"), member(1, b"sleep"), member(2, b"sleep"), member(3, b"sleep")];
        assert_eq!(
            sentences(&Vec::from_iter(&all), &members),
            [
                "of all 4 processes: its keys",
                "of sleep (51, 53): its seal",
                "descriptors that a restart cannot open again: 5 (a pipe), 6 of bash (50), sleep (51); 7 of sleep (52)"
            ]
        );
        assert_eq!(trifles(&Vec::from_iter(&all), &members), None);
    }

    #[test]
    fn one_process_needs_no_name() {
        let all = [process(0, &["its keys"], &["5 (a pipe)", "6"])];
        let lost = "descriptors that a restart cannot open again: 5 (a pipe), 6";
        assert_eq!(sentences(&Vec::from_iter(&all), &[]), ["its keys", lost]);
    }
}
