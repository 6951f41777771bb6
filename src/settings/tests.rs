// SPDX-License-Identifier: LGPL-2.1-only
use super::*;
use crate::proc::Pid;
use ckpt_abi::region::config_flag;

fn name(text: &str) -> std::result::Result<Name, String> {
    Name::parse(OsStr::new(text)).map_err(|e| e.to_string())
}

fn file(path: &str) -> Name {
    Name::File(PathBuf::from(path))
}

#[test]
fn names() {
    assert_eq!(name("foo.ckpt"), Ok(file("foo.ckpt")));
    assert_eq!(name("file://foo.ckpt"), Ok(file("foo.ckpt")));
    assert_eq!(name("file:///tmp/foo"), Ok(file("/tmp/foo")));
    assert_eq!(name("a:b:/c"), Ok(file("a:b:/c")));
    let bytes = OsStr::from_bytes(b"\xff\xfe/\x01");
    assert_eq!(Name::parse(bytes).unwrap().file(), Some(Path::new(bytes)));
}

#[test]
fn bad_names() {
    let cases = [
        ("", "''"),
        ("file://", "'file://'"),
        ("cssrv://host", "'cssrv://host' names no checkpoint"),
        ("http://x/y", "'http://x/y' has the unknown scheme 'http://'"),
        ("file://a://b", "'file://a://b' has the unknown scheme 'file://a://'"),
        ("://x", "unknown scheme '://'"),
        ("dir/", "'dir/' names a directory"),
        ("dir/..", "'dir/..' names a directory"),
        (".", "'.' names a directory"),
        ("a\0b", "NUL"),
    ];
    for (text, part) in cases {
        let sentence = name(text).unwrap_err();
        assert!(sentence.contains(part), "{text:?}: {sentence}");
    }
}

#[test]
fn longest_name() {
    assert!(name(&"x".repeat(LONGEST_NAME)).is_ok());
    assert!(name(&format!("file://{}", "x".repeat(LONGEST_NAME))).is_ok());
    let sentence = name(&"x".repeat(LONGEST_NAME + 1)).unwrap_err();
    assert!(sentence.contains("has 4096 bytes; at most 4095"), "{sentence}");
    assert!(sentence.len() < 300, "{sentence}");
}

#[test]
fn resolving() {
    let resolved = |path: &str| file(path).resolve(Path::new("/a//b/")).unwrap().written();
    assert_eq!(resolved("./x/./y"), "/a/b/x/y");
    assert_eq!(resolved("../y"), "/a/b/../y");
    assert_eq!(resolved("/z"), "/z");
    let long = file(&"x".repeat(LONGEST_NAME - 2));
    assert!(long.resolve(Path::new("/")).is_ok());
    let sentence = long.resolve(Path::new("/ab")).unwrap_err().to_string();
    assert!(sentence.contains("4097 bytes"), "{sentence}");
}

#[test]
fn numbers() {
    assert_eq!(parse_period(OsStr::new("4294967295")).unwrap(), u32::MAX);
    assert_eq!(parse_period(OsStr::new("0")).unwrap(), 0);
    for (text, period) in
        [("7ms", 7), ("30s", 30_000), ("10m", 600_000), ("1h", 3_600_000), ("49d", 4_233_600_000)]
    {
        assert_eq!(parse_period(OsStr::new(text)).unwrap(), period, "{text}");
        assert_eq!(period_text(period), text);
    }
    assert_eq!(period_text(90_000), "90s");
    for text in [
        "4294967296",
        "",
        "s",
        "1w",
        "1H",
        "1m30s",
        "50d",
        "99999999999999999999d",
        "-1",
        "+1",
        " 1",
        "1.5",
        "1.5h",
    ] {
        let sentence = parse_period(OsStr::new(text)).unwrap_err().to_string();
        assert!(sentence.contains(&format!("'{text}'")), "{sentence}");
    }
    assert_eq!(parse_pid(OsStr::new("2147483647")).unwrap(), Pid::new(i32::MAX));
    for text in ["0", "-5", "", "1x", "2147483648", "+7"] {
        let sentence = parse_pid(OsStr::new(text)).unwrap_err().to_string();
        assert!(sentence.contains(&format!("'{text}'")), "{sentence}");
    }
    assert!(parse_switch(OsStr::new("1")).unwrap());
    assert!(!parse_switch(OsStr::new("0")).unwrap());
    let sentence = parse_switch(OsStr::new("yes")).unwrap_err().to_string();
    assert!(sentence.contains("'yes'"), "{sentence}");
}

#[test]
fn sizes_and_pairs() {
    for (text, bytes) in [("0", 0), ("100", 100), ("64K", 65536), ("3m", 3 << 20), ("2G", 2 << 30)]
    {
        assert_eq!(parse_size(OsStr::new(text)).unwrap(), bytes, "{text}");
    }
    for text in ["", "K", "1P", "-1", "1.5M"] {
        assert!(parse_size(OsStr::new(text)).is_err(), "{text}");
    }
    let pair = parse_pair(OsStr::new("/a=/b=c")).unwrap();
    assert_eq!(pair, (PathBuf::from("/a"), PathBuf::from("/b=c")));
    for text in ["/a", "a=/b", "/a=b", "=", ""] {
        assert!(parse_pair(OsStr::new(text)).is_err(), "{text}");
    }
}

#[test]
fn default_names() {
    let cases = [("foo", "foo.ckpt"), ("/bin/foo", "foo.ckpt"), ("../x.sh", "x.sh.ckpt")];
    for (program, expected) in cases {
        assert_eq!(default_name(OsStr::new(program)), expected);
    }
    assert_eq!(default_name(OsStr::new("/")), "program.ckpt");
    let bytes = default_name(OsStr::from_bytes(b"/x/\xff"));
    assert_eq!(bytes.as_bytes(), b"\xff.ckpt");
}

