// SPDX-License-Identifier: LGPL-2.1-only
//! Where a checkpoint goes, and with whose rights it gets there.

use super::Demand;
use crate::error::{Error, Result};
use crate::image::base::Base;
use crate::image::file::Abreast;
use crate::image::older::{Id, Older, Renewal};
use crate::image::seal::{Master, Seal};
use crate::image::sink::Sink;
use crate::image::write::Writer;
use crate::inject::region::Region;
use crate::proc::Process;
use crate::rights::{self, Compared, Rights};
use crate::settings::server::{self, Transfer};
use crate::settings::{Name, Settings, Template, Values, stream};
use ckpt_abi::image::Chunk;
use ckpt_abi::region::Config;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Who says where a checkpoint goes.
#[derive(Clone)]
pub(crate) enum Whose {
    /// We do, of a process that may do less than we may: nothing of its configuration counts.
    Ours,
    /// The process does. Where we may do more, its files are touched with these rights of its own.
    Its(Option<Rights>),
}

impl Whose {
    /// Decides whose word counts.
    ///
    /// # Errors
    /// The process may do less than we may, it is not said where its checkpoint goes, and we cannot
    /// act with its rights; or it is gone.
    pub(crate) fn of(process: &Process, named: bool) -> Result<Self> {
        match (rights::compare(process)?, named) {
            (Compared::Equal, _) => Ok(Self::Its(None)),
            (_, true) => Ok(Self::Ours),
            (Compared::More(rights), false) => Ok(Self::Its(Some(rights))),
            (Compared::Other(why), false) => Err(why),
        }
    }

    /// Whether the process's configuration counts.
    pub(crate) fn is_its(&self) -> bool {
        matches!(self, Self::Its(_))
    }

    /// Touches files as the one who has named them may.
    ///
    /// # Errors
    /// The kernel does not let us have these rights.
    pub(crate) fn touch<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        match self {
            Self::Its(Some(rights)) => rights.with(work),
            _ => Ok(work()),
        }
    }
}

/// The place of one checkpoint.
pub(crate) struct Place {
    /// As [`Name::written`].
    pub name: PathBuf,
    /// How it gets to a server.
    transfer: Transfer,
    /// Its content is compressed.
    compress: bool,
    /// The key that it is encrypted with.
    master: Option<Master>,
    keep: Keep,
    pub(super) whose: Whose,
    /// Of a command that gets the image: NAME=VALUE, with a null byte behind each.
    environment: Vec<u8>,
}

/// Which checkpoints of a name stay.
pub(crate) struct Keep {
    /// How many of a counted name are kept; 0: all.
    pub count: u32,
    /// What the name was made of.
    pub template: Template,
    /// And with.
    pub values: Values,
}

impl Place {
    /// The place by name `template`, as a process is configured and the caller asks. `generation` is raised
    /// to the highest number that there is: the highest is the newest, whatever was restarted. A forked
    /// process has a fallback file of its own.
    ///
    /// # Errors
    /// A directory that cannot be looked through, or a configuration that says nothing.
    pub(crate) fn find(
        request: &Demand,
        (whose, foreseen): (Whose, Option<Foreseen>),
        template: Template,
        config: &Config,
        forked: bool,
        generation: &mut u64,
    ) -> Result<Self> {
        let values = Values::of(request.pid());
        let existing = || match template.is_counted() {
            true => template.existing(&values),
            false => Ok(Vec::new()),
        };
        let highest = whose.touch(existing)??.first().map_or(0, |(number, _)| *number);
        *generation = (*generation).max(highest);
        let name = template.expand(&values, generation.saturating_add(1));
        let (settings, count) = match &whose {
            Whose::Ours => (request.settings.clone(), 0),
            Whose::Its(rights) => (settings(request, config, rights.is_some())?, config.keep),
        };
        let (mut transfer, compress) = (settings.transfer, settings.compress == Some(true));
        let foreseen = foreseen.filter(|(key, _)| transfer.key.as_ref() == Some(key));
        let master = match (settings.encrypt, foreseen) {
            (Some(true), Some((_, master))) => Some(master?),
            (Some(true), None) => Some(whose.touch(|| master(&transfer))??),
            _ => None,
        };
        if let Some(file) = transfer.fallback.as_mut().filter(|_| forked) {
            file.as_mut_os_string().push(format!(".{}", request.pid()));
        }
        let environment = match is_stream(&name) {
            true => environment(request, &values, *generation + 1)?,
            false => Vec::new(),
        };
        if forked && is_stream(&name) && !template.has_pid() {
            let pid = request.pid();
            return Err(Error::new(format!(
                "what the command stores of process {pid}, a forked one, would take the place of its parent's"
            ))
            .hint("put %p, the process id, into the command"));
        }
        let keep = Keep { count, template, values };
        Ok(Self { name, transfer, compress, master, keep, whose, environment })
    }

