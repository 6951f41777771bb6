// SPDX-License-Identifier: LGPL-2.1-only
//! The manual page ckpt(1) as roff, made from the table.

use std::fmt::Write;

use super::table::{self, Entry, Form, Opt};
use super::{help, version};

/// The manual page. It uses the macros of man(7) only.
pub(crate) fn man_page() -> String {
    let mut page = format!(".TH CKPT 1 \"\" \"{}\" \"User Commands\"\n", text(&version()));
    page.push_str(".nh\n.ad l\n");
    section(&mut page, "NAME");
    page.push_str("ckpt \\- save a running program to an executable file that restarts it\n");
    section(&mut page, "SYNOPSIS");
    for (index, line) in help::synopses().iter().enumerate() {
        let _ = writeln!(page, "{}{}", if index == 0 { "" } else { ".br\n" }, synopsis(line));
    }
    section(&mut page, "DESCRIPTION");
    paragraphs(&mut page, table::entry(Form::Launch).long);
    page.push_str(".PP\nWith \\fB\\-p\\fR:\n");
    page.push_str(&plain(table::entry(Form::Attach).long));
    section(&mut page, "OPTIONS");
    for opt in table::options(&[Form::Launch, Form::Attach]) {
        option(&mut page, opt, true);
    }
    section(&mut page, "SUBCOMMANDS");
    page.push_str("A subcommand is the first word that is no option.\n");
    for (_, entry) in table::subcommands() {
        subcommand(&mut page, entry);
    }
    checkpoint_files(&mut page);
    section(&mut page, "EXIT STATUS");
    for (status, meaning) in help::STATUSES {
        let _ = write!(page, ".TP\n.B {}\n{}", text(status), plain(meaning));
    }
    environment(&mut page);
    section(&mut page, "EXAMPLES");
    page.push_str(".EX\n");
    for (typed, meaning) in help::EXAMPLE {
        let mark = if meaning.is_empty() { "" } else { "  # " };
        let _ = writeln!(page, "{}", line_start(&text(&format!("{typed}{mark}{meaning}"))));
    }
    page.push_str(".EE\n");
    for (title, texts) in REST {
        section(&mut page, title);
        texts.iter().enumerate().for_each(|(index, text)| {
            page.push_str(if index == 0 { "" } else { ".PP\n" });
            page.push_str(&plain(text));
        });
    }
    page
}

fn section(page: &mut String, title: &str) {
    let _ = writeln!(page, ".SH {title}");
}

fn checkpoint_files(page: &mut String) {
    let entry = table::entry(Form::Stub);
    section(page, "CHECKPOINT FILES");
    let _ = writeln!(page, "{}", synopsis(&help::synopsis(entry, "./foo.ckpt")));
    page.push_str(".PP\n");
    paragraphs(page, entry.long);
    let (shared, own): (Vec<&Opt>, Vec<&Opt>) =
        table::options(&[Form::Stub]).partition(|opt| opt.is_of(&[Form::Launch, Form::Attach]));
    for opt in own {
        option(page, opt, false);
    }
    shared.iter().filter(|opt| !opt.is_page()).for_each(|opt| briefly(page, opt));
}

/// An option that OPTIONS describes.
fn briefly(page: &mut String, opt: &Opt) {
    let _ = write!(
        page,
        ".TP\n{}\n{}",
        bold(help::flags(opt).trim_start()),
        plain(&format!("{}.", opt.help))
    );
}

