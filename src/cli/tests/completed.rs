// SPDX-License-Identifier: LGPL-2.1-only
//! Completions: what real shells make of the scripts. Every system for developers has bash; zsh and fish are asked where
//! they are.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::super::table::{self, Form, OPTIONS};
use super::super::{Shell, completions};
use super::has_word;

#[test]
fn every_option_is_in_every_completion() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = completions(shell);
        for opt in OPTIONS.iter().filter(|opt| opt.forms.iter().any(|f| *f != Form::Stub)) {
            let long = opt.long;
            let value = opt.value.is_some();
            let expected = match (shell, opt.short) {
                (Shell::Bash, Some(c)) => format!("-{c} --{long}"),
                (Shell::Bash, None) => format!(" --{long}"),
                (Shell::Zsh, Some(c)) if value => format!("{{-{c}+,--{long}=}}'["),
                (Shell::Zsh, Some(c)) => format!("{{-{c},--{long}}}'["),
                (Shell::Zsh, None) if opt.optional => format!("--{long}=-'["),
                (Shell::Zsh, None) if value => format!("--{long}='["),
                (Shell::Zsh, None) => format!("--{long}'["),
                (Shell::Fish, Some(c)) => format!("-s {c} -l {long} "),
                (Shell::Fish, None) => format!("' -l {long} "),
            };
            assert!(script.contains(&expected), "{shell:?} lacks {expected}");
        }
        for (word, _) in table::subcommands() {
            assert!(has_word(&script, word), "{shell:?} {word}");
        }
    }
}

/// What a shell says on standard output, and nothing on the other; None: there is no such shell.
fn said(shell: &str, arguments: &[&str], script: &str) -> Option<Vec<String>> {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", shell]).args(arguments).arg(script).env("TERM", "dumb");
    let output = command.stdin(Stdio::null()).output().expect("a process");
    if output.status.code() == Some(127) {
        println!("there is no {shell}: nothing was tested");
        return None;
    }
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{shell}: {script}");
    assert_eq!(output.status.code(), Some(0), "{shell}: {script}");
    Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// What bash makes of the words behind a command.
fn bash(function: &str, line: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "{}\nCOMP_WORDS=(ckpt {}); COMP_CWORD={}; {function}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        completions(Shell::Bash),
        quoted.join(" "),
        line.len()
    );
    said("bash", &["--noprofile", "--norc", "-c"], &script).expect("bash")
}

fn bash_completes(line: &[&str]) -> Vec<String> {
    bash("_ckpt", line)
}

#[test]
fn bash_completion_works() {
    assert_eq!(bash_completes(&["--na"]), ["--name"]);
    assert_eq!(bash_completes(&["-c", "--si"]), ["--signal"]);
    assert_eq!(bash_completes(&["-a", "USR"]), ["USR1", "USR2"]);
    assert_eq!(bash_completes(&["--cpu", "x86-64-v3"]), ["x86-64-v3"]);
    assert_eq!(bash_completes(&["-n", "x", "save", "--sto"]), ["--stop"]);
    assert_eq!(bash_completes(&["--signal", "=", "USR"]), ["USR1", "USR2"]);
    assert_eq!(bash_completes(&["--name", "=", "x", "save", "--sto"]), ["--stop"]);
    assert_eq!(bash_completes(&["completions", "z"]), ["zsh"]);
    assert_eq!(bash_completes(&["help", "ver"]), ["verify"]);
    assert!(bash_completes(&["verif"]).contains(&"verify".to_owned()));
    assert!(bash_completes(&["ech"]).contains(&"echo".to_owned()), "programs complete too");
    assert_eq!(bash_completes(&["foo", "--na"]), [""], "options after PROGRAM are its own");
    assert_eq!(bash_completes(&["info", "Cargo.t"]), ["Cargo.toml"]);
    assert_eq!(bash_completes(&["--resume", "=", ""]), ["any"]);
    assert_eq!(bash_completes(&["--resume", "=", "any", "save", "--sto"]), ["--stop"]);
    assert!(bash_completes(&["--resume", "ech"]).contains(&"echo".to_owned()), "no value");
}

#[test]
fn bash_knows_a_checkpoints_options() {
    assert_eq!(bash("_ckpt_file", &["--ids", ""]), IDS);
    assert_eq!(bash_completes(&["--ids", "=", ""]), IDS);
    assert_eq!(bash_completes(&["restart", "--ids"]), [""]);
    for line in [&["restart", "x"][..], &["restart", "--key", "k", "--", "x", "-c"]] {
        assert_eq!(bash_completes(&[line, &["--id"]].concat()), ["--ids"], "{line:?}");
        assert_eq!(bash_completes(&[line, &["--ids", ""]].concat()), IDS, "{line:?}");
    }
    assert_eq!(bash_completes(&["move", "7", "--rs"]), ["--rsh"]);
    assert_eq!(bash_completes(&["move", "--rsh", "x y", "7", "host", "--id"]), ["--ids"]);
    assert_eq!(bash_completes(&["save", "7", "8", "--sto"]), ["--stop"]);
}

