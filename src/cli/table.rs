//! The table of forms (ways to call ckpt) and of options.
//!
//! A new subcommand is a [`Form`], an entry of [`FORMS`] and an arm where `parse` builds the
//! command; a new option is an entry of [`OPTIONS`] and a field that its `set` fills.

pub(super) use super::entry::{Draft, Entry, Form, Kind, Operand, Opt, Page, Variable};
pub(super) use super::lookup::{SHELLS, entry, operands, options, subcommand, subcommands};
use super::network;
use crate::resource::cpu::limit;
use crate::settings::{self, Name};

/// All forms: those of this file, then those of the checkpoint server.
pub(super) static FORMS: &[Entry] =
    &joined::<Entry, { OWN_FORMS.len() + network::FORMS.len() }>(OWN_FORMS, network::FORMS);

/// All options.
pub(super) static OPTIONS: &[Opt] =
    &joined::<Opt, { OWN_OPTIONS.len() + network::OPTIONS.len() }>(OWN_OPTIONS, network::OPTIONS);

const fn joined<T: Copy, const N: usize>(first: &[T], second: &[T]) -> [T; N] {
    let mut all = [first[0]; N];
    let mut at = 0;
    while at < N {
        all[at] = if at < first.len() { first[at] } else { second[at - first.len()] };
        at += 1;
    }
    all
}

const OWN_FORMS: &[Entry] = &[
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
        form: Form::Save,
        word: Some("save"),
        operand: Some(Operand { name: "PID", kind: Kind::Pid, optional: false }),
        help: "Checkpoint a running process now",
        long: "Checkpoints the process PID from outside, without any signal to it, whether or \
               not it was started by ckpt and even if it blocks the checkpoint signal. Waits \
               until the checkpoint is written, then prints its name, its bytes, and how long \
               the program stood still. The program goes on unless --stop is given.\n\n\
               Without -n the checkpoint gets the name that the process is configured with, \
               else its program's base name and \".ckpt\" in its working directory.",
        hidden: false,
    },
    Entry {
        form: Form::Verify,
        word: Some("verify"),
        operand: Some(Operand { name: "FILE", kind: Kind::File, optional: false }),
        help: "Check that a checkpoint file is whole",
        long: "Reads the checkpoint FILE and compares every byte of it with its checksums. The \
               exit status is 0 if the file is whole; else a sentence says what is damaged.",
        hidden: false,
    },
    Entry {
        form: Form::Info,
        word: Some("info"),
        operand: Some(Operand { name: "FILE", kind: Kind::File, optional: false }),
        help: "Show what a checkpoint file holds",
        long: "Shows which program the checkpoint FILE holds, its arguments, where it \
               was saved, and its sizes.",
        hidden: false,
    },
    Entry {
        form: Form::Check,
        word: Some("check"),
        operand: Some(Operand { name: "FILE", kind: Kind::File, optional: true }),
        help: "Show what this machine can do, or whether FILE can restart here",
        long: "Without FILE: tries the abilities of the kernel that matter to ckpt, and shows yes, no \
               with the setting to change, or what is done in its place. With FILE: shows what the \
               checkpoint expects (kernel, CPU, files) and whether this machine has it; the exit \
               status is 0 if it can restart here, else 1.",
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
        form: Form::Restart,
        word: None,
        operand: None,
        help: "Resume the program from its checkpoint file",
        long: "Executing the checkpoint file resumes the program where it was saved, any number \
               of times. The environment of the program is the saved one; that of the caller is \
               ignored, CKPT_* included. Options change the configuration of the resumed \
               program; what they do not say is as it was saved.",
        hidden: false,
    },
];

