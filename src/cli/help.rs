// SPDX-License-Identifier: LGPL-2.1-only
//! Help texts, made from the table.

use std::fmt::Write;

use super::table::{self, Entry, Form, Operand, Opt};

/// Columns of a help text.
const WIDTH: usize = 79;
/// Column where the second column of lists begins.
const SECOND: usize = 24;

/// The quick example of the manual; (what is typed or printed, what it means).
pub(super) const EXAMPLE: &[(&str, &str)] = &[
    ("% ckpt foo", "run foo with checkpointing"),
    ("1 2 3 4 5 ^Z", "the checkpoint signal: saved to foo.ckpt, and foo ends"),
    ("% ./foo.ckpt", "execute the checkpoint: foo continues"),
    ("6 7 8", ""),
];

/// The exit statuses of the ckpt command.
pub(super) const STATUSES: &[(&str, &str)] = &[
    ("125", "ckpt itself failed; it says why on standard error"),
    ("126", "PROGRAM was found but cannot be executed"),
    ("127", "PROGRAM was not found"),
    ("other", "PROGRAM's exit status; 0 if a checkpoint ended it"),
];

/// "ckpt [-n NAME] … PROGRAM [ARGS…]", once for each form that users see.
pub(super) fn synopses() -> Vec<String> {
    let shown = |entry: &&Entry| !entry.hidden && entry.form != Form::Stub;
    table::FORMS.iter().filter(shown).map(|entry| synopsis(entry, "ckpt")).collect()
}

/// Where a line would become too long, options without a short name stand together.
pub(super) fn synopsis(entry: &Entry, command: &str) -> String {
    let line = synopsis_of(entry, command, true);
    if line.chars().count() < 66 { line } else { synopsis_of(entry, command, false) }
}

fn synopsis_of(entry: &Entry, command: &str, whole: bool) -> String {
    let mut line = command.to_owned();
    if let Some(word) = entry.word {
        line.push(' ');
        line.push_str(word);
    }
    let own = |opt: &&Opt| opt.is_of(&[entry.form]) && !opt.is_page();
    for opt in table::OPTIONS.iter().filter(own).filter(|opt| whole || opt.short.is_some()) {
        let mut text = opt.shortest();
        match opt.value {
            Some((value, _)) if opt.optional => text = format!("{text}[={value}]"),
            Some((value, _)) => text = format!("{text} {value}"),
            None => {}
        }
        line.push_str(&if opt.required { format!(" {text}") } else { format!(" [{text}]") });
    }
    if !whole {
        line.push_str(" [...]");
    }
    if let Some(operand) = &entry.operand {
        match entry.form {
            Form::Launch => line.push_str(" [--] PROGRAM [ARGS...]"),

            _ => line.push_str(&format!(" {}", operand.written())),
        }
    }
    line
}

