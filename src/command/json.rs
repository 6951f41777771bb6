//! What `ckpt info` and `ckpt check` say: a table for people, or one JSON object.

use crate::error::Result;

/// What is known under a name.
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// Several texts.
    List(Vec<String>),
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

impl From<Vec<String>> for Value {
    fn from(list: Vec<String>) -> Self {
        Self::List(list)
    }
}

/// Names and values in the order in which they are shown.
#[derive(Default)]
pub struct Facts(Vec<(&'static str, Value)>);

impl Facts {
    /// Adds one.
    pub fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    /// Prints all.
    pub fn print(&self, json: bool) -> Result<u8> {
        super::print(&if json { self.json() } else { self.table() })
    }

    fn table(&self) -> String {
        let mut table = String::new();
        let mut line = |name: &str, value: &str| {
            table.push_str(&format!("{:<16} {value}\n", name.replace('_', " ")));
        };
        for (name, value) in &self.0 {
            match value {
                Value::Text(text) => line(name, text),
                Value::Number(number) => line(name, &number.to_string()),
                Value::Flag(flag) => line(name, if *flag { "yes" } else { "no" }),
                Value::List(list) => list.iter().for_each(|text| line(name, text)),
            }
        }
        table
    }

    fn json(&self) -> String {
        let value = |value: &Value| match value {
            Value::Text(text) => quoted(text),
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::List(list) => {
                format!("[{}]", list.iter().map(|t| quoted(t)).collect::<Vec<_>>().join(", "))
            }
        };
        let members = self.0.iter().map(|(name, v)| format!("  {}: {}", quoted(name), value(v)));
        format!("{{\n{}\n}}\n", members.collect::<Vec<_>>().join(",\n"))
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
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
        let json = "{\n  \"a_name\": \"\\\"x\\\"\\n\\\\\\u0001é\",\n  \"n\": 7,\n  \"list\": [\"1\", \"2\"],\n  \"flag\": false\n}\n";
        assert_eq!(facts.json(), json);
        assert!(facts.table().ends_with(
            "n                7\nlist             1\nlist             2\nflag             no\n"
        ));
    }
}
