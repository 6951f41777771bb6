// SPDX-License-Identifier: LGPL-2.1-only
//! The options that are no settings, but for those of the checkpoint server.

use super::Rows;
use super::entry::{Form, Kind, Opt, Page, Set, Variable};
use crate::error::Error;
use crate::resource::cpu::limit;
use crate::restart::Ids;
use crate::settings;

/// Stands before the settings, since it decides whose they are.
pub(super) const PID: Opt = Opt {
    short: Some('p'),
    long: "pid",
    value: Some(("PID", Kind::Pid)),
    help: "Enable checkpointing in the running process PID",
    description: "Enables checkpointing in the running process PID instead of starting a \
                      program. Under Yama's default (kernel.yama.ptrace_scope = 1) this needs \
                      root for processes that ckpt did not start.",
    forms: &[Form::Attach],
    required: true,
    set: Set::Draft(|draft, value| {
        draft.pid = Some(settings::parse_pid(value)?);
        Ok(())
    }),
    ..Opt::SWITCH
};

pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        long: "resume",
        value: Some(("any", Kind::Number)),
        optional: true,
        help: "Restart PROGRAM's checkpoint if there is one",
        description: "If the checkpoint of that name exists and is whole, restarts it instead of \
                      starting PROGRAM, so that one command line serves the first run and all \
                      later ones. A damaged checkpoint is named on standard error, and the one \
                      before it (of a name with %n) is taken; if there is none, PROGRAM is \
                      started from its beginning. Options and the environment change the \
                      configuration that was saved.\n\n\
                      A checkpoint of another executable, of other arguments, or of a run that began in \
                      another directory is refused; --resume=any restarts it all the same. So is one \
                      that others may have changed (see --trust).",
        forms: &[Form::Launch],
        set: Set::Draft(|draft, value| {
            draft.resume = Some(match value.as_encoded_bytes() {
                b"1" => false,
                b"any" => true,
                _ => {
                    let value = settings::quoted(value);
                    return Err(Error::new(format!("{value} is not known; there is --resume=any")));
                }
            });
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "probe",
        value: Some(("COMMAND", Kind::Program)),
        help: "--resume what COMMAND gives",
        description: "With --resume, where the checkpoint's name is a command (-n '|COMMAND'): this COMMAND (by \
                      /bin/sh) writes the newest checkpoint to its standard output, or nothing if there is none \
                      yet, and PROGRAM starts from its beginning. If it ends with another status than 0, nothing \
                      is started.",
        forms: &[Form::Launch],
        set: Set::Draft(|draft, value| {
            draft.probe = Some(value.to_owned());
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "trust",
        help: "Restart a checkpoint that others may have changed",
        description: "Restarts a checkpoint that belongs to somebody else than the user and root, that \
                      others may write to, or that lies where others may put another in its place. \
                      It runs with all rights of whoever restarts it. Without this --resume refuses \
                      such a checkpoint, and ckpt restart does when root calls it.",
        forms: &[Form::Launch, Form::Restart],
        set: Set::Draft(|draft, _| {
            draft.trust = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "replace",
        help: "Replace the checkpoint of another command line",
        description: "Lets checkpoints under the default name take the place of one that was saved by \
                      the same program with other arguments. Without this, and without -n, such a \
                      program is not started.",
        forms: &[Form::Launch],
        set: Set::Draft(|draft, _| {
            draft.replace = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "cpu",
        value: Some(("CPU", Kind::Cpu)),
        env: Some(Variable { name: "CKPT_CPU", value: "CPU" }),
        default: Some("native"),
        help: "Use no more of the CPU than CPU has",
        description: "Starts PROGRAM so that its checkpoints restart on every machine with at least \
                      CPU: x86-64-v1 to x86-64-v4, or features of this machine to do without, as \
                      /proc/cpuinfo names them (avx512f,avx2); native is all that this machine has. \
                      glibc and its dynamic linker, OpenBLAS, OpenSSL, the Intel MKL, numpy and the JVM \
                      are told by GLIBC_TUNABLES, LD_BIND_NOW, OPENBLAS_CORETYPE, OPENSSL_ia32cap, \
                      MKL_ENABLE_INSTRUCTIONS, NPY_DISABLE_CPU_FEATURES and JAVA_TOOL_OPTIONS, which are in the environment \
                      of PROGRAM only with this option. What asks the CPU itself is not told.",
        forms: &[Form::Launch],
        set: Set::Draft(|draft, value| {
            draft.cpu = Some(limit::parse(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "no-tty",
        help: "Restart without a terminal",
        description: "Leaves the terminal of the restart as it is, and needs none. Without this a \
                      terminal gets the settings that the program's had (an editor's, a shell's), \
                      where there is none that is said, and a program that reads keys as they are \
                      pressed is not restarted. With ckpt PROGRAM it goes with --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.no_tty = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "truncate-files",
        help: "Cut files that grew since the checkpoint",
        description: "Cuts the files that the program has open for writing and that have grown \
                      since the checkpoint back to their length at the checkpoint, so that the \
                      output becomes what an uninterrupted run writes. Without this a file that \
                      grew is named on standard error. With ckpt PROGRAM it goes with --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.truncate_files = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "ids",
        value: Some(("IDS", Kind::Number)),
        default: Some("auto"),
        help: "Process ids: keep, new or auto",
        description: "Which process ids a restarted program has. With auto, several processes, and one whose \
                      memory shows that it remembers its id, have those that they had, in a PID namespace of \
                      their own if others have them by now (docs/jobs.md says what that changes); one that does \
                      not has that of the checkpoint file which was executed. With keep, all have their own; \
                      where that is forbidden nothing is started. With new, none has. ckpt check tells what is \
                      possible here, ckpt info what is remembered. \
                      With ckpt PROGRAM it goes with --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, value| {
            draft.ids = Ids::parse(value)?;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "map-path",
        value: Some(("MAP", Kind::Number)),
        help: "Find files elsewhere: OLD=NEW",
        description: "MAP is OLD=NEW: the program's files and directories that were OLD or in OLD \
                      are looked for in NEW. Repeatable; the longest OLD that fits counts.",
        forms: &[Form::Stub, Form::Check],
        set: Set::Draft(|draft, value| {
            draft.map_path.0.push(settings::parse_pair(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "map-port",
        value: Some(("PORTS", Kind::Number)),
        env: Some(Variable { name: "CKPT_MAP_PORT", value: "OLD=NEW" }),
        help: "Have other ports: OLD=NEW",
        description: "PORTS is OLD=NEW, or several of these with commas between: what the program's TCP \
                      and UDP sockets had port OLD becomes port NEW, so that several restarts of one \
                      checkpoint may run on one machine. What the program itself remembers of its ports \
                      stays. Repeatable. With ckpt PROGRAM it goes with --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, value| {
            draft.map_port.0.extend(settings::parse_ports(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "cwd",
        value: Some(("DIR", Kind::File)),
        help: "Restart in the directory DIR",
        description: "The program's working directory is DIR after the restart, in place of that of the \
                      checkpoint.",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, value| {
            draft.cwd = Some(settings::parse_file(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "env",
        value: Some(("VARIABLE", Kind::Number)),
        help: "Give the program a variable: NAME=VALUE",
        description: "VARIABLE is NAME=VALUE: given to the program, which sees it if it asks for that (ckpt_given in ckpt.h, \
                      ckpt.given() and ckpt.ready() in Python). Repeatable.",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, value| {
            if !value.as_encoded_bytes().contains(&b'=') {
                let value = settings::quoted(value);
                return Err(Error::new(format!("{value} is not NAME=VALUE")));
            }
            draft.given.env.push(value.to_owned());
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "args",
        help: "Give the program all words that follow",
        description: "Gives the program the words that follow, whatever they are, as arguments, which it sees as \
                      the variables of --env: ./foo.ckpt --cwd run1 --args input.dat -v.",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.takes_rest = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "force-cpu",
        help: "Restart although the CPU lacks features",
        description: "Restarts although this CPU lacks features that the program may use. If it \
                      does use one, it dies of an illegal instruction (SIGILL).",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.force_cpu = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "json",
        help: "Print JSON",
        description: "Prints JSON in place of the table for people: one object, or for several FILEs \
                      and for ckpt ls and ckpt ps a list of them. Sizes are bytes.",
        forms: &[Form::Info, Form::Check, Form::List, Form::Ps],
        set: Set::Draft(|draft, _| {
            draft.json = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "maps",
        help: "Show mappings, a line each",
        description: "Shows mappings, a line each (with --json a list of objects).",
        forms: &[Form::Info],
        set: Set::Draft(|draft, _| {
            draft.table = Some(Rows::Maps);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "fds",
        help: "Show descriptors, a line each",
        description: "Shows descriptors, a line each (with --json a list of objects).",
        forms: &[Form::Info],
        set: Set::Draft(|draft, _| {
            draft.table = Some(Rows::Fds);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "threads",
        help: "Show threads, a line each",
        description: "Shows threads, a line each (with --json a list of objects).",
        forms: &[Form::Info],
        set: Set::Draft(|draft, _| {
            draft.table = Some(Rows::Threads);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "env",
        help: "Show the environment, a line each",
        description: "Shows the environment, a line each (with --json a list of objects).",
        forms: &[Form::Info],
        set: Set::Draft(|draft, _| {
            draft.table = Some(Rows::Env);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "stop",
        help: "End the process once it is saved",
        description: "Ends the process with status 0 once its checkpoint is whole; without this \
                      it goes on.",
        forms: &[Form::Save],
        set: Set::Draft(|draft, _| {
            draft.stop = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "all",
        help: "Save everything that runs under ckpt here",
        description: "Saves all that ckpt ps shows: yours, as root everybody's, each under its own name and \
                      with the rights of its user. Of a program with descendants that are saved with it \
                      there is one checkpoint. -n needs %p in NAME then.",
        forms: &[Form::Save],
        set: Set::Draft(|draft, _| {
            draft.all = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "jobs",
        value: Some(("N", Kind::Number)),
        default: Some("the number of processors"),
        help: "With --all: save N at a time",
        description: "With --all: so many programs are saved at a time.",
        forms: &[Form::Save],
        set: Set::Draft(|draft, value| {
            draft.jobs = Some(settings::parse_number(value, "a number of programs")?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "watch",
        help: "Show it anew every two seconds",
        description: "Shows the list anew every two seconds, until it is interrupted (^C).",
        forms: &[Form::Ps],
        set: Set::Draft(|draft, _| {
            draft.watch = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        short: Some('h'),
        long: "help",
        help: "Show this help",
        description: "Shows help about what stands before it.",
        forms: &[
            Form::Launch,
            Form::Attach,
            Form::Warm,
            Form::Save,
            Form::Ps,
            Form::Verify,
            Form::Info,
            Form::Core,
            Form::Cat,
            Form::Sdk,
            Form::Check,
            Form::Help,
            Form::Man,
            Form::Completions,
            Form::Stub,
            Form::Serve,
            Form::Keygen,
            Form::Restart,
            Form::List,
            Form::Get,
            Form::Put,
            Form::Remove,
        ],
        set: Set::Draft(|draft, _| {
            draft.page = Some(Page::Help);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        short: Some('V'),
        long: "version",
        help: "Show the version",
        description: "Shows the version of ckpt; of a checkpoint file, that of the ckpt which \
                      saved it.",
        forms: &[Form::Launch, Form::Attach, Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.page = Some(Page::Version);
            Ok(())
        }),
        ..Opt::SWITCH
    },
];
