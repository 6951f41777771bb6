// SPDX-License-Identifier: LGPL-2.1-only
//! The ways to call ckpt, but for those of the checkpoint server.

use super::entry::{Entry, Form, Kind, Operand};

pub(super) const FORMS: &[Entry] = &[
    Entry {
        form: Form::Launch,
        word: None,
        operand: Some(Operand { name: "PROGRAM", kind: Kind::Program, optional: false }),
        help: "Run PROGRAM so that it can be checkpointed",
        long: "Runs PROGRAM with checkpointing enabled. PROGRAM has the same process id, \
               standard streams, environment and exit status as without ckpt. Options of ckpt \
               come before PROGRAM; everything after it belongs to PROGRAM. To run a program \
               that has the name of a subcommand, put '--' before it: ckpt -- info.\n\n\
               The checkpoint signal (SIGTSTP, which ^Z sends) saves the program to its \
               checkpoint file and ends it; with -c it continues.",
        hidden: false,
    },
    Entry {
        form: Form::Attach,
        word: None,
        operand: None,
        help: "Enable checkpointing in a process that already runs",
        long: "Enables checkpointing in the running process PID, as if ckpt had started it. \
               Repeating this changes only the settings that are given. A relative checkpoint \
               name is relative to the process's working directory.",
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
        long: "Runs PROGRAM until it calls ckpt_ckpt() (in Python, ckpt.ready()) at the point \
               where it has loaded what every run needs, saves it as NAME, and ends it. Each \
               restart of NAME begins there, with the arguments, variables and directory \
               given by --args, --env and --cwd. The exit status is 0 if there is a \
               checkpoint; a PROGRAM that ends before that is an error.",
        hidden: false,
    },
    Entry {
        form: Form::Save,
        word: Some("save"),
        operand: Some(Operand { name: "PID", kind: Kind::Pid, optional: true }),
        help: "Checkpoint a running process now",
        long: "Checkpoints the process PID from outside, without sending it a signal, whether \
               or not it was started by ckpt and even if it blocks the checkpoint signal. \
               Waits until the checkpoint is written, then prints its name, its size in \
               bytes, and how long the program was stopped. The program continues unless \
               --stop is given.\n\n\
               Without -n, the checkpoint gets the name configured for the process, or else \
               the program's base name and \".ckpt\" in its working directory.\n\n\
               With --all instead of PID, it saves every program that ckpt ps lists, with one \
               line for each; the exit status is 0 if all were saved, 1 if some were not.",
        hidden: false,
    },
    Entry {
        form: Form::Ps,
        word: Some("ps"),
        operand: None,
        help: "List what runs under ckpt here",
        long: "Lists the programs that run under ckpt on this machine (yours; as root \
               everybody's): process id, program, start time (UTC), period, age and size of \
               the last complete checkpoint, how long the program was stopped for it, when \
               the next one is due, its name, and the result of the last attempt. No process \
               is stopped for this.",
        hidden: false,
    },
    Entry {
        form: Form::Move,
        word: Some("move"),
        operand: Some(Operand { name: "PID HOST...", kind: Kind::Pid, optional: false }),
        help: "Move a running process to another host",
        long: "Moves the process PID to HOST through ssh; ckpt need not be installed there. The process \
               keeps running while its memory is copied, is stopped for the last changes, ends here with the \
               status of --exit-status, and continues on HOST. ckpt stays until it has ended there, carries its \
               standard streams, and ends with its status. If something fails before, the process continues \
               here. Options after HOST are those of a checkpoint file that is executed there (--map-path).",
        hidden: false,
    },
    Entry {
        form: Form::Verify,
        word: Some("verify"),
        operand: Some(Operand { name: "FILE...", kind: Kind::File, optional: false }),
        help: "Check that checkpoints are whole",
        long: "Reads each checkpoint FILE, which may be cssrv://HOST[:PORT]/NAME, and checks \
               every byte of it against its checksums. The exit status is 0 if all are \
               intact; otherwise a message says what is damaged.",
        hidden: false,
    },
    Entry {
        form: Form::Info,
        word: Some("info"),
        operand: Some(Operand { name: "FILE...", kind: Kind::File, optional: false }),
        help: "Show what checkpoints hold",
        long: "Shows which program each checkpoint FILE (or cssrv://HOST[:PORT]/NAME) holds, \
               its arguments, where it was saved, its sizes, and what is missing from it. \
               With --maps, --fds, --threads or --env, lists its mappings, descriptors, \
               threads or environment instead.",
        hidden: false,
    },
    Entry {
        form: Form::Core,
        word: Some("core"),
        operand: Some(Operand { name: "FILE [OUT]", kind: Kind::File, optional: false }),
        help: "Make core files for a debugger of a checkpoint",
        long: "Writes the checkpoint FILE (or cssrv://HOST[:PORT]/NAME) as an ELF core file \
               with threads, registers, memory and mapped files, which gdb and lldb can open, \
               to OUT (default: core); for a checkpoint of several processes, to OUT.PID for \
               each. An existing file is not replaced. Memory that is unchanged from a mapped \
               file is not in it; the debugger reads that from the file: gdb PROGRAM OUT.",
        hidden: false,
    },
    Entry {
        form: Form::Cat,
        word: Some("cat"),
        operand: Some(Operand { name: "FILE DESCRIPTOR", kind: Kind::File, optional: false }),
        help: "Write out a file that travels in a checkpoint",
        long: "Writes to standard output the content of a file that is stored in the \
               checkpoint: one without a name, or one stored by --embed-files. DESCRIPTOR is \
               the number under which the program had it open (see ckpt info --fds FILE), or \
               PID:NUMBER for one of several processes.",
        hidden: false,
    },
    Entry {
        form: Form::Check,
        word: Some("check"),
        operand: Some(Operand { name: "FILE|PID...", kind: Kind::File, optional: true }),
        help: "Show what can be done here, or with a checkpoint or a process",
        long: "Without an argument, tests the kernel features that ckpt uses and shows for \
               each yes, no and the setting to change, or what ckpt does instead. With FILE \
               (or cssrv://HOST[:PORT]/NAME), shows what the checkpoint needs (kernel, CPU, \
               files) and whether this machine has it; the exit status is 0 if it can restart \
               here, 1 if not, 125 if it is damaged. With PID, shows where and when that \
               process and its descendants are saved, and everything that prevents it or \
               would be lost; the exit status is 0 if all is saved, 1 if something is lost or \
               the checkpoint signal would not work, 2 if a checkpoint is not possible. \
               Nothing is done to the process.",
        hidden: false,
    },
    Entry {
        form: Form::Help,
        word: Some("help"),
        operand: Some(Operand { name: "SUBCOMMAND", kind: Kind::Subcommand, optional: true }),
        help: "Show help, also about one subcommand",
        long: "Shows everything about SUBCOMMAND; without one, the same as ckpt --help.",
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
        long: "Writes what programs need to take checkpoints of themselves: \
               DIR/lib/libckpt.so (to link with -lckpt, or for LD_PRELOAD), \
               DIR/include/ckpt.h, a pkg-config file, a Python module and manual pages. In \
               programs that are linked with the library, run with it preloaded, or started \
               by one that has it preloaded, checkpointing is enabled, and they read the \
               CKPT_ variables when they start.",
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
        form: Form::Receive,
        word: Some("__receive"),
        operand: Some(Operand { name: "DIR", kind: Kind::File, optional: false }),
        help: "Be the other end of ckpt move",
        long: "What ckpt move starts; not for users.",
        hidden: true,
    },
    Entry {
        form: Form::Stub,
        word: None,
        operand: None,
        help: "Restart the program from its checkpoint file",
        long: "Executing the checkpoint file resumes the program where it was saved; this can \
               be done any number of times. The program has its saved environment; the \
               caller's, including CKPT_*, is ignored. Options change the settings of the \
               restarted program; the others stay as saved.",
        hidden: false,
    },
];
