// SPDX-License-Identifier: LGPL-2.1-only
//! Where checkpoints go to: the one place where dump and serve meet.

use crate::dump::place::{Keep, master};
use crate::error::{Because, Error, Result};
use crate::image::file::{self, FileSink};
use crate::image::older::Renewal;
use crate::image::piped;
use crate::image::read::Image;
use crate::image::seal::Keys;
use crate::image::sink::Sink;
use crate::order;
use crate::proc::Pid;
use crate::serve::client::Client;
use crate::serve::upload;
use crate::settings::server::{Key, ServerName, Transfer};
use crate::settings::{Name, Settings, Template, Values, parse_switch, passphrase, stream};
use std::path::Path;

/// Makes the sink for a name, without waiting for a network.
///
/// # Errors
/// A file that cannot be written. What is wrong with a server, the sink tells later.
pub(crate) fn open(
    name: &Name,
    transfer: &Transfer,
    renewal: Option<Renewal>,
    environment: &[u8],
) -> Result<Box<dyn Sink>> {
    match name {
        Name::File(path) if let Some(renewal) = renewal => {
            Ok(Box::new(FileSink::renew(path, renewal)?))
        }
        Name::File(path) => Ok(Box::new(FileSink::create(path)?)),
        Name::Server(server) => Ok(Box::new(upload::sink(server.clone(), transfer.clone())?)),
        Name::Stream(name) => {
            Ok(Box::new(piped::to_command(stream::command(name)?, environment.to_vec())?))
        }
    }
}

/// The same where `-` is our standard output.
///
/// # Errors
/// As [`open`]; it is a terminal.
pub(crate) fn open_or_print(
    name: &Name,
    transfer: &Transfer,
    renewal: Option<Renewal>,
    environment: &[u8],
) -> Result<Box<dyn Sink>> {
    match name {
        Name::Stream(name) if name == "-" => Ok(Box::new(piped::to_output()?)),
        _ => open(name, transfer, renewal, environment),
    }
}

/// Deletes what is older than wanted, on the disk or on the server. What fails there leaves more than
/// wanted.
pub(crate) fn prune(name: &Name, transfer: &Transfer, keep: &Keep) {
    match name {
        Name::File(_) => file::prune(&keep.template, &keep.values, keep.count),
        Name::Server(server) => drop(prune_server(server, transfer, keep)),
        Name::Stream(_) => {}
    }
}

/// On a server nobody looks for the highest number before a checkpoint gets its own: what has a higher one
/// is of another run, and neither counts nor goes.
fn prune_server(server: &ServerName, transfer: &Transfer, keep: &Keep) -> Result<()> {
    let number = keep.template.number(&keep.values, server.to_string().as_bytes());
    let mut older = numbered(server, transfer, &keep.template, &keep.values)?;
    older.retain(|(other, _)| Some(*other) <= number);
    for (_, name) in older.iter().skip(keep.count as usize) {
        Client::connect(name, transfer)?.remove(name.path())?;
    }
    Ok(())
}

/// The checkpoints of a name on a server, the highest number first.
///
/// # Errors
/// The server's.
pub(crate) fn numbered(
    server: &ServerName,
    transfer: &Transfer,
    template: &Template,
    values: &Values,
) -> Result<Vec<(u64, ServerName)>> {
    let folder = server.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    let names = Client::connect(server, transfer)?.list(folder)?.into_iter();
    let names = names.map(|entry| server.sibling(entry.name));
    let number = |name: &ServerName| template.number(values, name.to_string().as_bytes());
    let mut names: Vec<_> = names.filter_map(|name| Some((number(&name)?, name))).collect();
    order::by_key(&mut names, |(number, _)| (u64::MAX - *number, 0));
    Ok(names)
}

/// Says why a checkpoint of this name could not be written, without leaving anything.
///
/// # Errors
/// The directory, or what has the name.
pub(crate) fn check(template: &Template, values: &Values) -> Result<()> {
    let existing = if template.is_counted() { template.existing(values)? } else { Vec::new() };
    let highest = existing.first().map_or(0, |(number, _)| *number);
    file::check(&template.expand(values, highest + 1))
}

/// Says at the start of a program why its checkpoints could not be written.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_said(settings: &Settings) -> Result<()> {
    if let Some(Name::Stream(name)) = &settings.name {
        stream::command(name)?;
    }
    if settings.encrypt == Some(true) {
        master(&settings.transfer)?;
    }
    if let Some(file) = settings.name.as_ref().and_then(Name::file) {
        let values = Values::of(Pid::own());
        return check(&Template::parse(file)?, &values);
    }
    settings.transfer.fallback.as_deref().map_or(Ok(()), file::check)
}

/// The same with the key of our home, where nothing is said of a key.
pub(crate) fn with_usual_key(mut settings: Settings) -> Settings {
    if settings.transfer.key.is_none() {
        settings.transfer.key = usual_key();
    }
    settings
}

/// Has encrypted images opened with the key that is said, or that of our home; a passphrase may be asked for.
///
/// # Errors
/// One that was said cannot be read.
pub(crate) fn open_images_with(key: Option<&Key>, may_ask: bool) -> Result<()> {
    if let Some(Key::Descriptor(fd)) = key {
        passphrase::say(*fd)?;
    }
    let file = key.cloned().or_else(usual_key).and_then(|key| key.path().map(Path::to_owned));
    Keys { file, may_ask }.hold();
    Ok(())
}

/// Refuses an image that is not encrypted where the user says, by option or environment, that they are: whoever can write
/// where it lies can put one of his own in the place of one that he cannot make.
///
/// # Errors
/// It is none, or the environment says something else.
pub(crate) fn refuse_plain(image: &Image, said: Option<bool>) -> Result<()> {
    let said = match (said, std::env::var_os("CKPT_ENCRYPT")) {
        (None, Some(value)) => Some(parse_switch(&value).because(|| "CKPT_ENCRYPT")?),
        (said, _) => said,
    };
    if said != Some(true) || image.is_sealed() {
        return Ok(());
    }
    let shown = image.path().display();
    Err(Error::new(format!("{shown} is not encrypted, as --encrypt says")).hint(
        "somebody may have put it there; without --encrypt (CKPT_ENCRYPT) it restarts, and ckpt -p PID --encrypt has the next ones \
         encrypted",
    ))
}

/// The key file of our home.
pub(crate) fn usual_key() -> Option<Key> {
    let home = std::env::var_os("HOME").filter(|home| home.as_encoded_bytes().starts_with(b"/"))?;
    Some(Key::of_home(Path::new(&home)))
}