    /// Makes the sink.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn open(
        &self,
        open: super::Open,
        renewal: Option<Renewal>,
    ) -> Result<Box<dyn Sink>> {
        let name = Name::from_bytes(self.name.as_os_str().as_bytes())?;
        if let (Name::Stream(_), Whose::Its(Some(rights))) = (&name, &self.whose)
            && !rights.are_a_users()
        {
            let sentence = "the program may do less than we, and its command would get our rights";
            return Err(Error::new(sentence).hint("say where the checkpoint goes with -n NAME"));
        }
        let sink =
            self.whose.touch(|| open(&name, &self.transfer, renewal, &self.environment))??;
        Ok(Box::new(Guarded { sink: Some(sink), whose: self.whose.clone() }))
    }

    /// Begins an image behind the stub.
    ///
    /// # Errors
    /// It cannot be encrypted.
    pub(crate) fn image<'a>(&self, sink: &'a mut dyn Sink, stub: Vec<u8>) -> Result<Writer<'a>> {
        let base = sink.base();
        let writer = Writer::new(sink, stub);
        let writer = match &self.master {
            Some(master) => writer.sealed(Seal::begin(master)?),
            None => writer.over(base),
        };
        Ok(if self.compress { writer.compressed() } else { writer })
    }

    /// For sentences.
    pub(crate) fn shown(&self) -> PathBuf {
        stream::shown_name(self.name.as_os_str()).into()
    }

    /// Whether it is a file's; a resolved name of one is absolute.
    fn is_file(&self) -> bool {
        self.name.is_absolute()
    }

    /// Whether it is a file of one name, as it is, as the process is configured: such a one can be brought up
    /// to date.
    pub(crate) fn is_plain(&self) -> bool {
        let counted = self.keep.template.is_counted();
        let elsewhere = !self.is_file() || self.transfer.fallback.is_some();
        let changed = self.compress || self.master.is_some();
        !elsewhere && !counted && !changed && self.whose.is_its()
    }

    /// Whether what goes there is encrypted.
    pub(crate) fn is_sealed(&self) -> bool {
        self.master.is_some()
    }

    /// Reads what the process has open.
    ///
    /// # Errors
    /// As [`Whose::touch`].
    pub(crate) fn touch<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.whose.touch(work)
    }

    /// The file for a checkpoint that a server or a command did not take, if there is one.
    pub(crate) fn fallback(&self) -> Option<PathBuf> {
        self.transfer.fallback.clone().filter(|_| !self.is_file())
    }

    /// Deletes what is older than wanted, now that this one is whole.
    pub(crate) fn prune(&self, prune: super::Prune) {
        if let Ok(name) = Name::from_bytes(self.name.as_os_str().as_bytes())
            && self.keep.count > 0
            && self.keep.template.is_counted()
        {
            let _ = self.whose.touch(|| prune(&name, &self.transfer, &self.keep));
        }
    }
}

/// A key that was named, and what was read of it.
pub(crate) type Foreseen = (server::Key, Result<Master>);

/// Reads the key of encrypted checkpoints before the process stands still: its file may be one of a network.
#[inline(never)]
pub(super) fn foresee(request: &Demand, whose: &Whose) -> Option<Foreseen> {
    let settings = match (whose, Region::of(&request.process).ok().flatten()) {
        (Whose::Its(rights), Some((_, region))) => {
            settings(request, &region.control.config, rights.is_some()).ok()?
        }
        _ => request.settings.clone(),
    };
    settings.encrypt.filter(|encrypts| *encrypts)?;
    let key = settings.transfer.key?;
    let master = whose.touch(|| Master::of(&key)).and_then(|read| read);
    Some((key, master))
}

