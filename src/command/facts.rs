// SPDX-License-Identifier: LGPL-2.1-only
//! What `ckpt info`, `ckpt check` and `ckpt ls` say: tables for people, or JSON.

use crate::error::{Result, printable};
use crate::serve::log::quoted;
use crate::units;
use std::ffi::{OsStr, OsString};

/// What is known under a name.
pub(super) enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
    /// A number of bytes.
    Bytes(u64),
    /// Yes or no.
    Flag(bool),
    /// Several texts.
    List(Vec<String>),
    /// Several things, each with its own names and values.
    Things(Vec<Facts>),
    /// Sentences for people, and for programs what they are made of.
    Told(Vec<String>, Vec<Facts>),
    /// A text for people, and for programs the number that it comes from.
    Both(String, u64),
    /// There is none.
    Nothing,
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<Vec<Facts>> for Value {
    fn from(things: Vec<Facts>) -> Self {
        Self::Things(things)
    }
}

impl From<Vec<String>> for Value {
    fn from(list: Vec<String>) -> Self {
        Self::List(list)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nothing, Into::into)
    }
}

impl From<(String, u64)> for Value {
    fn from((text, number): (String, u64)) -> Self {
        Self::Both(text, number)
    }
}

impl Value {
    /// In a word or a line.
    fn words(&self) -> String {
        match self {
            Self::Text(text) | Self::Both(text, _) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Bytes(bytes) => units::size(*bytes),
            Self::Flag(flag) => if *flag { "yes" } else { "no" }.to_owned(),
            Self::List(list) | Self::Told(list, _) => list.join(" "),
            Self::Things(things) => things.len().to_string(),
            Self::Nothing => "-".to_owned(),
        }
    }

    fn json(&self) -> String {
        let list = |all: Vec<String>| format!("[{}]", all.join(", "));
        match self {
            Self::Text(text) => quoted(text),
            Self::Number(number) | Self::Bytes(number) => number.to_string(),
            Self::Both(_, number) => number.to_string(),
            Self::Nothing => "null".to_owned(),
            Self::Flag(flag) => flag.to_string(),
            Self::List(texts) => list(texts.iter().map(|text| quoted(text)).collect()),
            Self::Things(things) | Self::Told(_, things) => {
                list(things.iter().map(Facts::json).collect())
            }
        }
    }
}

