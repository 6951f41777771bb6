//! Where checkpoints go to: the one place where dump and serve meet.

use crate::error::Result;
use crate::image::file::FileSink;
use crate::image::write::Sink;
use crate::serve::upload::UploadSink;
use crate::settings::server::{Key, Transfer};
use crate::settings::{Name, Settings};
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