fn without(words: &str) -> Option<Without> {
    let mut said = None;
    Without::parse(&mut said, OsStr::new(words)).unwrap();
    said
}

#[test]
fn configuration_and_back() {
    let said = Settings {
        name: Some(file("/tmp/a://b")),
        asyncsig: Some(10),
        continues: Some(false),
        msperiod: Some(250),
        exit_status: Some(85),
        keep: Some(3),
        embed: Some(1 << 20),
        keep_finished: Some(false),
        alone: Some(true),
        without: without("tail,12"),
        verbose: Some(true),
        compress: Some(true),
        encrypt: Some(true),
        incremental: Some(2),
        strict: Some(true),
        keep_tcp: Some(true),
        lazy: Some(true),
        notify: Some("mail -s 'saved' me".into()),
        transfer: Transfer {
            key: Some(server::Key::Said("/k".into())),
            insecure: Some(true),
            fallback: Some("/f".into()),
        },
    };
    let mut base = default_config();
    base.name.fill(b'x');
    base.keep = 7;
    let config = said.apply(base);
    assert_eq!(&config.name[..11], b"/tmp/a://b\0");
    assert!(config.name[10..].iter().all(|&b| b == 0));
    assert_eq!((config.asyncsig, config.continues, config.msperiod), (10, 0, 250));
    let flags = config_flag::CONTINUE_GIVEN
        | config_flag::SET_ASIDE
        | config_flag::ALONE
        | config_flag::VERBOSE
        | config_flag::STRICT
        | config_flag::KEEP_TCP
        | config_flag::LAZY
        | config_flag::INCREMENTAL
        | config_flag::TRACK_ALL
        | config_flag::INSECURE
        | config_flag::COMPRESS
        | config_flag::ENCRYPT;
    assert_eq!((config.flags, config.keep), (flags, 3));
    assert_eq!(config.exit_status, 85);
    assert_eq!(Settings::from_config(&config).unwrap(), said);
}

#[test]
fn periodic_checkpoints_write_what_has_changed_where_nothing_else_is_said() {
    for (level, flags, told) in [
        (None, config_flag::INCREMENTAL, None),
        (Some(0), 0, Some(0)),
        (Some(1), config_flag::INCREMENTAL, None),
        (Some(2), config_flag::INCREMENTAL | config_flag::TRACK_ALL, Some(2)),
    ] {
        let config = Settings { incremental: level, ..Settings::default() }.apply(default_config());
        assert_eq!(config.flags & (config_flag::INCREMENTAL | config_flag::TRACK_ALL), flags);
        assert_eq!(Settings::from_config(&config).unwrap().incremental, told);
    }
}

#[test]
fn what_is_not_said_stays() {
    let base = default_config();
    assert_eq!(Settings::default().apply(base), base);
    let expected = Settings {
        asyncsig: Some(20),
        msperiod: Some(0),
        exit_status: Some(0),
        keep: Some(0),
        embed: Some(0),
        ..Settings::default()
    };
    assert_eq!(Settings::from_config(&base).unwrap(), expected);
    assert_eq!(expected.apply(base), base);
}

#[test]
fn broken_configurations_are_refused() {
    let sound = default_config();
    for broken in [
        Config { name: [b'/'; NAME_LEN], ..sound },
        Config { asyncsig: 9, ..sound },
        Config { asyncsig: 1 << 20, ..sound },
        Config { continues: 2, ..sound },
        Config { exit_status: 256, ..sound },
    ] {
        assert!(Settings::from_config(&broken).is_err());
    }
}

#[test]
fn options_win() {
    let options = Settings { asyncsig: Some(0), ..Settings::default() };
    let weaker = Settings { asyncsig: Some(10), continues: Some(true), ..Settings::default() };
    let both = options.or(weaker);
    assert_eq!((both.asyncsig, both.continues), (Some(0), Some(true)));
}

/// What is handed on by words is what the next ckpt reads, setting by setting.
#[test]
fn words_say_everything() {
    let mut said = Settings {
        name: Some(file("/tmp/a b%n")),
        asyncsig: Some(10),
        continues: Some(true),
        msperiod: Some(250),
        exit_status: Some(85),
        keep: Some(3),
        embed: Some(1 << 20),
        keep_finished: Some(true),
        alone: Some(true),
        without: without("tail,12"),
        verbose: Some(true),
        compress: Some(true),
        encrypt: Some(true),
        incremental: Some(2),
        strict: Some(true),
        keep_tcp: Some(true),
        lazy: Some(true),
        notify: Some("mail -s 'saved' me".into()),
        transfer: Transfer {
            key: Some(server::Key::Said("/k".into())),
            insecure: Some(true),
            fallback: Some("/f".into()),
        },
    };
    let words = said.words().unwrap();
    // Words that say a passphrase's descriptor would be read where there is none.
    let written = || SETTINGS.iter().filter(|setting| setting.long != "passphrase-fd");
    assert_eq!(words.len(), written().count());
    let mut read = Settings::default();
    for (word, setting) in words.iter().zip(written()) {
        let word = word.to_str().unwrap();
        let (option, value) = word.split_once('=').unwrap_or((word, "1"));
        assert_eq!(option, format!("--{}", setting.long));
        (setting.parse)(&mut read, OsStr::new(value)).unwrap();
    }
    assert_eq!(read, said);
    assert_eq!(Settings::default().words(), Some(vec![]));
    said.continues = Some(false);
    assert_eq!(said.words(), None);
}
