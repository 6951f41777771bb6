// SPDX-License-Identifier: LGPL-2.1-only
//! The ways to call ckpt, but for those of the checkpoint server.

use super::entry::{Entry, Form, Kind, Operand};

pub(super) const FORMS: &[Entry] = &[
    Entry {
        form: Form::Launch,
        word: None,
        operand: Some(Operand { name: "PROGRAM", kind: Kind::Program, optional: false }),
        help: "Run PROGRAM so that it can be checkpointed",
        long: "Runs PROGRAM with checkpointing enabled. PROGRAM has the process id, streams, \
               environment and exit status that it would have without ckpt. Options of ckpt stand \
               before PROGRAM; everything after it belongs to PROGRAM. A program with the name \
               of a subcommand is run with '--' before it: ckpt -- info.\n\n\
               The checkpoint signal (SIGTSTP, which ^Z sends) saves the program to its \
               checkpoint file and ends it; with -c it goes on.",
        hidden: false,
    },
    Entry {
        form: Form::Attach,
        word: None,
        operand: None,
        help: "Enable checkpointing in a process that already runs",
        long: "Enables checkpointing in the running process PID, as if it had been started by \
               ckpt. Done again, it only changes the configuration to what is said. A relative \
               checkpoint name is taken from the process's working directory.",
        hidden: false,
    },
    Entry {
        form: Form::Warm,
        word: Some("warm"),
        operand: Some(Operand {
            name: "NAME PROGRAM [ARGS...]",
            kind: Kind::File,
            optional: false,
        }),
        help: "Save PROGRAM where it is ready, for quick starts",
        long: "Runs PROGRAM until it calls ckpt_ckpt() (in Python ckpt.ready()), where it has loaded what each \
               run needs; saves it as NAME, and ends it. Each restart of NAME begins there, with the arguments, \
               variables and directory of its --args, --env and --cwd. The exit status is 0 if there is a \
               checkpoint; a PROGRAM that ends before is an error.",
        hidden: false,
    },
    Entry {
        form: Form::Save,
        word: Some("save"),
        operand: Some(Operand { name: "PID", kind: Kind::Running, optional: true }),
        help: "Checkpoint a running process now",
        long: "Checkpoints the process PID from outside, without any signal to it, whether or \
               not it was started by ckpt and even if it blocks the checkpoint signal. Waits \
               until the checkpoint is written, then prints its name, its bytes, and how long \
               the program stood still. The program goes on unless --stop is given.\n\n\
               Without -n the checkpoint gets the name that the process is configured with, \
               else its program's base name and \".ckpt\" in its working directory.\n\n\
               With --all in place of PID it saves everything that ckpt ps shows, with a line for \
               each; the exit status is 0 if all are saved, 1 if some are not.",
        hidden: false,
    },
    Entry {
        form: Form::Ps,
        word: Some("ps"),
        operand: None,
        help: "List what runs under ckpt here",
        long: "Lists the programs that run under ckpt on this machine, yours, and as root everybody's: \
               the process id by which each is saved, its program, since when it runs (UTC), its period, \
               how long ago its last whole checkpoint was, its size and how long the program stood still \
               for it, when the next one is due, its name, and what became of the last attempt. Nothing \
               is stopped for it.",
        hidden: false,
    },
    Entry {
        form: Form::Verify,
        word: Some("verify"),
        operand: Some(Operand { name: "FILE...", kind: Kind::File, optional: false }),
        help: "Check that checkpoints are whole",
        long: "Reads each checkpoint FILE, which may be cssrv://HOST[:PORT]/NAME, and compares every \
               byte of it with its checksums. The exit status is 0 if all are whole; else a sentence \
               says what is damaged.",
        hidden: false,
    },
    Entry {
        form: Form::Info,
        word: Some("info"),
        operand: Some(Operand { name: "FILE...", kind: Kind::File, optional: false }),
        help: "Show what checkpoints hold",
        long: "Shows which program each checkpoint FILE (or cssrv://HOST[:PORT]/NAME) holds, its \
               arguments, where it was saved, its sizes, and what is not in it. With --maps, --fds, \
               --threads or --env: its mappings, descriptors, threads or environment, a line each.",
        hidden: false,
    },
    Entry {
        form: Form::Core,
        word: Some("core"),
        operand: Some(Operand { name: "FILE [OUT]", kind: Kind::File, optional: false }),
        help: "Make core files for a debugger of a checkpoint",
        long: "Writes the checkpoint FILE (or cssrv://HOST[:PORT]/NAME) as an ELF core file, which gdb and \
               lldb open: threads, registers, memory, mapped files. It is OUT (core if none is named); \
               of a checkpoint with several processes OUT.PID for each. A file that is there is not \
               replaced. What is as in a mapped file the debugger reads from that: gdb PROGRAM OUT.",
        hidden: false,
    },
    Entry {
        form: Form::Cat,
        word: Some("cat"),
        operand: Some(Operand { name: "FILE DESCRIPTOR", kind: Kind::File, optional: false }),
        help: "Write out a file that travels in a checkpoint",
        long: "Writes the content of a file without a name, or of one that --embed-files has taken along, to \
               standard output. DESCRIPTOR is the number under which the program had it open (ckpt info \
               --fds FILE), or PID:NUMBER of one of several processes.",
        hidden: false,
    },
    Entry {
        form: Form::Check,
        word: Some("check"),
        operand: Some(Operand { name: "FILE|PID...", kind: Kind::File, optional: true }),
        help: "Show what can be done here, or with a checkpoint or a process",
        long: "Without FILE: tries the abilities of the kernel that matter to ckpt, and shows yes, no \
               with the setting to change, or what is done in its place. With FILE (or \
               cssrv://HOST[:PORT]/NAME): shows what the checkpoint expects (kernel, CPU, files) and \
               whether this machine has it; the exit status is 0 if it can restart here, 1 if it \
               cannot, 125 if it is damaged. With PID: shows where and when that process is saved, \
               and whether it takes the checkpoint signal for itself; the exit status is 1 if it \
               cannot be saved, or not by its signal.",
        hidden: false,
    },
    Entry {
        form: Form::Help,
        word: Some("help"),
        operand: Some(Operand { name: "SUBCOMMAND", kind: Kind::Subcommand, optional: true }),
        help: "Show help, also about one subcommand",
        long: "Shows all that is said of SUBCOMMAND, or without one the same as ckpt --help.",
        hidden: false,
    },
    Entry {
        form: Form::Man,
        word: Some("man"),
        operand: None,
        help: "Print the manual page",
        long: "Prints the manual page ckpt(1) as roff. To read it: ckpt man | man -l -",
        hidden: false,
    },
    Entry {
        form: Form::Completions,
        word: Some("completions"),
        operand: Some(Operand { name: "SHELL", kind: Kind::Shell, optional: false }),
        help: "Print completions for bash, zsh or fish",
        long: "Prints a script that teaches SHELL (bash, zsh or fish) to complete ckpt's command \
               line.\n\n\
               bash: ckpt completions bash > ~/.local/share/bash-completion/completions/ckpt\n\n\
               zsh: ckpt completions zsh > a file _ckpt in a directory of $fpath\n\n\
               fish: ckpt completions fish > ~/.config/fish/completions/ckpt.fish",
        hidden: false,
    },
    Entry {
        form: Form::Sdk,
        word: Some("sdk"),
        operand: Some(Operand { name: "DIR", kind: Kind::File, optional: false }),
        help: "Write libckpt.so and ckpt.h below DIR",
        long: "Writes what programs need that take checkpoints of themselves: DIR/lib/libckpt.so \
               (to link with -lckpt or to name in LD_PRELOAD), DIR/include/ckpt.h, a file for \
               pkg-config, a Python module and manual pages. Programs linked with the library, \
               preloaded with it or spawned by one that is preloaded have checkpointing enabled \
               and read the CKPT_ variables when they start.",
        hidden: false,
    },
    Entry {
        form: Form::Assist,
        word: Some("__assist"),
        operand: Some(Operand { name: "PID", kind: Kind::Pid, optional: false }),
        help: "Do what a program's C API asks for",
        long: "What the payload starts; not for users.",
        hidden: true,
    },
    Entry {
        form: Form::Dump,
        word: Some("__dump"),
        operand: Some(Operand { name: "PID", kind: Kind::Pid, optional: false }),
        help: "Be the dumper of a process",
        long: "What the payload starts; not for users.",
        hidden: true,
    },
    Entry {
        form: Form::Monitor,
        word: Some("__monitor"),
        operand: Some(Operand { name: "PID", kind: Kind::Pid, optional: false }),
        help: "Be the monitor of a process",
        long: "What takes the periodic checkpoints; not for users.",
        hidden: true,
    },
    Entry {
        form: Form::Stub,
        word: None,
        operand: None,
        help: "Restart the program from its checkpoint file",
        long: "When the checkpoint file is executed the program goes on where it was saved, any number \
               of times. The environment of the program is the saved one; that of the caller is \
               ignored, CKPT_* included. Options change the configuration of the restarted \
               program; what they do not say is as it was saved.",
        hidden: false,
    },
];
