// SPDX-License-Identifier: LGPL-2.1-only
//! The section of strings.

use ckpt_abi::image::Text;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Collects strings, each once.
#[derive(Default)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    known: HashMap<Vec<u8>, Text>,
}

impl Strings {
    /// Adds a string.
    pub(crate) fn add(&mut self, string: impl AsRef<OsStr>) -> Text {
        let string = string.as_ref().as_bytes();
        if let Some(text) = self.known.get(string) {
            return *text;
        }
        let text = Text { offset: self.bytes.len() as u32, len: string.len() as u32 };
        self.bytes.extend_from_slice(string);
        self.known.insert(string.to_vec(), text);
        text
    }

    /// A string that was added.
    pub(crate) fn get(&self, text: Text) -> OsString {
        get(&self.bytes, text)
    }

    /// The section.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The string that a [`Text`] of an image refers to; empty where it points outside the section.
pub(crate) fn get(section: &[u8], text: Text) -> OsString {
    let start = text.offset as usize;
    let piece = section.get(start..start.saturating_add(text.len as usize)).unwrap_or_default();
    OsString::from_vec(piece.to_vec())
}