/// Names and values in the order in which they are shown.
#[derive(Default)]
pub(super) struct Facts(Vec<(&'static str, Value)>);

impl Facts {
    /// Adds one.
    pub(super) fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    /// Adds a number of bytes.
    pub(super) fn add_bytes(&mut self, name: &'static str, bytes: u64) {
        self.0.push((name, Value::Bytes(bytes)));
    }

    /// Adds sentences for people, and for programs what they are made of.
    pub(super) fn add_told(&mut self, name: &'static str, told: Vec<String>, things: Vec<Self>) {
        self.0.push((name, Value::Told(told, things)));
    }

    /// Adds a number before all others.
    pub(super) fn first(&mut self, name: &'static str, number: u64) {
        self.0.insert(0, (name, Value::Number(number)));
    }

    /// Prints all.
    pub(super) fn print(&self, json: bool) -> Result<()> {
        super::print(&if json { format!("{}\n", self.json()) } else { self.table() }).map(drop)
    }

    fn table(&self) -> String {
        let mut table = String::new();
        let mut line = |name: &str, value: &str| {
            table.push_str(&format!("{:<16} {}\n", name.replace('_', " "), printable(value)));
        };
        for (name, value) in &self.0 {
            match value {
                Value::Bytes(bytes) => line(name, &size(*bytes)),
                Value::List(list) | Value::Told(list, _) => {
                    list.iter().for_each(|text| line(name, text));
                }
                Value::Things(things) => things.iter().for_each(|it| line(name, &it.in_a_line())),
                other => line(name, &other.words()),
            }
        }
        table
    }

    /// Names and values behind each other.
    fn in_a_line(&self) -> String {
        let word = |(name, value): &(&'static str, Value)| format!("{name} {}", value.words());
        self.0.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    /// The same with the word that they are about at their head.
    fn named(mut self, word: &OsStr) -> Self {
        self.0.insert(0, ("file", Value::Text(word.to_string_lossy().into_owned())));
        self
    }

    /// A JSON object without a newline at its end.
    pub(super) fn json(&self) -> String {
        let members = self.0.iter().map(|(name, v)| format!("  {}: {}", quoted(name), v.json()));
        format!("{{\n{}\n}}", members.collect::<Vec<_>>().join(",\n"))
    }
}

/// Things of one kind, for people or as a JSON list.
pub(super) fn listed(things: &[Facts], json: bool) -> String {
    match json {
        true => json_list(&things.iter().map(Facts::json).collect::<Vec<_>>()),
        false => columns(things),
    }
}

/// Things of one kind, a line each below the names of what is known of them.
fn columns(things: &[Facts]) -> String {
    let Some(first) = things.first() else { return String::new() };
    let head = first.0.iter().map(|(name, _)| name.replace('_', " ").to_uppercase()).collect();
    let row = |it: &Facts| it.0.iter().map(|(_, value)| printable(&value.words())).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(things.iter().map(row)).collect();
    let mut widths = vec![0; first.0.len()];
    for row in &rows {
        let cells = widths.iter_mut().zip(row);
        cells.for_each(|(width, cell)| *width = cell.chars().count().max(*width));
    }
    let mut table = String::new();
    for row in &rows {
        let start = table.len();
        for (cell, width) in row.iter().zip(&widths) {
            table.push_str(cell);
            let gap = width + 2 - cell.chars().count();
            table.extend(std::iter::repeat_n(' ', gap));
        }
        table.truncate(start + table[start..].trim_end().len());
        table.push('\n');
    }
    table
}

/// Several objects as a JSON list.
pub(super) fn json_list(objects: &[String]) -> String {
    format!("[{}]\n", objects.join(",\n"))
}

/// "1886016 bytes (1.8 MiB)"
pub(super) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        units::size(bytes)
    } else {
        format!("{bytes} bytes ({})", units::size(bytes))
    }
}

/// Shows what `look` says of each of `words`: for one word a table or an object, for several a table with a
/// heading each, or a list. What is wrong with one is said and does not keep the others from being
/// shown; the status is the worst.
pub(super) fn each(
    words: &[OsString],
    json: bool,
    look: impl Fn(&OsStr) -> Result<(Facts, u8)>,
) -> Result<u8> {
    if let [word] = words {
        let (facts, status) = look(word)?;
        facts.print(json)?;
        return Ok(status);
    }
    let (mut worst, mut objects) = (0, Vec::new());
    for (index, word) in words.iter().enumerate() {
        match look(word) {
            Ok((facts, status)) => {
                worst = worst.max(status);
                if json {
                    objects.push(facts.named(word).json());
                } else {
                    let gap = if index == 0 { "" } else { "\n" };
                    super::print(&format!("{gap}{}:\n{}", word.display(), facts.table()))?;
                }
            }
            Err(e) => {
                worst = worst.max(e.status());
                eprintln!("ckpt: {e}");
            }
        }
    }
    if json {
        super::print(&json_list(&objects))?;
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let mut facts = Facts::default();
        facts.add("a_name", "\"x\"\n\\\u{1}é".to_string());
        facts.add("n", 7u64);
        facts.add("list", vec!["1".to_string(), "2".to_string()]);
        facts.add("flag", false);
        let json = "{\n  \"a_name\": \"\\\"x\\\"\\u000a\\\\\\u0001é\",\n  \"n\": 7,\n  \"list\": [\"1\", \"2\"],\n  \"flag\": false\n}";
        assert_eq!(facts.json(), json);
        assert!(facts.table().ends_with(
            "n                7\nlist             1\nlist             2\nflag             no\n"
        ));
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1024 bytes (1.0 KiB)"),
            (1_048_575, "1048575 bytes (1.0 MiB)"),
            (1_886_016, "1886016 bytes (1.8 MiB)"),
            (u64::MAX, "18446744073709551615 bytes (16.0 EiB)"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
