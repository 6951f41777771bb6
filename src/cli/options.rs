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
    description: "Enables checkpointing in the running process PID instead of starting a program. With Yama's \
                      default setting (kernel.yama.ptrace_scope = 1) this needs root, unless ckpt started the process.",
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
        value: Some(("any", Kind::Any)),
        optional: true,
        help: "Restart PROGRAM's checkpoint if there is one",
        description: "If a complete checkpoint of that name exists, restarts it instead of starting PROGRAM, so that \
                      one command line serves for the first run and for all later ones. A damaged checkpoint is \
                      reported on standard error, and the one before it (of a name with %n) is used; if there is none, \
                      PROGRAM starts from the beginning. Options and environment variables change the saved settings.\n\n\
                      A checkpoint of another executable, with other arguments, or of a run that began in another \
                      directory is refused; --resume=any restarts it anyway. A checkpoint that others may have changed \
                      is refused, too (see --trust).",
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
        help: "With --resume, read the checkpoint from COMMAND",
        description: "For --resume when checkpoints go to a command (-n '|COMMAND'): this COMMAND, run by /bin/sh, \
                      writes the newest checkpoint to its standard output, or nothing if there is none yet; then \
                      PROGRAM starts from the beginning. If it exits with a status other than 0, nothing is started.",
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
        description: "Restarts a checkpoint that belongs to somebody other than you and root, that others can write \
                      to, or that is in a place where others can replace it. It runs with all your rights. Without \
                      this, --resume refuses such a checkpoint, and so does ckpt restart when run by root.",
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
        description: "Allows checkpoints with the default name to replace one that was saved by the same program with \
                      other arguments. Without this, and without -n, such a program is not started.",
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
        help: "Use only CPU features that CPU has",
        description: "Starts PROGRAM so that its checkpoints can restart on every machine that has at least CPU: \
                      x86-64-v1 to x86-64-v4, or a list of features of this machine not to use, named as in \
                      /proc/cpuinfo (avx512f,avx2); native means everything that this machine has. It sets \
                      GLIBC_TUNABLES, LD_BIND_NOW, OPENBLAS_CORETYPE, OPENSSL_ia32cap, MKL_ENABLE_INSTRUCTIONS, \
                      NPY_DISABLE_CPU_FEATURES and JAVA_TOOL_OPTIONS in PROGRAM's environment, which glibc and its \
                      dynamic linker, OpenBLAS, OpenSSL, Intel MKL, numpy and the JVM follow. Code that asks the CPU \
                      directly is not affected.",
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
        description: "Leaves the terminal of the restart as it is, and does not need one. Without this, the terminal \
                      gets the settings that the program's terminal had (an editor's, a shell's); without a terminal, \
                      a message says so, and a program that reads single key presses is not restarted. When starting \
                      PROGRAM, it applies to --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.restart.no_tty = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "truncate-files",
        help: "Cut files that grew since the checkpoint",
        description: "Cuts files that the program has open for writing, and that have grown since the checkpoint, back \
                      to their length at the checkpoint, so that the output is that of an uninterrupted run. Without \
                      this, such files are reported on standard error. When starting PROGRAM, it applies to --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.restart.truncate_files = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "ids",
        value: Some(("IDS", Kind::Ids)),
        default: Some("auto"),
        help: "Process ids: keep, new or auto",
        description: "Which process ids a restarted program has. With auto, several processes, or one whose memory \
                      shows that it remembers its id, keep their ids, in a PID namespace of their own if the ids are \
                      in use (docs/jobs.md says what changes then); any other process has the id of the checkpoint \
                      file's process. With keep, all keep their ids; where that is not possible nothing is started. \
                      With new, none does. ckpt check shows what is possible here, ckpt info what a checkpoint \
                      remembers. When starting PROGRAM, it applies to --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, value| {
            draft.restart.ids = Ids::parse(value)?;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "map-path",
        value: Some(("MAP", Kind::Number)),
        help: "Find files elsewhere: OLD=NEW",
        description: "MAP is OLD=NEW: files and directories of the program that were OLD or inside OLD are looked up \
                      in NEW. Repeatable; the longest matching OLD wins.",
        forms: &[Form::Stub, Form::Check],
        set: Set::Draft(|draft, value| {
            draft.restart.map_path.0.push(settings::parse_pair(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "map-port",
        value: Some(("PORTS", Kind::Number)),
        env: Some(Variable { name: "CKPT_MAP_PORT", value: "OLD=NEW" }),
        help: "Change port numbers: OLD=NEW",
        description: "PORTS is OLD=NEW, or several of these separated by commas: TCP and UDP sockets that had port OLD \
                      get port NEW, so that several restarts of one checkpoint can run on one machine. Port numbers \
                      that the program itself remembers do not change. Repeatable. When starting PROGRAM, it applies \
                      to --resume.",
        forms: &[Form::Launch, Form::Stub],
        set: Set::Draft(|draft, value| {
            draft.restart.map_port.0.extend(settings::parse_ports(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "cwd",
        value: Some(("DIR", Kind::File)),
        help: "Restart in the directory DIR",
        description: "Uses DIR as the program's working directory after the restart, instead of the saved one.",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, value| {
            draft.restart.cwd = Some(settings::parse_file(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "env",
        value: Some(("VARIABLE", Kind::Number)),
        help: "Give the program a variable: NAME=VALUE",
        description: "Passes VARIABLE (NAME=VALUE) to the program, which can ask for it (ckpt_given in ckpt.h; \
                      ckpt.given() and ckpt.ready() in Python). Repeatable.",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, value| {
            if !value.as_encoded_bytes().contains(&b'=') {
                let value = settings::quoted(value);
                return Err(Error::new(format!("{value} is not NAME=VALUE")));
            }
            draft.restart.given.env.push(value.to_owned());
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "args",
        help: "Give the program all words that follow",
        description: "Passes all following words to the program as arguments, which it can ask for like the variables \
                      of --env: ./foo.ckpt --cwd run1 --args input.dat -v.",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.takes_rest = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "force-cpu",
        help: "Restart although this CPU lacks features",
        description: "Restarts even though this CPU lacks features that the program may use. If it uses one, it dies \
                      with an illegal instruction (SIGILL).",
        forms: &[Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.restart.force_cpu = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "json",
        help: "Print JSON",
        description: "Prints JSON instead of a table: one object, or a list of objects for several FILEs and for ckpt \
                      ls and ckpt ps. Sizes are in bytes.",
        forms: &[Form::Info, Form::Check, Form::List, Form::Ps],
        set: Set::Draft(|draft, _| {
            draft.json = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "maps",
        help: "Show the mappings, one per line",
        description: "Shows the mappings, one per line (with --json, a list of objects).",
        forms: &[Form::Info],
        set: Set::Draft(|draft, _| {
            draft.table = Some(Rows::Maps);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "fds",
        help: "Show the descriptors, one per line",
        description: "Shows the descriptors, one per line (with --json, a list of objects).",
        forms: &[Form::Info],
        set: Set::Draft(|draft, _| {
            draft.table = Some(Rows::Fds);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "threads",
        help: "Show the threads, one per line",
        description: "Shows the threads, one per line (with --json, a list of objects).",
        forms: &[Form::Info],
        set: Set::Draft(|draft, _| {
            draft.table = Some(Rows::Threads);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "env",
        help: "Show the environment, one variable per line",
        description: "Shows the environment, one variable per line (with --json, a list of objects).",
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
        description: "Ends the process with status 0 once its checkpoint is complete; without this it continues.",
        forms: &[Form::Save],
        set: Set::Draft(|draft, _| {
            draft.stop = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "all",
        help: "Save every program under ckpt on this machine",
        description: "Saves every program that ckpt ps lists (yours; as root everybody's), each to its own name and \
                      with its user's rights. A program and the descendants saved with it make one checkpoint. With \
                      -n, NAME must contain %p.",
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
        description: "With --all: how many programs are saved at the same time.",
        forms: &[Form::Save],
        set: Set::Draft(|draft, value| {
            draft.jobs = Some(settings::parse_number(value, "a number of programs")?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "watch",
        help: "Refresh the list every two seconds",
        description: "Refreshes the list every two seconds until interrupted (^C).",
        forms: &[Form::Ps],
        set: Set::Draft(|draft, _| {
            draft.watch = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "rsh",
        value: Some(("COMMAND", Kind::Program)),
        default: Some("ssh"),
        help: "Reach the other host by COMMAND",
        description: "Runs COMMAND, split at blanks, with two more arguments: HOST and a line for the shell there. \
                      It has to connect the standard streams of both, as ssh does: 'ssh -p 2222 -i KEY'. The \
                      default is ssh, told to notice a broken connection within 15 seconds.",
        forms: &[Form::Move],
        set: Set::Draft(|draft, value| {
            draft.rsh = Some(value.to_owned());
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        short: Some('h'),
        long: "help",
        help: "Show this help",
        description: "Shows help for the subcommand before it, or for ckpt.",
        forms: &[
            Form::Launch,
            Form::Attach,
            Form::Warm,
            Form::Save,
            Form::Ps,
            Form::Move,
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
        description: "Shows the version of ckpt; for a checkpoint file, of the ckpt that saved it.",
        forms: &[Form::Launch, Form::Attach, Form::Stub],
        set: Set::Draft(|draft, _| {
            draft.page = Some(Page::Version);
            Ok(())
        }),
        ..Opt::SWITCH
    },
];
