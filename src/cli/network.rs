// SPDX-License-Identifier: LGPL-2.1-only
//! The part of the table that is about checkpoint servers.

use super::entry::{Entry, Form, Kind, Operand, Opt, Set};
use crate::settings;

pub(super) const FORMS: &[Entry] = &[
    Entry {
        form: Form::Restart,
        word: Some("restart"),
        operand: Some(Operand { name: "NAME [OPTIONS...]", kind: Kind::File, optional: false }),
        help: "Execute a checkpoint from a server, a file or a command",
        long: "Executes the checkpoint NAME: cssrv://HOST[:PORT]/NAME, a file, |COMMAND for \
               the standard output of COMMAND, or - for standard input. Anything but a file \
               is first read into memory (or, if memory is short, into an unnamed file in \
               $TMPDIR or /var/tmp), checked, and executed from there. OPTIONS after NAME are \
               the options of a checkpoint file.",
        hidden: false,
    },
    Entry {
        form: Form::Serve,
        word: Some("serve"),
        operand: None,
        help: "Run a checkpoint server",
        long: "Stores checkpoints saved to cssrv://HOST[:PORT]/NAME as DIR/NAME and serves \
               them, until SIGTERM or SIGINT. Content that several checkpoints share is \
               stored, and sent by clients, only once. Logs a line for each request.\n\n\
               Server and clients share a key, which authenticates both sides and encrypts \
               everything between them: the file given by --key, or else CKPT_KEY, or else \
               ~/.config/ckpt/key, which the first start creates. With a shared home \
               directory the clients find it there; otherwise copy it to the same place on \
               their machines.\n\n\
               Run under the name ckptsrv, the server needs no key and DIR is /tmp, as in the \
               original ckpt.",
        hidden: false,
    },
    Entry {
        form: Form::List,
        word: Some("ls"),
        operand: Some(Operand { name: "SERVER", kind: Kind::File, optional: false }),
        help: "List the checkpoints on a server",
        long: "Lists the checkpoints on SERVER, cssrv://HOST[:PORT], or in one of its \
               folders, cssrv://HOST[:PORT]/FOLDER: size, time stored (UTC), name. In \
               'cssrv://HOST[:PORT]/PATTERN', * matches any characters within one part of a \
               name and ? matches one; matching folders are listed with all their contents.",
        hidden: false,
    },
    Entry {
        form: Form::Get,
        word: Some("get"),
        operand: Some(Operand { name: "NAME [FILE]", kind: Kind::File, optional: false }),
        help: "Download a checkpoint from a server",
        long: "Downloads the checkpoint NAME, cssrv://HOST[:PORT]/NAME, to FILE; without \
               FILE, to the current directory under the last part of NAME.",
        hidden: false,
    },
    Entry {
        form: Form::Put,
        word: Some("put"),
        operand: Some(Operand { name: "FILE NAME", kind: Kind::File, optional: false }),
        help: "Upload a checkpoint to a server",
        long: "Uploads the checkpoint FILE to a server as NAME, cssrv://HOST[:PORT]/NAME. An \
               existing checkpoint of that name is replaced once the new one is complete.",
        hidden: false,
    },
    Entry {
        form: Form::Remove,
        word: Some("rm"),
        operand: Some(Operand { name: "NAME", kind: Kind::File, optional: false }),
        help: "Remove a checkpoint from a server",
        long: "Removes the checkpoint NAME, cssrv://HOST[:PORT]/NAME, and any folders left \
               empty.",
        hidden: false,
    },
    Entry {
        form: Form::Keygen,
        word: Some("keygen"),
        operand: Some(Operand { name: "FILE", kind: Kind::File, optional: false }),
        help: "Make a key for a checkpoint server",
        long: "Writes a new key to FILE, which must not exist yet and which only its owner \
               can read.",
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
        description: "Listens on TCP port PORT; with 0, on a free one, which is printed.",
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
        description: "Stores checkpoints in DIR. Only one server at a time can use a \
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
        description: "Listens only on ADDR, an IPv4 or IPv6 address or a host name. \
                      Repeatable.",
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
        help: "Refuse checkpoints of more than SIZE bytes",
        description: "Refuses checkpoints of more than SIZE bytes. SIZE may end in K, M, G or \
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
        help: "Refuse uploads that make DIR larger than SIZE",
        description: "Refuses uploads if everything stored in DIR, including uploads in \
                      progress, would exceed SIZE bytes. Content that checkpoints share \
                      counts once.",
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
        description: "Serves at most COUNT connections at a time; others are told to try \
                      again later, which ckpt does for some seconds.",
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
        help: "Close connections that are silent for SECONDS",
        description: "Closes a connection on which nothing has arrived for SECONDS.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, value| {
            draft.serve.timeout = Some(settings::parse_number(value, "a number of seconds")?);
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "json",
        help: "Print the log as JSON",
        description: "Prints each log line as a JSON object.",
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
        help: "Serve several users, with their keys in KEYS",
        description: "Serves several users: each file in the directory KEYS is named after a \
                      user and contains the key made by ckpt keygen KEYS/USER. Users see, \
                      replace and remove only what is stored in DIR/USER, and --quota applies \
                      to each. SIGHUP rereads KEYS.",
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
        help: "Serve Prometheus metrics on ADDR: PORT or HOST:PORT",
        description: "Answers HTTP requests for /metrics in Prometheus' text format: \
                      requests, failures, bytes, connections, and what is stored. ADDR is \
                      PORT or HOST:PORT. This needs no key, so PORT alone listens only on \
                      this host's loopback address.",
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
        description: "Stores each checkpoint as one executable file, like a local one. \
                      Without this, content that checkpoints share is stored once, the files \
                      in DIR only refer to it, and ckpt get makes executable files of them.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, _| {
            draft.serve.whole = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
    Opt {
        long: "check",
        help: "Check what is stored in DIR and exit",
        description: "Reads everything stored in DIR, reports damaged checkpoints, frees \
                      space that nothing uses, and exits. No server may be using DIR.",
        forms: &[Form::Serve],
        set: Set::Draft(|draft, _| {
            draft.serve.check = true;
            Ok(())
        }),
        ..Opt::SWITCH
    },
];