/// The forms whose options are the parameters of the original manual.
const CONFIGURED: &[Form] = &[Form::Launch, Form::Attach, Form::Restart];
const OWN_OPTIONS: &[Opt] = &[
    Opt {
        short: Some('p'),
        long: "pid",
        value: Some(("PID", Kind::Pid)),
        env: None,
        default: None,
        help: "Enable checkpointing in the running process PID",
        description: "Enables checkpointing in the running process PID instead of starting a \
                      program. Under Yama's default (kernel.yama.ptrace_scope = 1) this needs \
                      root for processes that ckpt did not start.",
        forms: &[Form::Attach],
        required: true,
        set: |draft, value| {
            draft.pid = Some(settings::parse_pid(value)?);
            Ok(())
        },
    },
    Opt {
        short: Some('n'),
        long: "name",
        value: Some(("NAME", Kind::File)),
        env: Some(Variable { name: "CKPT_NAME", value: "NAME" }),
        default: Some("PROGRAM's base name + .ckpt"),
        help: "Save checkpoints to the file NAME",
        description: "Saves checkpoints to NAME, which is FILENAME, file://FILENAME, or \
                      cssrv://HOST[:PORT]/NAME on a checkpoint server (ckpt serve). A \
                      relative name is taken from the directory where ckpt (or the checkpoint \
                      file) is started, with -p from the process's working directory. An \
                      existing file is replaced when the new checkpoint is whole. A forked child \
                      that executed no other program saves to NAME with its process id appended.\n\n\
                      In NAME, %p stands for the process id, %h for the host, %% for a percent \
                      sign, and %n, behind the last slash, for a number that grows by one with \
                      each checkpoint, from 1 or from the highest number that there is.",
        forms: &[Form::Launch, Form::Attach, Form::Restart, Form::Save],
        required: false,
        set: |draft, value| {
            draft.settings.name = Some(Name::parse(value)?);
            Ok(())
        },
    },
    Opt {
        short: Some('c'),
        long: "continue",
        value: None,
        env: Some(Variable { name: "CKPT_CONTINUE", value: "0 or 1" }),
        default: Some("0"),
        help: "Continue the program after a checkpoint",
        description: "The program continues after a checkpoint; without this it ends (see \
                      --exit-status), except after a periodic one. It continues at once, while the checkpoint is written from a \
                      copy-on-write snapshot. CKPT_CONTINUE=1 says the same as -c; CKPT_CONTINUE=0 \
                      ends the program also after a periodic checkpoint.",
        forms: CONFIGURED,
        required: false,
        set: |draft, value| {
            draft.settings.continues = Some(settings::parse_switch(value)?);
            Ok(())
        },
    },
    Opt {
        short: Some('a'),
        long: "signal",
        value: Some(("SIGNAL", Kind::Signal)),
        env: Some(Variable { name: "CKPT_ASYNCSIG", value: "SIGNAL" }),
        default: Some("SIGTSTP"),
        help: "Checkpoint on SIGNAL; 0: on none",
        description: "The signal that triggers a checkpoint: a name (USR1, SIGUSR1, RTMIN+3; in \
                      upper or lower case) or a number from 1 to 64. With 0 no signal does. \
                      SIGKILL and SIGSTOP cannot be used.",
        forms: CONFIGURED,
        required: false,
        set: |draft, value| {
            draft.settings.asyncsig = Some(settings::parse_signal(value)?);
            Ok(())
        },
    },
    Opt {
        short: Some('z'),
        long: "period",
        value: Some(("PERIOD", Kind::Number)),
        env: Some(Variable { name: "CKPT_MSPERIOD", value: "PERIOD" }),
        default: Some("0"),
        help: "Checkpoint each PERIOD ms; 0: never",
        description: "Takes a checkpoint each PERIOD milliseconds, by a process outside of the \
                      program and without any timer or signal of it. The program goes on, unless \
                      CKPT_CONTINUE=0 was given. A checkpoint that takes longer than the period \
                      is followed by a whole period. With 0 there are no periodic checkpoints.",
        forms: CONFIGURED,
        required: false,
        set: |draft, value| {
            draft.settings.msperiod = Some(settings::parse_period(value)?);
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "exit-status",
        value: Some(("N", Kind::Number)),
        env: Some(Variable { name: "CKPT_EXIT", value: "N" }),
        default: Some("0"),
        help: "End with status N after a checkpoint",
        description: "The exit status, from 0 to 255, of a program that a checkpoint ended. Batch \
                      systems requeue a job by its status, for example 85 or 99.",
        forms: CONFIGURED,
        required: false,
        set: |draft, value| {
            draft.settings.exit_status = Some(settings::parse_status(value)?);
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "keep",
        value: Some(("N", Kind::Number)),
        env: None,
        default: Some("0"),
        help: "Keep the last N of a name with %n; 0: all",
        description: "Keeps the last N checkpoints of a name with %n. An older one is deleted when \
                      a newer one is whole, never before.",
        forms: CONFIGURED,
        required: false,
        set: |draft, value| {
            draft.settings.keep = Some(settings::parse_keep(value)?);
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "resume",
        value: None,
        env: None,
        default: None,
        help: "Restart PROGRAM's checkpoint if there is one",
        description: "If the checkpoint of that name exists and is whole, restarts it instead of \
                      starting PROGRAM, so that one command line serves the first run and all \
                      later ones. A damaged checkpoint is named on standard error, and the one \
                      before it (of a name with %n) is taken; if there is none, PROGRAM is \
                      started from its beginning. Options and the environment change the \
                      configuration that was saved.",
        forms: &[Form::Launch],
        required: false,
        set: |draft, _| {
            draft.resume = true;
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "cpu",
        value: Some(("CPU", Kind::Number)),
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
        required: false,
        set: |draft, value| {
            draft.cpu = Some(limit::parse(value)?);
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "truncate-files",
        value: None,
        env: None,
        default: None,
        help: "Cut files that grew since the checkpoint",
        description: "Cuts the files that the program has open for writing and that have grown \
                      since the checkpoint back to their length at the checkpoint, so that the \
                      output becomes what an uninterrupted run writes. Without this a file that \
                      grew is named on standard error. With ckpt PROGRAM it goes with --resume.",
        forms: &[Form::Launch, Form::Restart],
        required: false,
        set: |draft, _| {
            draft.truncate_files = true;
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "embed-files",
        value: Some(("BYTES", Kind::Number)),
        env: Some(Variable { name: "CKPT_EMBED_FILES", value: "BYTES" }),
        default: Some("0"),
        help: "Carry open files of up to BYTES along",
        description: "Checkpoints carry the content of every open regular file of at most BYTES \
                      (64K, 10M, 1G). Where such a file is absent at a restart, the program reads \
                      that content; a file that it writes is made anew in its directory. A file \
                      that is there is used as it is. With 0 no file is carried.",
        forms: &[Form::Launch, Form::Attach, Form::Save, Form::Restart],
        required: false,
        set: |draft, value| {
            draft.settings.embed = Some(settings::parse_size(value)?);
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "map-path",
        value: Some(("MAP", Kind::Number)),
        env: None,
        default: None,
        help: "Find files elsewhere: OLD=NEW",
        description: "MAP is OLD=NEW: the program's files and directories that were OLD or in OLD \
                      are looked for in NEW. Repeatable; the longest OLD that fits counts.",
        forms: &[Form::Restart, Form::Check],
        required: false,
        set: |draft, value| {
            draft.map_path.0.push(settings::parse_pair(value)?);
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "force-cpu",
        value: None,
        env: None,
        default: None,
        help: "Restart although the CPU lacks features",
        description: "Restarts although this CPU lacks features that the program may use. If it \
                      does use one, it dies of an illegal instruction (SIGILL).",
        forms: &[Form::Restart],
        required: false,
        set: |draft, _| {
            draft.force_cpu = true;
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "json",
        value: None,
        env: None,
        default: None,
        help: "Print JSON",
        description: "Prints one JSON object in place of the table for people.",
        forms: &[Form::Info, Form::Check],
        required: false,
        set: |draft, _| {
            draft.json = true;
            Ok(())
        },
    },
    Opt {
        short: None,
        long: "stop",
        value: None,
        env: None,
        default: None,
        help: "End the process once it is saved",
        description: "Ends the process with status 0 once its checkpoint is whole; without this \
                      it goes on.",
        forms: &[Form::Save],
        required: false,
        set: |draft, _| {
            draft.stop = true;
            Ok(())
        },
    },
    Opt {
        short: Some('h'),
        long: "help",
        value: None,
        env: None,
        default: None,
        help: "Show this help",
        description: "Shows help about what stands before it.",
        forms: &[
            Form::Launch,
            Form::Attach,
            Form::Save,
            Form::Verify,
            Form::Info,
            Form::Sdk,
            Form::Check,
            Form::Help,
            Form::Man,
            Form::Completions,
            Form::Restart,
            Form::Serve,
            Form::Keygen,
            Form::Resume,
            Form::List,
            Form::Get,
            Form::Put,
            Form::Remove,
        ],
        required: false,
        set: |draft, _| {
            draft.page = Some(Page::Help);
            Ok(())
        },
    },
    Opt {
        short: Some('V'),
        long: "version",
        value: None,
        env: None,
        default: None,
        help: "Show the version",
        description: "Shows the version of ckpt; of a checkpoint file, that of the ckpt which \
                      saved it.",
        forms: &[Form::Launch, Form::Attach, Form::Restart],
        required: false,
        set: |draft, _| {
            draft.page = Some(Page::Version);
            Ok(())
        },
    },
];
