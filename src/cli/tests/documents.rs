// SPDX-License-Identifier: LGPL-2.1-only
//! The tables of docs/ that say what the program's own tables say are made of those. `scripts/docs` writes them.

use super::*;
use crate::cli::entry::Entry;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A table of a page, which stands there between `<!-- NAME -->` and `<!-- end -->`.
struct Table {
    page: &'static str,
    name: &'static str,
    text: fn() -> String,
}

const TABLES: &[Table] = &[
    Table { page: "manual.md", name: "commands", text: || commands(|entry| !is_network(entry)) },
    Table { page: "manual.md", name: "options", text: || options(&[Form::Launch, Form::Attach]) },
    Table { page: "manual.md", name: "more options", text: more_options },
    Table { page: "manual.md", name: "exit status", text: statuses },
    Table { page: "server.md", name: "commands", text: || commands(is_network) },
    Table { page: "server.md", name: "options", text: || own_options(is_network) },
    Table { page: "messages.md", name: "kinds", text: crate::resource::kinds::table },
];

fn is_network(entry: &Entry) -> bool {
    let of_servers =
        [Form::Restart, Form::Serve, Form::Keygen, Form::List, Form::Get, Form::Put, Form::Remove];
    of_servers.contains(&entry.form)
}

/// A text as a cell of a table: paragraphs stand on lines of their own, and pages are links.
fn cell(text: &str) -> String {
    let text = text.replace('|', "\\|").replace('<', "&lt;").replace("\n\n", "<br>");
    let link = |word: &str| {
        let Some(begin) = word.find("docs/") else { return word.to_owned() };
        let end = word[begin..].find(".md").map_or(word.len(), |at| begin + at + 3);
        let (page, rest) = (&word[begin + 5..end], &word[end..]);
        format!("{}[docs/{page}]({page}){rest}", &word[..begin])
    };
    text.split(' ').map(link).collect::<Vec<_>>().join(" ")
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

fn commands(wanted: fn(&Entry) -> bool) -> String {
    let mut table = "| command | what it does |\n|---|---|\n".to_owned();
    let shown = |entry: &&Entry| !entry.hidden && wanted(entry);
    for entry in FORMS.iter().filter(shown) {
        let called = match entry.form {
            Form::Launch => "ckpt [OPTIONS] [--] PROGRAM [ARGS...]".to_owned(),
            Form::Attach => "ckpt -p PID [OPTIONS]".to_owned(),
            Form::Stub => "./foo.ckpt [OPTIONS]".to_owned(),
            _ => {
                let operand = entry.operand.as_ref().map_or(String::new(), |o| o.written());
                format!("ckpt {} {operand}", entry.word.unwrap_or_default()).trim_end().to_owned()
            }
        };
        let _ = writeln!(table, "| {} | {} |", code(&called), cell(entry.long));
    }
    table
}

fn options(forms: &'static [Form]) -> String {
    let mut table = "| option | variable | default | meaning |\n|---|---|---|---|\n".to_owned();
    for opt in table::options(forms).filter(|opt| !opt.is_page()) {
        let variable = opt.env.as_ref().map_or(String::new(), |env| code(env.name));
        let flags = code(help::flags(opt).trim_start());
        let meaning = cell(opt.description);
        let default = cell(opt.default.unwrap_or_default());
        let _ = writeln!(table, "| {flags} | {variable} | {default} | {meaning} |");
    }
    table
}

/// Those of subcommands and checkpoint files that are no options of `ckpt PROGRAM`.
fn more_options() -> String {
    own_options(|entry| !is_network(entry))
}

fn own_options(wanted: fn(&Entry) -> bool) -> String {
    let mut table = "| option | of | meaning |\n|---|---|---|\n".to_owned();
    let launched = [Form::Launch, Form::Attach];
    for opt in OPTIONS.iter().filter(|opt| !opt.is_of(&launched) && !opt.is_page()) {
        let own = FORMS.iter().filter(|entry| !entry.hidden && opt.is_of(&[entry.form]));
        if !own.clone().any(wanted) {
            continue;
        }
        let called =
            own.map(|entry| entry.word.map_or("./foo.ckpt".into(), |w| format!("ckpt {w}")));
        let of: Vec<_> = called.map(|name| code(&name)).collect();
        let flags = code(help::flags(opt).trim_start());
        let _ = writeln!(table, "| {flags} | {} | {} |", of.join(", "), cell(opt.description));
    }
    table
}

fn statuses() -> String {
    let mut table = "| status | meaning |\n|---|---|\n".to_owned();
    for (status, meaning) in help::STATUSES {
        let _ = writeln!(table, "| {status} | {} |", cell(meaning));
    }
    table
}

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// The page with the table in its place.
fn with_table(text: &str, table: &Table) -> String {
    let mark = format!("<!-- {} -->\n", table.name);
    let lacks = || panic!("docs/{} lacks {mark}", table.page);
    let (before, rest) = text.split_once(&mark).unwrap_or_else(lacks);
    let (_, after) = rest.split_once("<!-- end -->").unwrap_or_else(lacks);
    format!("{before}{mark}{}<!-- end -->{after}", (table.text)())
}

#[test]
fn the_tables_of_the_docs_are_those_of_the_program() {
    let writes = std::env::var_os("CKPT_WRITE_DOCS").is_some();
    for table in TABLES {
        let text = std::fs::read_to_string(page(table.page)).unwrap();
        let right = with_table(&text, table);
        if writes {
            std::fs::write(page(table.page), right).unwrap();
            continue;
        }
        let line = text.lines().zip(right.lines()).find(|(is, should)| is != should);
        assert!(
            text == right,
            "docs/{}: the table \"{}\" is another: run scripts/docs, which writes it; first {line:?}",
            table.page,
            table.name
        );
    }
}
