// SPDX-License-Identifier: LGPL-2.1-only
//! The table of settings. An entry is all that is known of one: how users write it and what the help
//! says of it, how it is laid down in the region of a process, and how it is handed on to a checkpoint
//! file. A new setting is a field of [`super::Settings`] and an entry here.

use ckpt_abi::region::config_flag;

use super::Without;
use super::encryption;
use super::fields::{Said, fill, flag, inherit, level, put, put_flag};
use super::parse_level;
use super::server::{self, Key};
use super::setting::{Kind, Reach, Setting, Variable};
use super::signal::usable_signal;
use super::{Name, get_command, get_name, no_status, no_switch, parse_command, parse_file};
use super::{parse_keep, parse_period, parse_signal, parse_size, parse_status, parse_switch};
use super::{put_command, put_name};

/// All settings, in the order in which they are shown.
pub(crate) static SETTINGS: [Setting; 22] = [
    Setting {
        short: Some('n'),
        long: "name",
        value: Some(("NAME", Kind::File)),
        optional: false,
        env: Some(Variable { name: "CKPT_NAME", value: "NAME" }),
        default: Some("PROGRAM's base name + .ckpt"),
        reach: Reach::Saves,
        help: "Save checkpoints to the file NAME",
        description: "Saves checkpoints to NAME, which is FILENAME, file://FILENAME, cssrv://HOST[:PORT]/NAME on a \
                      checkpoint server (ckpt serve), or |COMMAND, which reads each checkpoint from its standard \
                      input. A relative name is relative to the directory in which ckpt (or the checkpoint file) is \
                      started; with -p, to the process's working directory. An existing file is replaced once the new \
                      checkpoint is complete. A forked child that has not executed another program saves to NAME with \
                      its process id appended.\n\n\
                      In NAME, %p stands for the process id, %h for the host name, %% for a percent sign, and %n, \
                      after the last slash, for a number that grows by one with each checkpoint, starting from 1 or \
                      from the highest number that exists.\n\n\
                      COMMAND is run by /bin/sh in the directory to which a relative name would be relative, with the \
                      environment of PROGRAM (for ckpt save -n, with the caller's) and CKPT_PID, CKPT_HOST, \
                      CKPT_NUMBER and CKPT_PROGRAM. The checkpoint has succeeded if COMMAND has read all of it and \
                      exited with status 0; otherwise it has failed, and the last line of COMMAND's standard error is \
                      shown. ckpt save -n - writes to standard output.",
        parse: |said, value| fill(&mut said.name, Name::parse(value)),
        written: |said| Said::value(said.name.as_ref().map(Name::written)),
        inherit: |said, weaker| inherit(&mut said.name, &weaker.name),
        apply: |said, config| put_name(&mut config.name, said.name.as_ref()),
        read: |said, config| {
            said.name = get_name(&config.name)?;
            Ok(())
        },
    },
    Setting {
        short: Some('c'),
        long: "continue",
        value: None,
        optional: false,
        env: Some(Variable { name: "CKPT_CONTINUE", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Equips,
        help: "Continue the program after a checkpoint",
        description: "The program continues after a checkpoint. Without this it ends (see --exit-status), except after \
                      a periodic checkpoint. It continues immediately, while the checkpoint is written from a \
                      copy-on-write snapshot. CKPT_CONTINUE=1 is the same as -c; CKPT_CONTINUE=0 ends the program \
                      after a periodic checkpoint, too.",
        parse: |said, value| fill(&mut said.continues, parse_switch(value)),
        written: |said| match said.continues {
            Some(false) => Said::Unsayable,
            other => Said::switch(other),
        },
        inherit: |said, weaker| inherit(&mut said.continues, &weaker.continues),
        apply: |said, config| {
            if let Some(continues) = said.continues {
                config.continues = u32::from(continues);
                config.flags |= config_flag::CONTINUE_GIVEN;
            }
        },
        read: |said, config| {
            said.continues = match (config.flags & config_flag::CONTINUE_GIVEN, config.continues) {
                (_, value) if value > 1 => return Err(no_switch(&value.to_string())),
                (0, _) => None,
                (_, value) => Some(value == 1),
            };
            Ok(())
        },
    },
    Setting {
        short: Some('a'),
        long: "signal",
        value: Some(("SIGNAL", Kind::Signal)),
        optional: false,
        env: Some(Variable { name: "CKPT_ASYNCSIG", value: "SIGNAL" }),
        default: Some("SIGTSTP"),
        reach: Reach::Equips,
        help: "Checkpoint on SIGNAL; 0: on none",
        description: "The signal that triggers a checkpoint: a name (USR1, SIGUSR1, RTMIN+3; upper or lower case) or a \
                      number from 1 to 64. With 0, no signal does. SIGKILL and SIGSTOP cannot be used.",
        parse: |said, value| fill(&mut said.asyncsig, parse_signal(value)),
        written: |said| Said::number(said.asyncsig),
        inherit: |said, weaker| inherit(&mut said.asyncsig, &weaker.asyncsig),
        apply: |said, config| {
            put(&mut config.asyncsig, said.asyncsig);
            if said.asyncsig.is_some() {
                config.flags &= !config_flag::SIGNAL_OPEN;
            }
        },
        read: |said, config| {
            if config.flags & config_flag::SIGNAL_OPEN != 0 {
                return Ok(());
            }
            let text = config.asyncsig.to_string();
            fill(&mut said.asyncsig, usable_signal(config.asyncsig, &text))
        },
    },
    Setting {
        short: Some('z'),
        long: "period",
        value: Some(("PERIOD", Kind::Number)),
        optional: false,
        env: Some(Variable { name: "CKPT_MSPERIOD", value: "PERIOD" }),
        default: Some("0"),
        reach: Reach::Equips,
        help: "Checkpoint every PERIOD (10m); 0: never",
        description: "Takes a checkpoint every PERIOD, from a separate process; the program gets no timer and no \
                      signal. PERIOD is a number with a unit (500ms, 30s, 10m, 1h, 1d); a bare number is in \
                      milliseconds. The program continues, unless CKPT_CONTINUE=0 is set. After a checkpoint that \
                      takes longer than the period, a whole period passes before the next. With 0 there are no \
                      periodic checkpoints.",
        parse: |said, value| fill(&mut said.msperiod, parse_period(value)),
        written: |said| Said::number(said.msperiod),
        inherit: |said, weaker| inherit(&mut said.msperiod, &weaker.msperiod),
        apply: |said, config| put(&mut config.msperiod, said.msperiod),
        read: |said, config| fill(&mut said.msperiod, Ok(config.msperiod)),
    },
    Setting {
        short: None,
        long: "exit-status",
        value: Some(("N", Kind::Number)),
        optional: false,
        env: Some(Variable { name: "CKPT_EXIT", value: "N" }),
        default: Some("0"),
        reach: Reach::Equips,
        help: "End with status N after a checkpoint",
        description: "The exit status, 0 to 255, of a program that a checkpoint has ended. Batch systems requeue a job \
                      by its exit status, for example 85 or 99.",
        parse: |said, value| fill(&mut said.exit_status, parse_status(value)),
        written: |said| Said::number(said.exit_status),
        inherit: |said, weaker| inherit(&mut said.exit_status, &weaker.exit_status),
        apply: |said, config| put(&mut config.exit_status, said.exit_status.map(u32::from)),
        read: |said, config| {
            let status = u8::try_from(config.exit_status);
            let status = status.map_err(|_| no_status(&config.exit_status.to_string()));
            fill(&mut said.exit_status, status)
        },
    },
    Setting {
        short: None,
        long: "keep",
        value: Some(("N", Kind::Number)),
        optional: false,
        env: None,
        default: Some("0"),
        reach: Reach::Equips,
        help: "Keep the last N of a name with %n; 0: all",
        description: "Keeps the last N checkpoints of a name with %n; 0 keeps all. An older one is deleted only after \
                      a newer one is complete.",
        parse: |said, value| fill(&mut said.keep, parse_keep(value)),
        written: |said| Said::number(said.keep),
        inherit: |said, weaker| inherit(&mut said.keep, &weaker.keep),
        apply: |said, config| put(&mut config.keep, said.keep),
        read: |said, config| fill(&mut said.keep, Ok(config.keep)),
    },
    Setting {
        short: None,
        long: "keep-finished",
        value: Some(("0", Kind::Number)),
        optional: true,
        env: None,
        default: Some("1 without --resume, 0 with it"),
        reach: Reach::Equips,
        help: "Leave checkpoints when the program is done",
        description: "With --resume, when a program comes to its normal end (it exits by itself, with status 0) its \
                      checkpoint is set aside: NAME is renamed to NAME.finished, replacing an earlier one, so that the \
                      same command line then starts the program from the beginning. After any other end the checkpoint \
                      stays. With --keep-finished it always stays, and --resume continues from it; --keep-finished=0 \
                      sets it aside even without --resume.",
        parse: |said, value| fill(&mut said.keep_finished, parse_switch(value)),
        written: |said| Said::number(said.keep_finished.map(u8::from)),
        inherit: |said, weaker| inherit(&mut said.keep_finished, &weaker.keep_finished),
        apply: |said, config| {
            if let Some(keep) = said.keep_finished {
                put_flag(config, config_flag::KEEP_FINISHED, Some(keep));
                put_flag(config, config_flag::SET_ASIDE, Some(!keep));
            }
        },
        read: |said, config| {
            let aside = flag(config, config_flag::SET_ASIDE).map(|_| false);
            said.keep_finished = flag(config, config_flag::KEEP_FINISHED).or(aside);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "embed-files",
        value: Some(("BYTES", Kind::Number)),
        optional: false,
        env: Some(Variable { name: "CKPT_EMBED_FILES", value: "BYTES" }),
        default: Some("0"),
        reach: Reach::Saves,
        help: "Store open files of up to BYTES, too",
        description: "Stores in each checkpoint the content of every open regular file of at most BYTES (64K, 10M, \
                      1G). If such a file is missing at a restart, the program reads the stored content; a file that \
                      it writes is created again in its directory. A file that exists is used as it is. With 0, no \
                      content is stored.",
        parse: |said, value| fill(&mut said.embed, parse_size(value)),
        written: |said| Said::number(said.embed),
        inherit: |said, weaker| inherit(&mut said.embed, &weaker.embed),
        apply: |said, config| put(&mut config.embed, said.embed),
        read: |said, config| fill(&mut said.embed, Ok(config.embed)),
    },
    Setting {
        short: None,
        long: "alone",
        value: None,
        optional: false,
        env: Some(Variable { name: "CKPT_ALONE", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Saves,
        help: "Save the process without its descendants",
        description: "Saves PROGRAM without the processes that it has started. After a restart these do not exist: \
                      what they would have done is missing, and wait(2) finds none of them.",
        parse: |said, value| fill(&mut said.alone, parse_switch(value)),
        written: |said| Said::switch(said.alone),
        inherit: |said, weaker| inherit(&mut said.alone, &weaker.alone),
        apply: |said, config| put_flag(config, config_flag::ALONE, said.alone),
        read: |said, config| {
            said.alone = flag(config, config_flag::ALONE);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "without",
        value: Some(("WHO", Kind::Pid)),
        optional: false,
        env: Some(Variable { name: "CKPT_WITHOUT", value: "WHO,..." }),
        default: None,
        reach: Reach::Saves,
        help: "Leave out descendant WHO and its descendants",
        description: "Leaves out the descendants of PROGRAM whose name (as in ps -o comm) or process id is WHO, and \
                      their descendants. Repeatable. Each checkpoint names them; they do not exist after a restart.",
        parse: |said, value| Without::parse(&mut said.without, value),
        written: |said| Said::value(said.without.as_ref().map(Without::written)),
        inherit: |said, weaker| inherit(&mut said.without, &weaker.without),
        apply: |said, config| {
            if let Some(without) = &said.without {
                without.put(&mut config.without);
            }
        },
        read: |said, config| {
            said.without = Without::from_bytes(&config.without)?;
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "verbose",
        value: None,
        optional: false,
        env: Some(Variable { name: "CKPT_VERBOSE", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Saves,
        help: "Also report losses that hardly ever matter",
        description: "Also reports descriptors that are not saved and that the program merely inherited under the same \
                      number from whatever started it, such as a shell's or a batch system's pipes.",
        parse: |said, value| fill(&mut said.verbose, parse_switch(value)),
        written: |said| Said::switch(said.verbose),
        inherit: |said, weaker| inherit(&mut said.verbose, &weaker.verbose),
        apply: |said, config| put_flag(config, config_flag::VERBOSE, said.verbose),
        read: |said, config| {
            said.verbose = flag(config, config_flag::VERBOSE);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "strict",
        value: None,
        optional: false,
        env: Some(Variable { name: "CKPT_STRICT", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Saves,
        help: "Take no checkpoint if anything would be lost",
        description: "Takes no checkpoint if a restart from it would lack anything (ckpt check PID tells beforehand): \
                      everything that would be lost is listed, the program continues, and an earlier checkpoint stays. \
                      Without this, the losses are listed and the checkpoint is taken.",
        parse: |said, value| fill(&mut said.strict, parse_switch(value)),
        written: |said| Said::switch(said.strict),
        inherit: |said, weaker| inherit(&mut said.strict, &weaker.strict),
        apply: |said, config| put_flag(config, config_flag::STRICT, said.strict),
        read: |said, config| {
            said.strict = flag(config, config_flag::STRICT);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "notify",
        value: Some(("COMMAND", Kind::Number)),
        optional: false,
        env: Some(Variable { name: "CKPT_NOTIFY", value: "COMMAND" }),
        default: None,
        reach: Reach::Saves,
        help: "Run COMMAND after each checkpoint",
        description: "Runs COMMAND with sh -c after each checkpoint, complete or failed. It is not a child of the \
                      program, which does not wait for it. Its environment is the program's plus CKPT_HOOK_RESULT \
                      (saved or failed), CKPT_HOOK_NAME, CKPT_HOOK_BYTES, CKPT_HOOK_PAUSE (milliseconds), \
                      CKPT_HOOK_NUMBER, CKPT_HOOK_ENDED (1: the checkpoint ended the program), CKPT_HOOK_REASON (of a \
                      failure), CKPT_HOOK_PID and CKPT_HOOK_PROGRAM. If COMMAND fails, this is reported once. Several \
                      may run at the same time.",
        parse: |said, value| fill(&mut said.notify, parse_command(value)),
        written: |said| Said::value(said.notify.as_ref()),
        inherit: |said, weaker| inherit(&mut said.notify, &weaker.notify),
        apply: |said, config| put_command(&mut config.notify, said.notify.as_deref()),
        read: |said, config| {
            said.notify = get_command(&config.notify)?;
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "keep-tcp",
        value: Some(("0", Kind::Number)),
        optional: true,
        env: Some(Variable { name: "CKPT_KEEP_TCP", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Saves,
        help: "Keep TCP connections to others (root)",
        description: "Keeps TCP connections to other programs across a checkpoint that ends PROGRAM. This needs root \
                      (CAP_NET_ADMIN), at the restart, too, and a machine that has the same address. For 15 minutes a \
                      process named ckpt-tcp keeps the connections alive where the program was. If the restart comes \
                      later or on another machine, a firewall rule must drop the peers' packets in the meantime, \
                      because the first one would reset the connection (docs/saved.md). A restart with --keep-tcp=0 \
                      resets the connections.",
        parse: |said, value| fill(&mut said.keep_tcp, parse_switch(value)),
        written: |said| Said::number(said.keep_tcp.map(u8::from)),
        inherit: |said, weaker| inherit(&mut said.keep_tcp, &weaker.keep_tcp),
        apply: |said, config| put_flag(config, config_flag::KEEP_TCP, said.keep_tcp),
        read: |said, config| {
            said.keep_tcp = flag(config, config_flag::KEEP_TCP);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "lazy",
        value: Some(("0", Kind::Number)),
        optional: true,
        env: Some(Variable { name: "CKPT_LAZY", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Equips,
        help: "Restart before the memory is read (root)",
        description: "A restart lets the program run before its memory has been read: a separate process (ckpt-assist) \
                      loads what the program touches, and the rest in the background, from the checkpoint file, which \
                      may be renamed or removed. In total this takes longer than a normal restart. If ckpt-assist is \
                      killed, the program ends. This needs root (CAP_SYS_PTRACE) and Linux 5.18; otherwise, and for \
                      several processes, all memory is read first, and a message says so.",
        parse: |said, value| fill(&mut said.lazy, parse_switch(value)),
        written: |said| Said::number(said.lazy.map(u8::from)),
        inherit: |said, weaker| inherit(&mut said.lazy, &weaker.lazy),
        apply: |said, config| put_flag(config, config_flag::LAZY, said.lazy),
        read: |said, config| {
            said.lazy = flag(config, config_flag::LAZY);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "key",
        value: Some(("FILE", Kind::File)),
        optional: false,
        env: Some(Variable { name: "CKPT_KEY", value: "FILE" }),
        default: Some("~/.config/ckpt/key"),
        reach: Reach::Keyed,
        help: "Read the key of server and --encrypt from FILE",
        description: "FILE contains the key that the checkpoint server shares with its clients, and that encrypts \
                      checkpoints (--encrypt). Only its owner may be able to read it.",
        parse: |said, value| fill(&mut said.transfer.key, parse_file(value).map(Key::Said)),
        written: |said| match &said.transfer.key {
            Some(Key::Said(path)) => Said::value(Some(path)),
            // A checkpoint file looks for that of its caller's home itself.
            Some(Key::Usual(_)) | None => Said::Nothing,
            Some(Key::Descriptor(_) | Key::Passphrase(_)) => Said::Unsayable,
        },
        inherit: |said, weaker| inherit(&mut said.transfer.key, &weaker.transfer.key),
        apply: |said, config| server::put_key(config, said.transfer.key.as_ref()),
        read: |said, config| {
            said.transfer.key = server::get_key(config)?;
            Ok(())
        },
    },
    encryption::PASSPHRASE_FD,
    Setting {
        short: None,
        long: "insecure",
        value: None,
        optional: false,
        env: Some(Variable { name: "CKPT_INSECURE", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Keyed,
        help: "Talk to the checkpoint server without a key",
        description: "Uses no encryption and no authentication: only for networks where everybody is trusted. Both \
                      client and server must be told; one that has a key never talks without it.",
        parse: |said, value| fill(&mut said.transfer.insecure, parse_switch(value)),
        written: |said| Said::switch(said.transfer.insecure),
        inherit: |said, weaker| inherit(&mut said.transfer.insecure, &weaker.transfer.insecure),
        apply: |said, config| put_flag(config, config_flag::INSECURE, said.transfer.insecure),
        read: |said, config| {
            said.transfer.insecure = flag(config, config_flag::INSECURE);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "compress",
        value: None,
        optional: false,
        env: Some(Variable { name: "CKPT_COMPRESS", value: "0 or 1" }),
        default: Some("0"),
        reach: Reach::Saves,
        help: "Compress checkpoints",
        description: "Compresses the memory and files in checkpoints on all processors (LZ4, in blocks of up to 256 \
                      KiB; blocks that would shrink by less than an eighth stay as they are). This helps on slow disks \
                      and networks; on fast ones, saving and restarting take longer.",
        parse: |said, value| fill(&mut said.compress, parse_switch(value)),
        written: |said| Said::switch(said.compress),
        inherit: |said, weaker| inherit(&mut said.compress, &weaker.compress),
        apply: |said, config| put_flag(config, config_flag::COMPRESS, said.compress),
        read: |said, config| {
            said.compress = flag(config, config_flag::COMPRESS);
            Ok(())
        },
    },
    encryption::ENCRYPT,
    Setting {
        short: None,
        long: "incremental",
        value: Some(("N", Kind::Number)),
        optional: true,
        env: Some(Variable { name: "CKPT_INCREMENTAL", value: "0, 1 or 2" }),
        default: Some("1"),
        reach: Reach::Equips,
        help: "Periodic checkpoints write what has changed; 0: all",
        description: "With 1, a periodic checkpoint to a file updates the checkpoint before the last one, which is \
                      kept beside it under a hidden name, and writes only what differs. For large memory areas (32 MiB \
                      or more) the kernel reports what the program has written, where it can (Linux 6.7); the rest is \
                      read and compared. With 2, the kernel reports it for all memory. The program cannot register \
                      such memory with a userfaultfd(2) of its own (EBUSY), nor move it together with other memory in \
                      one mremap(2) (EFAULT). With 0, every checkpoint writes everything, and there is no second file.",
        parse: |said, value| fill(&mut said.incremental, parse_level(value)),
        written: |said| Said::number(said.incremental),
        inherit: |said, weaker| inherit(&mut said.incremental, &weaker.incremental),
        apply: |said, config| {
            let level = said.incremental;
            put_flag(config, config_flag::INCREMENTAL, level.map(|level| level > 0));
            put_flag(config, config_flag::TRACK_ALL, level.map(|level| level > 1));
        },
        read: |said, config| {
            said.incremental = level(config);
            Ok(())
        },
    },
    Setting {
        short: None,
        long: "fallback",
        value: Some(("FILENAME", Kind::File)),
        optional: false,
        env: Some(Variable { name: "CKPT_FALLBACK", value: "FILENAME" }),
        default: None,
        reach: Reach::Saves,
        help: "Save to FILENAME when server or command fail",
        description: "Where to save a checkpoint that the checkpoint server or |COMMAND did not accept. A relative \
                      name is relative to the same directory as that of -n.",
        parse: |said, value| fill(&mut said.transfer.fallback, parse_file(value)),
        written: |said| Said::value(said.transfer.fallback.as_ref()),
        inherit: |said, weaker| inherit(&mut said.transfer.fallback, &weaker.transfer.fallback),
        apply: |said, config| {
            if let Some(path) = &said.transfer.fallback {
                server::put_path(&mut config.fallback, path);
            }
        },
        read: |said, config| {
            said.transfer.fallback = server::get_path(&config.fallback)?;
            Ok(())
        },
    },
];
