//! Where checkpoints go to: the one place where dump and serve meet.

use crate::error::Result;
use crate::image::file::{self, FileSink};
use crate::image::write::Sink;
use crate::serve::upload::UploadSink;
use crate::settings::server::{Key, Transfer};
use crate::settings::{Name, Settings, Template, Values};
use std::path::Path;

/// Makes the sink for a name, without waiting for a network.
///
/// # Errors
/// A file that cannot be written. What is wrong with a server, the sink tells later.
pub fn open(name: &Name, transfer: &Transfer) -> Result<Box<dyn Sink>> {
    match name {
        Name::File(path) => Ok(Box::new(FileSink::create(path)?)),
        Name::Server(server) => Ok(Box::new(UploadSink::create(server.clone(), transfer.clone())?)),
    }
}

/// Says why a checkpoint of this name could not be written, without leaving anything.
///
/// # Errors
/// The directory, or what has the name.
pub fn check(template: &Template, values: &Values) -> Result<()> {
    let existing = if template.is_counted() { template.existing(values)? } else { Vec::new() };
    let highest = existing.first().map_or(0, |(number, _)| *number);
    file::check(&template.expand(values, highest + 1))
}

/// Says at the start of a program why its checkpoints could not be written.
///
/// # Errors
/// As [`check`].
pub fn check_said(settings: &Settings) -> Result<()> {
    if let Some(file) = settings.name.as_ref().and_then(Name::file) {
        let values = Values::of(std::process::id().cast_signed());
        return check(&Template::parse(file)?, &values);
    }
    settings.transfer.fallback.as_deref().map_or(Ok(()), file::check)
}

/// The same with the key of our home, where nothing is said of a key.
pub fn with_usual_key(mut settings: Settings) -> Settings {
    if settings.transfer.key.is_none() {
        settings.transfer.key = usual_key();
    }
    settings
}

/// The key file of our home.
pub fn usual_key() -> Option<Key> {
    let home = std::env::var_os("HOME").filter(|home| home.as_encoded_bytes().starts_with(b"/"))?;
    Some(Key::of_home(Path::new(&home)))
}
