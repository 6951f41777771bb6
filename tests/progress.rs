// SPDX-License-Identifier: LGPL-2.1-only
//! What is shown of a save, a restart or a transfer that takes long: on a terminal, and nothing of it stays.
//! `CKPT_FAULT=slow` has everything count as long.

mod harness;
mod serving;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;

use harness::{Bench, Build, Run, Who, until};
use serving::Server;

/// What the line ends with, each time: erase to the end of the line.
const ERASE: &str = "\x1b[K";
const SLOW: &str = "CKPT_FAULT=slow";

/// A program that leads a session with a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn start(bench: &Bench, command: &[&str]) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
        let stream = || Stdio::from(pty.slave.try_clone().expect("a duplicate"));
        let mut setsid: Command = bench.command("setsid");
        setsid.args(["--ctty", "env", SLOW]).args(command);
        let child = setsid.stdin(stream()).stdout(stream()).stderr(stream()).spawn();
        let keyboard = File::from(pty.master);
        let mut output = keyboard.try_clone().expect("a duplicate");
        let screen = Arc::new(Mutex::new(String::new()));
        let text = screen.clone();
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 1024];
            while let Ok(n @ 1..) = output.read(&mut piece) {
                text.lock().expect("no panic").push_str(&String::from_utf8_lossy(&piece[..n]));
            }
        });
        Self { child: child.expect("setsid"), keyboard, screen, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.screen.lock().expect("no panic").clone()
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        until(&format!("{text:?} in {:?}", self.text()), || {
            self.text().contains(text).then_some(())
        });
    }

    #[track_caller]
    fn types(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal takes keys");
    }

    /// What it has shown when it has ended with this status.
    #[track_caller]
    fn ended(mut self, code: i32) -> String {
        let status = until("the end", || self.child.try_wait().expect("a child of ours"));
        assert_eq!(status.code(), Some(code), "{:?}", self.text());
        // Nobody has the other end any more.
        self.reader.take().expect("once").join().expect("no panic");
        self.text()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The line was shown, and is gone; what stands behind it.
#[track_caller]
fn behind<'a>(screen: &'a str, name: &str) -> &'a str {
    let line = format!("\r{name}: ");
    assert!(screen.contains(&line) && screen.contains("/s"), "nothing was shown: {screen:?}");
    let (_, rest) =
        screen.rsplit_once(&format!("\r{ERASE}")).unwrap_or_else(|| panic!("it stays: {screen:?}"));
    assert!(!rest.contains(&line) && !rest.contains(ERASE), "it is not the last: {screen:?}");
    rest
}

fn start(bench: &Bench, options: &[&str]) -> Run {
    let mut run = bench.launch(options, bench.subject("weigh", Build::Pie), &["16", "1"]);
    run.expect("ready");
    run
}

#[test]
fn a_save_shows_how_far_it_is() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let (run, ckpt, name) = (start(&bench, &[]), bench.name("ckpt"), bench.name("x.ckpt"));
        let pid = run.pid_text();
        let screen = Terminal::start(&bench, &[&ckpt, "save", &pid, "-n", &name]).ended(0);
        assert!(behind(&screen, "x.ckpt").contains("the program stood still"), "{screen:?}");
        assert!(screen.contains("left"), "{screen:?}");
        // Where there is no terminal there is no line.
        let mut command = bench.command(bench.ckpt());
        command.args(["save", &pid, "-n", &name]).env("CKPT_FAULT", "slow");
        let ended = Run::start(command).ends_well();
        assert!(!ended.stderr.contains(ERASE), "{ended:?}");
        run.go();
    }
}

