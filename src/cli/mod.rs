// SPDX-License-Identifier: LGPL-2.1-only
//! The command line: one static table (`table.rs`) drives parsing, help, the man page and the
//! shell completions, so that none of them can know an option that another does not.

mod completions;
mod entry;
mod forms;
mod help;
mod lookup;
mod man;
mod nearest;
mod network;
mod options;
mod parse;
mod table;
#[cfg(test)]
mod tests;

use crate::proc::Pid;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::resource::cpu::limit::CpuLimit;
use crate::restart::{Ids, MapPath, MapPort, Options};
use crate::settings::Settings;
use crate::settings::server::{ServerName, Transfer};

pub(crate) use completions::{Shell, completions};
pub(crate) use man::man_page;
pub(crate) use nearest::nearest_subcommand;
pub(crate) use parse::{environment, parse, parse_ckptsrv, parse_stub};

/// What the ckpt command is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Execute a program with checkpointing enabled.
    Launch {
        /// From the options and the environment.
        settings: Settings,
        /// What the program may use of the CPU.
        cpu: Option<CpuLimit>,
        /// As it was written; looked up in PATH if it has no slash.
        program: OsString,
        /// The program's arguments, without its name.
        args: Vec<OsString>,
        /// Whether its checkpoint is restarted if there is one.
        resume: Option<Resume>,
        /// Whether its default name may replace another program's checkpoint.
        replace: bool,
    },
    /// Run a program until it is ready.
    Warm {
        /// From the options and the environment, with the name.
        settings: Settings,
        /// As it was written.
        program: OsString,
        /// Its arguments.
        args: Vec<OsString>,
    },
    /// Enable checkpointing in a running process.
    Attach {
        /// The process id.
        pid: Pid,
        /// From the options and the environment.
        settings: Settings,
    },
    /// Save a running process now.
    Save {
        /// The process id.
        pid: Pid,
        /// End the process after the checkpoint.
        stop: bool,
        /// Only the name can be said here.
        settings: Settings,
    },
    /// Save all that runs under ckpt here.
    SaveAll {
        /// End each after its checkpoint.
        stop: bool,
        /// How many at a time; None: as many as there are processors.
        jobs: Option<usize>,
        /// As of [`Command::Save`].
        settings: Settings,
    },
    /// Show what runs under ckpt here.
    Ps {
        /// As JSON.
        json: bool,
        /// Again and again.
        watch: bool,
    },
    /// Take a running process to another host.
    Move {
        /// The process id.
        pid: Pid,
        /// The command that connects to the host, with its arguments; None: ssh.
        rsh: Option<OsString>,
        /// The host, and words for the checkpoint, there.
        words: Vec<OsString>,
    },
    /// Be the other end of that.
    Receive {
        /// A directory of its own.
        dir: PathBuf,
    },
    /// Write the library for programs that call ckpt themselves.
    Sdk {
        /// Where it goes.
        dir: PathBuf,
    },
    /// The assistant of a program's C API, as the payload starts it.
    Assist {
        /// The process that it works for.
        pid: Pid,
    },
    /// Check every byte of checkpoints.
    Verify {
        /// Files and names on servers.
        files: Vec<OsString>,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// Show what checkpoints hold.
    Info {
        /// Files and names on servers.
        files: Vec<OsString>,
        /// One by one.
        table: Option<Rows>,
        /// As JSON.
        json: bool,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// Write core files.
    Core {
        /// A file or a name on a server.
        file: OsString,
        /// Where they go.
        out: Option<PathBuf>,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// Write out a file that travels in a checkpoint.
    Cat {
        /// A file or a name on a server.
        file: OsString,
        /// The number of a descriptor, or PID:NUMBER.
        descriptor: OsString,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// Show what this machine can do, or whether checkpoints can restart here.
    Check {
        /// Files, names on servers, process ids.
        words: Vec<OsString>,
        /// Where their files are here.
        map_path: MapPath,
        /// As JSON.
        json: bool,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// Be a checkpoint server.
    Serve(ServeOptions),
    /// Make a key.
    Keygen {
        /// The new file.
        file: PathBuf,
    },
    /// Execute a checkpoint by its name, in a file or on a server.
    Restart {
        /// As it was written.
        name: OsString,
        /// From the options and the environment.
        transfer: Transfer,
        /// For the checkpoint file.
        args: Vec<OsString>,
        /// Also one that others may have changed.
        trust: bool,
    },
    /// List a server's checkpoints.
    List {
        /// `cssrv://HOST[:PORT][/FOLDER]`
        folder: ServerName,
        /// From the options and the environment.
        transfer: Transfer,
        /// As JSON.
        json: bool,
    },
    /// Fetch a checkpoint into a file.
    Get {
        /// The checkpoint.
        name: ServerName,
        /// The file; None: the last part of the name.
        file: Option<PathBuf>,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// Send a file to a server.
    Put {
        /// The file.
        file: PathBuf,
        /// The checkpoint.
        name: ServerName,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// Remove a checkpoint from a server.
    Remove {
        /// The checkpoint.
        name: ServerName,
        /// From the options and the environment.
        transfer: Transfer,
    },
    /// The dumper, as the payload starts it.
    Dump {
        /// The process id.
        pid: Pid,
    },
    /// The monitor of a process.
    Monitor {
        /// The process id.
        pid: Pid,
    },
    /// Print this text on standard output.
    Help(String),
    /// Nothing was said: print this text on standard error and exit with status 125.
    Usage(String),
    /// Print [`version`].
    Version,
    /// Print [`man_page`].
    Man,
    /// Print [`completions()`].
    Completions(Shell),
}

/// What is shown of a checkpoint one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    Maps,
    Fds,
    Threads,
    Env,
}

/// How a program is restarted from its checkpoint in place of being started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resume {
    /// Also a checkpoint of another run.
    pub any: bool,
    /// Also one that others may have changed.
    pub trust: bool,
    /// The command that gives the newest checkpoint of a name that is a command.
    pub probe: Option<OsString>,
    /// [`Options::truncate_files`].
    pub truncate_files: bool,
    /// [`Options::no_tty`].
    pub no_tty: bool,
    /// [`Options::map_port`].
    pub map_port: MapPort,
    /// [`Options::ids`].
    pub ids: Ids,
}

/// How a server is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServeOptions {
    /// Called as ckptsrv: as in the original manual, without keys and in /tmp.
    pub original: bool,
    /// The port; None: 10301.
    pub port: Option<u16>,
    /// The directory.
    pub directory: Option<PathBuf>,
    /// Addresses to listen on; empty: all.
    pub listen: Vec<String>,
    /// Most bytes of an image.
    pub max_bytes: Option<u64>,
    /// Most bytes of all.
    pub quota: Option<u64>,
    /// Most connections.
    pub max_clients: Option<usize>,
    /// Seconds that a connection may be silent.
    pub timeout: Option<u64>,
    /// JSON lines.
    pub json: bool,
    /// The directory with the keys of users.
    pub users: Option<PathBuf>,
    /// Where it tells of itself.
    pub metrics: Option<String>,
    /// Store whole files.
    pub whole: bool,
    /// Look at what is stored, and serve nothing.
    pub check: bool,
    /// The key, or none.
    pub transfer: Transfer,
}

/// What a checkpoint file is asked to do when it is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StubCommand {
    /// Restart the program.
    Restart(Box<Options>),
    /// Print this text on standard output.
    Help(String),
    /// Print [`version`].
    Version,
}

/// "ckpt 0.1.0".
pub(crate) fn version() -> String {
    format!("ckpt {}", env!("CARGO_PKG_VERSION"))
}
