// SPDX-License-Identifier: LGPL-2.1-only
//! The part of the table that is about checkpoint servers.

use super::entry::{Entry, Form, Kind, Operand, Opt, Set};
use crate::settings;

pub(super) const FORMS: &[Entry] = &[
    Entry {
        form: Form::Restart,
        word: Some("restart"),
        operand: Some(Operand { name: "NAME [OPTIONS...]", kind: Kind::File, optional: false }),
        help: "Execute a checkpoint of a server, in a file or from a command",
        long: "Executes the checkpoint NAME, which is cssrv://HOST[:PORT]/NAME, a file, |COMMAND for the \
               standard output of COMMAND, or - for standard input. What is no file is fetched into memory, \
               or into a file without a name in $TMPDIR or /var/tmp where memory is short, checked, and \
               executed there. OPTIONS after NAME are those of \
               a checkpoint file that is executed.",
        hidden: false,
    },
    Entry {
        form: Form::Serve,
        word: Some("serve"),
        operand: None,
        help: "Be a checkpoint server",
        long: "Stores checkpoints that are saved to cssrv://HOST[:PORT]/NAME as DIR/NAME and gives \
               them back, until SIGTERM or SIGINT. What several of them have in common is stored \
               once, and clients do not send it again. Prints a line for each request.\n\n\
               Clients and server share a key, with which they know each other and encrypt all \
               that they say: the file of --key, else of CKPT_KEY, else ~/.config/ckpt/key, which \
               the first start makes. Where homes are shared it is there for the clients too; \
               otherwise it has to be copied to the same place.\n\n\
               Called as ckptsrv, the server works without a key and DIR is /tmp, as in the \
               original ckpt.",
        hidden: false,
    },
    Entry {
        form: Form::List,
        word: Some("ls"),
        operand: Some(Operand { name: "SERVER", kind: Kind::File, optional: false }),
        help: "List the checkpoints on a server",
        long: "Lists the checkpoints on SERVER, which is cssrv://HOST[:PORT], or in one of its \
               folders, cssrv://HOST[:PORT]/FOLDER: size, when it was stored (UTC), name. In \
               'cssrv://HOST[:PORT]/PATTERN', * stands for any characters of a part of a name and ? for one; \
               folders that fit are listed with all that is in them.",
        hidden: false,
    },
    Entry {
        form: Form::Get,
        word: Some("get"),
        operand: Some(Operand { name: "NAME [FILE]", kind: Kind::File, optional: false }),
        help: "Fetch a checkpoint from a server",
        long: "Fetches the checkpoint NAME, cssrv://HOST[:PORT]/NAME, into FILE; without FILE into \
               the current directory, under the last part of NAME.",
        hidden: false,
    },
    Entry {
        form: Form::Put,
        word: Some("put"),
        operand: Some(Operand { name: "FILE NAME", kind: Kind::File, optional: false }),
        help: "Send a checkpoint to a server",
        long: "Sends the checkpoint FILE to a server as NAME, cssrv://HOST[:PORT]/NAME. One of \
               this name is replaced when the new one is whole.",
        hidden: false,
    },
    Entry {
        form: Form::Remove,
        word: Some("rm"),
        operand: Some(Operand { name: "NAME", kind: Kind::File, optional: false }),
        help: "Remove a checkpoint from a server",
        long: "Removes the checkpoint NAME, cssrv://HOST[:PORT]/NAME, and folders that become \
               empty.",
        hidden: false,
    },
    Entry {
        form: Form::Keygen,
        word: Some("keygen"),
        operand: Some(Operand { name: "FILE", kind: Kind::File, optional: false }),
        help: "Make a key for a checkpoint server",
        long: "Makes a new key in the new FILE, which only its owner can read.",
        hidden: false,
    },
];

/// The forms that may talk to a server, and the server.
pub(super) const KEYED: &[Form] = &[
    Form::Launch,
    Form::Attach,
    Form::Warm,
    Form::Stub,
    Form::Save,
    Form::Restart,
    Form::Verify,
    Form::Info,
    Form::Core,
    Form::Cat,
    Form::Check,
    Form::List,
    Form::Get,
    Form::Put,
    Form::Remove,
    Form::Serve,
];

pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        short: Some('p'),
        long: "port",
        value: Some(("PORT", Kind::Number)),
        default: Some("10301"),
        help: "Listen on PORT",
        description: "Listens on the TCP port PORT; with 0 on a free one, which is \
                      printed.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.port = Some(settings::parse_number(value, "a port from 0 to 65535")?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        short: Some('d'),
        long: "directory",
        value: Some(("DIR", Kind::File)),
        default: Some("the current directory"),
        help: "Store checkpoints in DIR",
        description: "Stores checkpoints in DIR. One server at a time works in a \
                      directory.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.directory = Some(settings::parse_file(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "listen",
        value: Some(("ADDR", Kind::Number)),
        default: Some("all addresses"),
        help: "Listen on the address ADDR; may be repeated",
        description: "Listens on the IPv4 or IPv6 address or host name ADDR alone. Given \
                      again, on several.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.listen.push(settings::parse_host(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "max-bytes",
        value: Some(("SIZE", Kind::Number)),
        default: Some("no limit"),
        help: "Refuse images of more than SIZE bytes",
        description: "Refuses images of more than SIZE bytes. SIZE may end with K, M, G or \
                      T.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.max_bytes = Some(settings::parse_size(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "quota",
        value: Some(("SIZE", Kind::Number)),
        default: Some("no limit"),
        help: "Refuse what makes DIR larger than SIZE",
        description: "Refuses uploads when all that is stored in DIR, with what is just being \
                      received, would take more than SIZE bytes. What several checkpoints have \
                      in common counts once.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.quota = Some(settings::parse_size(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "max-clients",
        value: Some(("COUNT", Kind::Number)),
        default: Some("1024"),
        help: "Serve at most COUNT clients at a time",
        description: "Serves at most COUNT connections at a time; others are told to come \
                      again, which ckpt does for some seconds.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.max_clients = Some(settings::parse_number(value, "a number of clients")?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "timeout",
        value: Some(("SECONDS", Kind::Number)),
        default: Some("30"),
        help: "Cut connections that are silent for SECONDS",
        description: "Ends a connection over which nothing came for SECONDS.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.timeout = Some(settings::parse_number(value, "a number of seconds")?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "json",
        help: "Print the lines of the log as JSON",
        description: "Prints each line of the log as a JSON object.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, _| {
            draft.serve.json = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "users",
        value: Some(("KEYS", Kind::File)),
        default: Some("one key for all"),
        help: "Know several users by their keys in the directory KEYS",
        description: "Knows several users: each file in the directory KEYS has the name of one \
                      and holds the key that ckpt keygen KEYS/USER has made. A user sees, \
                      replaces and removes only what is stored in DIR/USER, and --quota is for \
                      each. SIGHUP has KEYS read again.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.users = Some(settings::parse_file(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "metrics",
        value: Some(("ADDR", Kind::Number)),
        default: Some("nowhere"),
        help: "Answer Prometheus on ADDR: PORT or HOST:PORT",
        description: "Answers HTTP requests for /metrics in the text format of Prometheus: \
                      requests, failures, bytes, connections, and what is stored. ADDR is PORT \
                      or HOST:PORT. Nobody has to have a key for that, so with PORT alone only \
                      this host is answered.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.metrics = Some(settings::parse_host(value)?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "whole",
        help: "Store each checkpoint as a whole executable file",
        description: "Stores each checkpoint as the executable file that it is anywhere else. \
                      Without it content that several checkpoints have is stored once, and DIR \
                      holds files that say where it is; ckpt get makes executable files of them.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, _| {
            draft.serve.whole = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "check",
        help: "Check what is stored in DIR, and serve nothing",
        description: "Reads all that is stored in DIR, names the checkpoints that are damaged, \
                      gives back room that nothing uses, and ends. No server may work in DIR \
                      meanwhile.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, _| {
            draft.serve.check = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
];