/// How it is written, and gets to a server: as the process is configured and the caller asks; the key of the caller's
/// home is not for a process that may not read it.
fn settings(request: &Demand, config: &Config, foreign: bool) -> Result<Settings> {
    let mut transfer = request.settings.transfer.clone();
    if foreign && matches!(transfer.key, Some(server::Key::Usual(_))) {
        transfer.key = None;
    }
    let Settings { compress, encrypt, .. } = request.settings;
    let asked = Settings { transfer, compress, encrypt, ..Settings::default() };
    Settings::from_config(&asked.apply(*config))
}

/// The key of encrypted checkpoints.
///
/// # Errors
/// No key is named, or it cannot be read.
pub(crate) fn master(transfer: &Transfer) -> Result<Master> {
    let key = transfer.key.as_ref().ok_or_else(|| {
        Error::new("--encrypt needs a key, and none is named")
            .hint("make one with ckpt keygen FILE, and name it with --key FILE or CKPT_KEY, or say --passphrase-fd N")
    })?;
    Master::of(key)
}

fn is_stream(name: &std::path::Path) -> bool {
    stream::is_one(name.as_os_str().as_bytes())
}

/// The environment of a command that gets an image: that of who has named it, and what the image is of.
fn environment(request: &Demand, values: &Values, number: u64) -> Result<Vec<u8>> {
    let before = match &request.settings.name {
        None => request.process.environment()?,
        Some(_) => Process::own()?.environment()?,
    };
    let ours: [(&str, OsString); 4] = [
        ("CKPT_PID", values.pid.to_string().into()),
        ("CKPT_HOST", values.host.clone()),
        ("CKPT_NUMBER", number.to_string().into()),
        (
            "CKPT_PROGRAM",
            std::fs::read_link(request.process.path("exe")).unwrap_or_default().into(),
        ),
    ];
    let known = |variable: &&[u8]| {
        let name = variable.split(|byte| *byte == b'=').next().unwrap_or_default();
        !name.is_empty() && ours.iter().all(|(ours, _)| ours.as_bytes() != name)
    };
    let mut all: Vec<u8> =
        before.split(|byte| *byte == 0).filter(known).flat_map(|it| [it, b"\0"].concat()).collect();
    for (name, value) in &ours {
        all.extend([name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
    }
    Ok(all)
}

/// A sink whose file is touched with the rights of who has named it.
struct Guarded {
    sink: Option<Box<dyn Sink>>,
    whose: Whose,
}

impl Sink for Guarded {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.sink.as_mut().map_or(Ok(()), |sink| sink.write_at(offset, bytes))
    }

    fn abreast(&self) -> Option<Abreast> {
        self.sink.as_ref()?.abreast()
    }

    fn base(&mut self) -> Option<Base> {
        self.sink.as_mut()?.base()
    }

    fn kept(&mut self) -> Result<Option<(Option<Older>, Id)>> {
        self.sink.as_mut().map_or(Ok(None), |sink| sink.kept())
    }

    fn laid_out(&mut self, chunks: Vec<Chunk>, run: [u64; 2], remembers: bool) {
        if let Some(sink) = &mut self.sink {
            sink.laid_out(chunks, run, remembers);
        }
    }

    fn settle(&mut self) {
        self.sink.iter_mut().for_each(|sink| sink.settle());
    }

    fn is_stream(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| sink.is_stream())
    }

    fn may_wait(&mut self) {
        self.sink.iter_mut().for_each(|sink| sink.may_wait());
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        let Self { sink, whose } = self;
        let seal = || sink.as_mut().map_or(Ok(()), |sink| sink.seal(len));
        whose.touch(seal)?
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // A file that was not sealed loses its temporary name.
        let sink = self.sink.take();
        let _ = self.whose.touch(|| drop(sink));
    }
}