/// What else there is to know: title and paragraphs.
const REST: [(&str, &[&str]); 3] = [
    (
        "LIMITS",
        &[
            "Programs for x86-64 Linux. The following prevent a checkpoint, which then says so: GPUs and mapped device \
             memory, io_uring(7), debuggers, 32-bit code, set-user-ID programs, memfd_secret(2), and, unless root saves, \
             seccomp(2) filters. 'ckpt check PID' tells beforehand.",
            "Contents of files are not saved, except of files without a name and of those stored by --embed-files. \
             Connections to processes outside the checkpoint are reset (see --keep-tcp); other pipes and terminals are \
             closed. Each checkpoint reports what a restart will lack.",
            "A restart needs the CPU features that the program may use (--cpu), the files that it had open at their paths \
             (--map-path), and Linux 5.10 or later. 'ckpt check FILE' compares.",
        ],
    ),
    (
        "BATCH SYSTEMS",
        &[
            "One command line serves for the first run of a job and for all later ones: \
             exec ckpt --resume --truncate-files -z 10m -a TSTP --exit-status 85 -n job.ckpt PROGRAM",
            "Some minutes before its time limit the job gets the checkpoint signal, is saved and exits with status 85, \
             whereupon it is requeued: in Slurm by '#SBATCH --requeue --signal=B:TSTP@120' and RequeueExit=85, in HTCondor \
             by checkpoint_exit_code = 85, in SGE by status 99. Before a node goes down: ckpt save --all --stop.",
        ],
    ),
    (
        "SEE ALSO",
        &["ckpt_ckpt(3), signal(7), ptrace(2), core(5), gdb(1), criu(8), dmtcp(1), sbatch(1)"],
    ),
];

fn subcommand(page: &mut String, entry: &Entry) {
    let _ = writeln!(page, ".SS {}", synopsis(&help::synopsis(entry, "ckpt")));
    paragraphs(page, entry.long);
    for opt in table::OPTIONS.iter().filter(|opt| opt.is_of(&[entry.form]) && !opt.is_page()) {
        if opt.is_of(&[Form::Launch, Form::Attach]) {
            briefly(page, opt);
        } else {
            option(page, opt, true);
        }
    }
}

fn option(page: &mut String, opt: &Opt, with_default: bool) {
    let _ = writeln!(page, ".TP\n{}", bold(help::flags(opt).trim_start()));
    for (index, paragraph) in opt.description.split("\n\n").enumerate() {
        page.push_str(if index == 0 { "" } else { ".IP\n" });
        page.push_str(&plain(paragraph));
    }
    if let (Some(default), true) = (opt.default, with_default) {
        page.push_str(&plain(&format!("Default: {default}.")));
    }
}

fn environment(page: &mut String) {
    section(page, "ENVIRONMENT");
    page.push_str(&plain(
        "These are read once, from the environment of the ckpt command; options take precedence.",
    ));
    for opt in table::OPTIONS {
        if let Some(env) = &opt.env {
            let _ = write!(page, ".TP\n.BR {} = \"{}\"\n", text(env.name), text(env.value));
            page.push_str(&plain(&format!("The same as {}.", opt.shortest())));
        }
    }
}

fn paragraphs(page: &mut String, long: &str) {
    for (index, paragraph) in long.split("\n\n").enumerate() {
        page.push_str(if index == 0 { "" } else { ".PP\n" });
        page.push_str(&plain(paragraph));
    }
}

/// Bold words and italic placeholders (words in capitals).
fn synopsis(line: &str) -> String {
    let styled = |word: &str| {
        let name = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let capitals = name.len() > 1 && name.chars().all(|c| c.is_ascii_uppercase());
        format!("\\f{}{}\\fR", if capitals { 'I' } else { 'B' }, text(word))
    };
    let words: Vec<String> = line.split(' ').map(styled).collect();
    words.join(" ")
}

fn bold(flags: &str) -> String {
    synopsis(flags)
}

/// A line of prose.
fn plain(prose: &str) -> String {
    format!("{}\n", line_start(&text(prose)))
}

/// Escapes what roff would read as its own: backslashes, hyphens that must stay ASCII, quotes.
fn text(plain: &str) -> String {
    let mut out = String::new();
    for c in plain.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '"' => out.push_str("\\(dq"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c => out.push(c),
        }
    }
    out
}

/// A full stop at the start of a line would be a macro.
fn line_start(line: &str) -> String {
    if line.starts_with('.') { format!("\\&{line}") } else { line.to_owned() }
}