#[test]
fn a_signal_shows_it_where_the_program_ends() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let weigh = bench.subject("weigh", Build::Pie);
        let (weigh, ckpt) = (weigh.to_str().expect("utf-8"), bench.name("ckpt"));
        let mut ends = Terminal::start(&bench, &[&ckpt, "-n", "x.ckpt", weigh, "16", "1"]);
        ends.shows("ready");
        ends.types(b"\x1a");
        let screen = ends.ended(0);
        assert!(screen.contains("\r\nx.ckpt: ") || screen.contains("\r\r\nx.ckpt: "), "{screen:?}");
        let rest = screen.rsplit_once(&format!("\r{ERASE}")).map_or("", |(_, rest)| rest);
        assert!(rest.contains("saved to"), "{screen:?}");
        // A program that goes on has its screen for itself, and so has one that does not leave lines to the terminal.
        let script = format!("stty -icanon; exec env {SLOW} {ckpt} -n raw.ckpt {weigh} 16 1");
        for words in [
            &[&*ckpt, "-c", "-n", "c.ckpt", weigh, "16", "1"][..],
            &[&ckpt, "-z", "50", "-n", "z.ckpt", weigh, "16", "1"],
            &["sh", "-c", &script],
        ] {
            let mut goes_on = Terminal::start(&bench, words);
            goes_on.shows("ready");
            let image = ["c.ckpt", "z.ckpt", "raw.ckpt"].map(|name| bench.path(name));
            goes_on.types(if words.contains(&"-z") { b"" } else { b"\x1a" });
            until("a checkpoint", || image.iter().any(|file| file.exists()).then_some(()));
            image.iter().for_each(|file| drop(fs::remove_file(file)));
            if !words.contains(&"sh") {
                goes_on.types(b"go\n");
            }
            let screen = goes_on.ended(0);
            assert!(!screen.contains(ERASE), "{words:?}: {screen:?}");
        }
    }
}

#[test]
fn a_restart_shows_it_until_the_program_goes_on() {
    for (who, is_tree) in [(Who::Me, false), (Who::Nobody, false), (Who::Me, true)] {
        let bench = Bench::new(who);
        let weigh = bench.subject("weigh", Build::Pie);
        let script = format!("{} 16 1; echo over", weigh.display());
        let mut run = match is_tree {
            true => bench.launch(&[], "sh", &["-c", &script]),
            false => bench.launch(&[], weigh, &["16", "1"]),
        };
        run.expect("ready");
        bench.must(&["save", &run.pid_text(), "--stop", "-n", &bench.name("x.ckpt")]);
        run.ends_well();
        let mut again = Terminal::start(&bench, &[&bench.name("x.ckpt")]);
        again.types(b"step\n");
        again.shows("ok");
        again.types(b"go\n");
        let screen = again.ended(0);
        assert!(behind(&screen, "x.ckpt").contains("ok"), "{screen:?}");
        // A sentence about what fails stands in a line of its own.
        // Whoever came from it may still be ending.
        let open = || File::options().write(true).open(bench.path("x.ckpt")).ok();
        let image = until("an image that nobody executes", open);
        let middle = image.metadata().expect("its length").len() - (1 << 20);
        image.write_all_at(b"something else", middle).expect("its middle");
        drop(image);
        let screen = Terminal::start(&bench, &[&bench.name("x.ckpt")]).ended(125);
        assert!(behind(&screen, "x.ckpt").starts_with("ckpt: "), "{screen:?}");
    }
}

#[test]
fn transfers_show_it() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &serving::insecure());
    let (run, ckpt, name) = (start(&bench, &[]), bench.name("ckpt"), bench.name("x.ckpt"));
    bench.must(&["save", &run.pid_text(), "-n", &name]);
    let there = server.name("there");
    for (words, shown) in [
        (["put", &name, &there], "x.ckpt"),
        (["get", &there, "y.ckpt"], "there"),
        (["save", &run.pid_text(), &format!("--name={there}")], "there"),
    ] {
        let words: Vec<_> = [&*ckpt, words[0], "--insecure", words[1], words[2]].to_vec();
        let screen = Terminal::start(&bench, &words).ended(0);
        behind(&screen, shown);
    }
    run.go();
}

/// Where nobody reads what a terminal shows, a line is left out: whoever waited for it would have a program stand still.
#[test]
fn a_terminal_that_is_stopped_delays_nothing() {
    let bench = Bench::new(Who::Nobody);
    let (mut run, ckpt) = (start(&bench, &[]), bench.name("ckpt"));
    let script = "echo ready; read line; exec \"$@\" >told";
    let pid = run.pid_text();
    let words = ["sh", "-c", script, "sh", &ckpt, "save", &pid, "-n", "x.ckpt"];
    let mut save = Terminal::start(&bench, &words);
    save.shows("ready");
    // ^S, before the line that lets it begin.
    save.types(b"\x13go\n");
    until("the checkpoint", || bench.path("x.ckpt").exists().then_some(()));
    run.check();
    // ^Q
    save.types(b"\x11");
    save.ended(0);
    run.go();
}