const IDS: [&str; 3] = ["keep", "new", "auto"];

/// A process of ours, and one that has ended and has no executable any more, as threads of the kernel have none.
struct Kin([Child; 2]);

impl Kin {
    fn new() -> Self {
        let child = |program: &str| Command::new(program).arg("1000").spawn().expect("a process");
        let kin = Self([child("sleep"), child("true")]);
        let ended = Id::Pid(Pid::from_raw(kin.0[1].id().cast_signed()));
        waitid(ended, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("it ends");
        kin
    }

    /// Whether the first is among these words, and the other is not.
    #[track_caller]
    fn check(&self, shell: &str, words: &[String]) {
        let [lives, ended] = self.0.each_ref().map(|child| {
            let id = child.id().to_string();
            words.iter().any(|word| word.split(|c: char| !c.is_ascii_digit()).any(|w| w == id))
        });
        assert!(lives && !ended, "{shell}: {words:?}");
    }
}

impl Drop for Kin {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn ones_own_processes_are_offered() {
    let kin = Kin::new();
    for line in [&["-p"][..], &["save"], &["move"]] {
        kin.check("bash", &bash_completes(&[line, &[""]].concat()));
        if let Some(words) = fish_completes(&format!("ckpt {} ", line.join(" "))) {
            kin.check("fish", &words);
        }
        if let Some(words) = zsh_completes(&format!("ckpt {} ", line.join(" "))) {
            kin.check("zsh", &words);
        }
    }
}

/// What fish makes of a line, without the descriptions.
fn fish_completes(line: &str) -> Option<Vec<String>> {
    let script = format!("{}\ncomplete -C '{line}'", completions(Shell::Fish));
    let words = said("fish", &["--no-config", "-c"], &script)?;
    Some(words.iter().map(|w| w.split('\t').next().unwrap_or_default().to_owned()).collect())
}

/// Lines and what may come there, for shells that are asked by line.
const LINES: [(&str, &[&str]); 13] = [
    ("ckpt --nam", &["--name"]),
    ("ckpt -c --signa", &["--signal"]),
    ("ckpt -a USR", &["USR1", "USR2"]),
    ("ckpt --cpu x86-64-v3", &["x86-64-v3"]),
    ("ckpt -n x save --sto", &["--stop"]),
    ("ckpt completions z", &["zsh"]),
    ("ckpt help ver", &["verify"]),
    ("ckpt --ids ", &IDS),
    ("./foo.ckpt --ids ", &IDS),
    ("ckpt restart x --id", &["--ids"]),
    ("ckpt restart x --ids ", &IDS),
    ("ckpt move --rsh y 7 host --id", &["--ids"]),
    ("ckpt move 7 --rs", &["--rsh"]),
];

/// What zsh makes of a line. Only its line editor completes: it runs on a terminal of zsh's own, begins with this line, and
/// notes what it is given.
fn zsh_completes(line: &str) -> Option<Vec<String>> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (own, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(format!("ckpt-zsh-{own}-{count}"));
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("ckpt"), completions(Shell::Zsh)).expect("a file");
    std::fs::write(folder.join(".zshrc"), ZSHRC).expect("a file");
    let script = format!("export LINE='{line}' ZDOTDIR={}\n{ZSH}", folder.display());
    let said = said("zsh", &["-f", "-c"], &script);
    std::fs::remove_dir_all(&folder).expect("the folder");
    said
}

const ZSH: &str = "zmodload zsh/zpty\n\
    zpty z exec zsh -d -i\n\
    while zpty -r z _; do :; done\n\
    cat $ZDOTDIR/found";

// It asks before it lists many.
const ZSHRC: &str = "unsetopt auto_list auto_menu\n\
    autoload -Uz compinit && compinit -u -D\n\
    source $ZDOTDIR/ckpt\n\
    compadd() {\n\
    \x20 local -a found\n\
    \x20 if [[ $argv[1,(i)(-|--)] != *-[OAD]* ]]; then\n\
    \x20   builtin compadd -A found \"$@\"\n\
    \x20   print -l -- $found >> $ZDOTDIR/found\n\
    \x20 fi\n\
    \x20 builtin compadd \"$@\"\n\
    }\n\
    noting() { BUFFER=$LINE CURSOR=$#LINE; zle complete-word; exit }\n\
    zle -N zle-line-init noting\n";

#[test]
fn fish_and_zsh_complete() {
    for (line, expected) in LINES {
        for found in [fish_completes(line), zsh_completes(line)].into_iter().flatten() {
            let mut found: Vec<&str> = found.iter().map(|word| word.trim()).collect();
            found.retain(|word| !word.is_empty());
            found.sort_unstable();
            found.dedup();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(found, expected, "{line}");
        }
    }
}