/// For `ckpt` alone.
pub(super) fn usage() -> String {
    let mut text = String::new();
    for (index, line) in synopses().iter().take(3).enumerate() {
        text.push_str(if index == 0 { "usage: " } else { "       " });
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("try 'ckpt --help'\n");
    text
}

/// `ckpt --help`.
pub(super) fn overview() -> String {
    let mut text =
        "ckpt saves a running program to an executable file that restarts it.\n\nUsage:\n"
            .to_owned();
    for line in synopses().iter().take(2) {
        let _ = writeln!(text, "  {line}");
    }
    text.push_str("  ckpt SUBCOMMAND ...\n\nQuick example:\n");
    list(&mut text, EXAMPLE.iter().map(|(left, right)| (left.to_string(), right.to_string())));
    text.push_str("\nSubcommands:\n");
    list(
        &mut text,
        table::subcommands().map(|(word, entry)| {
            let operand = entry.operand.as_ref().map_or(String::new(), Operand::written);
            (format!("{word} {operand}").trim_end().to_owned(), entry.help.to_owned())
        }),
    );
    text.push_str("\nOptions before PROGRAM, and the environment variables for them:\n");
    list(
        &mut text,
        table::options(&[Form::Launch, Form::Attach]).map(|opt| {
            let variable = opt.env.as_ref().map_or(String::new(), |env| format!(" ({})", env.name));
            (flags(opt), format!("{}{variable}", opt.help))
        }),
    );
    text.push_str("\nOptions of subcommands:\n");
    list(
        &mut text,
        table::OPTIONS
            .iter()
            .filter(|opt| !opt.is_of(&[Form::Launch, Form::Attach]) && !opt.is_page())
            .filter_map(|opt| {
                let own = |(_, entry): &(_, &Entry)| opt.is_of(&[entry.form]);
                let words: Vec<_> = table::subcommands().filter(own).map(|(w, _)| w).collect();
                // Those of a checkpoint file alone are in its own help.
                let text = format!("{}: {}", words.join(", "), opt.help);
                (!words.is_empty()).then(|| (flags(opt), text))
            }),
    );
    text.push_str("\nExit status:\n");
    list(&mut text, STATUSES.iter().map(|(left, right)| (left.to_string(), right.to_string())));
    text.push_str(
        "\nMore: 'ckpt help SUBCOMMAND', './foo.ckpt --help', and 'ckpt man | man -l -'.\n",
    );
    text
}

/// `ckpt help SUBCOMMAND`.
pub(super) fn subcommand(entry: &Entry) -> String {
    let mut text = format!("{}.\n\nUsage: {}\n", entry.help, synopsis(entry, "ckpt"));
    paragraphs(&mut text, entry.long);
    options(&mut text, entry);
    text
}

/// `./foo.ckpt --help`.
pub(super) fn stub(file: &str) -> String {
    let entry = table::entry(Form::Stub);
    let mut text = format!("{}.\n\nUsage: {}\n", entry.help, synopsis(entry, file));
    paragraphs(&mut text, entry.long);
    options(&mut text, entry);
    text
}

fn paragraphs(text: &mut String, long: &str) {
    for paragraph in long.split("\n\n") {
        text.push('\n');
        fill(text, paragraph, 0);
    }
}

fn options(text: &mut String, entry: &Entry) {
    text.push_str("\nOptions:\n");
    for opt in table::OPTIONS.iter().filter(|opt| opt.is_of(&[entry.form])) {
        let _ = writeln!(text, "  {}", flags(opt).trim_start());
        for paragraph in opt.description.split("\n\n") {
            fill(text, paragraph, 6);
        }
        if let (Some(env), true) = (&opt.env, entry.form != Form::Stub) {
            let _ = writeln!(text, "      Environment: {}={}", env.name, env.value);
        }
    }
}

/// "-n, --name NAME".
pub(super) fn flags(opt: &Opt) -> String {
    let mut text = match opt.short {
        Some(short) => format!("-{short}, --{}", opt.long),
        None => format!("    --{}", opt.long),
    };
    match opt.value {
        Some((value, _)) if opt.optional => _ = write!(text, "[={value}]"),
        Some((value, _)) => _ = write!(text, " {value}"),
        None => {}
    }
    text
}

/// Two columns; a left text that is too wide stands on a line of its own.
fn list(text: &mut String, rows: impl Iterator<Item = (String, String)>) {
    for (left, right) in rows {
        let mut line = format!("  {left}");
        if line.chars().count() + 2 > SECOND && !right.is_empty() {
            text.push_str(&line);
            text.push('\n');
            line.clear();
        }
        if right.is_empty() {
            text.push_str(&line);
            text.push('\n');
            continue;
        }
        let mut filled = String::new();
        fill(&mut filled, &right, SECOND);
        let start = line.chars().count();
        text.push_str(&line);
        text.push_str(&filled[start..]);
    }
}

/// Appends `words`, broken at spaces before [`WIDTH`] and indented.
fn fill(text: &mut String, words: &str, indent: usize) {
    let mut column = 0;
    for word in words.split(' ') {
        let width = word.chars().count();
        if column == 0 {
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if column + 1 + width > WIDTH {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}
