// SPDX-License-Identifier: LGPL-2.1-only
//! A real terminal: ^Z saves, and the restarted program has the restarter's terminal.

mod harness;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

use harness::{Bench, Build, Who, until};

/// A program that leads a session with a terminal of its own.
struct Session {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
}

impl Session {
    fn start(bench: &Bench, command: &[&str]) -> Self {
        Self::of_size(bench, command, (80, 24))
    }

    fn of_size(bench: &Bench, command: &[&str], (ws_col, ws_row): (u16, u16)) -> Self {
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo terminal");
        // The program has one end alone.
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
        let stream = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a duplicate"));
        let mut setsid: Command = bench.command("setsid");
        setsid.arg("--ctty").args(command);
        setsid.stdin(stream(&pty.slave)).stdout(stream(&pty.slave)).stderr(stream(&pty.slave));
        let child = setsid.spawn().expect("setsid");
        let keyboard = File::from(pty.master);
        let mut output = keyboard.try_clone().expect("a duplicate");
        let screen = Arc::new(Mutex::new(String::new()));
        let text = screen.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 1024];
            while let Ok(n @ 1..) = output.read(&mut piece) {
                text.lock().expect("no panic").push_str(&String::from_utf8_lossy(&piece[..n]));
            }
        });
        Self { child, keyboard, screen }
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        until(&format!("{text:?} on the screen"), || {
            self.screen.lock().expect("no panic").contains(text).then_some(())
        });
    }

    fn types(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal takes keys");
    }

    /// Waits until a job is in the foreground.
    fn gives_the_terminal_away(&self) {
        let shell = self.child.id().cast_signed();
        until("a job in the foreground", || {
            nix::unistd::tcgetpgrp(&self.keyboard)
                .is_ok_and(|it| it.as_raw() != shell)
                .then_some(())
        });
    }

    /// Waits until a program of this name leads the group that is in the foreground.
    fn shows_job(&self, name: &str) {
        until("a job in the foreground", || {
            let group = nix::unistd::tcgetpgrp(&self.keyboard).ok()?;
            let is_it = |comm: String| comm.trim_end() == name;
            fs::read_to_string(format!("/proc/{group}/comm")).is_ok_and(is_it).then_some(())
        });
    }

    /// The screen from here on.
    fn forget(&self) {
        self.screen.lock().expect("no panic").clear();
    }

    /// Waits until it has ended.
    fn is_over(&mut self) {
        until("the end", || self.child.try_wait().expect("a child of ours"));
    }

    #[track_caller]
    fn ends_with(mut self, code: i32) {
        let status = until("the end", || self.child.try_wait().expect("a child of ours"));
        let screen = self.screen.lock().expect("no panic").clone();
        assert_eq!(status.code(), Some(code), "{screen}");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

#[test]
fn control_z_saves_and_the_next_terminal_goes_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let program = bench.subject("signals", Build::Pie);
        let mut first =
            Session::start(&bench, &[text(&bench.ckpt()), "-n", "x.ckpt", text(&program)]);
        for _ in 0..3 {
            first.shows("ready");
            first.types(b"\x1a");
            first.ends_with(0);
            first = Session::start(&bench, &[text(&bench.path("x.ckpt"))]);
            first.types(b"check\n");
            first.shows("ok");
            first.screen.lock().expect("no panic").push_str("ready");
        }
        first.types(b"go\n");
        first.ends_with(0);
    }
}

#[test]
fn control_z_under_an_interactive_shell() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("signals", Build::Pie);
    let mut shell = Session::start(&bench, &["bash", "--norc", "--noprofile", "-i"]);
    let line = format!("{} -n x.ckpt {}; echo status=$?\n", text(&bench.ckpt()), text(&program));
    shell.types(line.as_bytes());
    shell.shows("ready");
    shell.types(b"\x1a");
    shell.shows("status=0");
    shell.types(b"./x.ckpt; echo again=$?\n");
    shell.types(b"check\n");
    shell.shows("ok\r\n");
    shell.types(b"go\n");
    shell.shows("again=0");
    shell.types(b"exit\n");
    shell.ends_with(0);
}

/// One step of a job: says that it is there, each time that it is asked, until it may end.
const STEP: &str = "import os, time\nprint('at', flush=True)\n\
                        while not os.path.exists('gate'):\n    time.sleep(0.01)\n    \
                        if os.path.exists('knock'):\n        os.unlink('knock')\n        print('here', flush=True)\n\
                        print(6 * 7, flush=True)\n";

/// Children that the terminal stops with the rest of the job run to the checkpoint, and go on where the job does.
#[test]
fn control_z_of_a_job_under_an_interactive_shell() {
    const LOOP: &str = "for i in 1 2; do python3 step.py; done; echo all of it $?";
    const PIPE: &str =
        "python3 step.py | (read a; echo $a; while read b; do echo $b; done); echo all of it $?";
    for (who, script, options) in [
        (Who::Me, LOOP, "-c "),
        (Who::Nobody, LOOP, ""),
        (Who::Me, PIPE, ""),
        (Who::Nobody, PIPE, "-c "),
    ] {
        let bench = Bench::new(who);
        bench.file("step.py", STEP);
        bench.file("job.sh", format!("#!/bin/bash\n{script}\n"));
        let mut shell = Session::start(&bench, &["bash", "--norc", "--noprofile", "-i"]);
        shell.types(format!("./ckpt {options}-n x.ckpt ./job.sh; echo status=$?\n").as_bytes());
        shell.shows("at\r\n");
        shell.types(b"\x1a");
        until("a checkpoint", || bench.path("x.ckpt").exists().then_some(()));
        if options.is_empty() {
            shell.shows("status=0");
            for _ in 0..2 {
                shell.forget();
                shell.types(b"./x.ckpt; echo status=$?\n");
                bench.file("knock", "");
                shell.shows("here\r\n");
                shell.types(b"\x1a");
                shell.shows("status=0");
            }
            shell.forget();
            shell.types(b"./x.ckpt; echo status=$?\n");
        }
        bench.file("gate", "");
        shell.shows("42\r\n");
        shell.shows("all of it 0");
        shell.shows("status=0");
        shell.types(b"exit\n");
        shell.ends_with(0);
    }
}

/// ^Z stops a restarted job where another signal saves it, and it goes on in the background once it is told to.
#[test]
fn a_job_that_was_stopped_runs_in_the_background() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("step.py", STEP);
        bench.file("job.sh", "#!/bin/bash\necho $$ > pid\npython3 step.py\necho all of it $?\n");
        let mut shell = Session::start(&bench, &["bash", "--norc", "--noprofile", "-i"]);
        shell.types(b"./ckpt -a USR1 ./job.sh; echo status=$?\n");
        shell.shows("at\r\n");
        let pid = fs::read_to_string(bench.path("pid")).expect("an id");
        bench.must(&["save", "--stop", pid.trim(), "-n", &bench.name("x.ckpt")]);
        shell.shows("status=0");
        shell.types(b"./x.ckpt; echo status=$?\n");
        for round in 0..8 {
            bench.file("knock", "");
            shell.shows("here\r\n");
            shell.gives_the_terminal_away();
            shell.forget();
            shell.types(b"\x1a");
            shell.shows(if round == 0 { "status=148" } else { "Stopped" });
            shell.forget();
            shell.types(b"bg\n");
            shell.shows("./x.ckpt &\r\n");
            bench.file("knock", "");
            shell.shows("here\r\n");
            shell.forget();
            // Only a job that runs can be stopped, and this comes after whatever has become of it.
            shell.types(b"jobs; echo asked\n");
            shell.shows("\nasked");
            shell.shows("Running");
            shell.forget();
            shell.types(b"fg\n");
        }
        bench.file("gate", "");
        shell.shows("all of it 0");
        shell.types(b"exit\n");
        shell.ends_with(0);
    }
}

/// Programs that have the whole terminal, and shells, go on in another one: its settings are theirs, they show themselves,
/// and whoever ends by a checkpoint leaves it usable.
#[test]
fn a_program_with_the_whole_terminal_goes_on_in_another() {
    for (who, ids) in [(Who::Me, "new"), (Who::Nobody, "new"), (Who::Nobody, "keep")] {
        let bench = Bench::new(who);
        let program = bench.subject("screen", Build::Pie);
        let [ckpt, image] = [bench.ckpt(), bench.path("x.ckpt")];
        let mut session = Session::start(&bench, &[text(&ckpt), "-n", "x.ckpt", text(&program)]);
        session.shows("painted 80x24");
        session.shows("ready");
        // The third terminal is as large as the second.
        for (columns, rows) in [(100, 30), (100, 30), (70, 20)] {
            session.types(b"m");
            session.shows("modes ok");
            let pid = session.child.id().to_string();
            match ids {
                // In a namespace nobody but the terminal knows who is in the foreground.
                "keep" => session.types(b"\x1a"),
                _ => drop(bench.must(&["save", "--stop", &pid, "-n", &bench.name("x.ckpt")])),
            }
            session.is_over();
            let modes = tcgetattr(&session.keyboard).expect("modes").local_flags;
            assert!(modes.contains(LocalFlags::ICANON | LocalFlags::ECHO), "{modes:?}");
            session.ends_with(0);
            let line = [text(&image), "--ids", ids];
            session = Session::of_size(&bench, &line, (columns, rows));
            session.shows(&format!("painted {columns}x{rows}"));
            session.shows("continued");
        }
        session.types(b"mq");
        session.shows("modes ok");
        session.ends_with(0);
    }
}

const SHELL: [&str; 4] = ["bash", "--norc", "--noprofile", "-i"];

/// The terminal of a shell, below which runs another one with checkpointing.
fn shell_in_a_shell(bench: &Bench) -> Session {
    let mut outer = Session::start(bench, &SHELL);
    outer.types(b"./ckpt -a 0 -n x.ckpt bash --norc --noprofile -i; echo left=$?\n");
    outer.gives_the_terminal_away();
    outer
}

/// An interactive shell has its terminal again, with the job that was in the foreground.
#[test]
fn an_interactive_shell_has_its_jobs_in_another_terminal() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut outer = shell_in_a_shell(&bench);
        outer.types(b"echo $$ > pid; sleep 1000\n");
        let pid = until("an id", || {
            fs::read_to_string(bench.path("pid")).ok().filter(|s| s.ends_with('\n'))
        });
        for round in 0..3 {
            outer.shows_job("sleep");
            let target = if round == 0 { pid.trim().to_owned() } else { restarter(&outer) };
            bench.must(&["save", "--stop", &target, "-n", &bench.name("x.ckpt")]);
            outer.shows("left=0");
            outer = Session::start(&bench, &SHELL);
            outer.types(b"./x.ckpt; echo left=$?\n");
        }
        outer.shows_job("sleep");
        outer.types(b"\x1a");
        outer.shows("Stopped");
        outer.types(b"fg\n");
        outer.shows_job("sleep");
        outer.types(b"\x03");
        outer.types(b"echo job=$?; cat\n");
        outer.shows("job=130");
        outer.types(b"one\n");
        outer.shows("one\r\none\r\n");
        outer.types(b"\x04");
        outer.types(b"exit 7\n");
        outer.shows("left=7");
        outer.types(b"exit\n");
        outer.ends_with(0);
    }
}

/// One that was stopped is restarted so, and has the terminal when it goes on in the foreground.
#[test]
fn a_shell_that_was_stopped_goes_on_in_the_foreground() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut outer = shell_in_a_shell(&bench);
        outer.types(b"echo $$ > pid; suspend\n");
        outer.shows("Stopped");
        let pid = fs::read_to_string(bench.path("pid")).expect("an id");
        bench.must(&["save", "--stop", pid.trim(), "-n", &bench.name("x.ckpt")]);
        outer = Session::start(&bench, &SHELL);
        outer.types(b"./x.ckpt\n");
        outer.shows("Stopped");
        outer.types(b"fg; echo left=$?\n");
        outer.gives_the_terminal_away();
        outer.types(b"exit 3\n");
        outer.shows("left=3");
        outer.types(b"exit\n");
        outer.ends_with(0);
    }
}

/// Nobody who is stopped goes on because another is told to show itself.
#[test]
fn who_is_stopped_beside_a_program_with_the_whole_terminal_stays_so() {
    const PROGRAM: &str = r#"
import os, signal, subprocess, tty
tty.setcbreak(0)
other = subprocess.Popen(["sleep", "1000"])
os.kill(other.pid, signal.SIGSTOP)
os.waitpid(other.pid, os.WUNTRACED)
signal.signal(signal.SIGWINCH, lambda *_: print("resized", flush=True))
print("ready", flush=True)
while os.read(0, 1) == b"m":
    print("state", open(f"/proc/{other.pid}/stat").read().split()[2], flush=True)
other.kill()
"#;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("p.py", PROGRAM);
        let line = [text(&bench.ckpt()), "-n", "x.ckpt", "python3", "p.py"].map(str::to_owned);
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        let session = Session::start(&bench, &line);
        session.shows("ready");
        let pid = session.child.id().to_string();
        bench.must(&["save", "--stop", &pid, "-n", &bench.name("x.ckpt")]);
        session.ends_with(0);
        let mut session = Session::of_size(&bench, &[text(&bench.path("x.ckpt"))], (100, 30));
        session.shows("resized");
        session.types(b"m");
        session.shows("state T");
        session.types(b"q");
        session.ends_with(0);
    }
}

/// The restarter that a shell has started: its only child.
fn restarter(shell: &Session) -> String {
    let children = format!("/proc/{0}/task/{0}/children", shell.child.id());
    fs::read_to_string(children).expect("children").trim().to_owned()
}

/// Without a terminal a program that reads keys from one is not restarted, unless that is asked for; of others it is said.
#[test]
fn there_may_be_no_terminal() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("screen", Build::Pie);
    let (ckpt, image) = (bench.ckpt(), bench.path("x.ckpt"));
    let save = |session: Session| {
        let pid = session.child.id().to_string();
        bench.must(&["save", "--stop", &pid, "-n", &bench.name("x.ckpt")]);
        session.ends_with(0);
    };
    let session = Session::start(&bench, &[text(&ckpt), text(&program)]);
    session.shows("ready");
    save(session);
    let restart = |words: &[&str]| {
        let mut command = bench.command("setsid");
        command.arg("-w").arg(&image).args(words).stdin(Stdio::null());
        let ended = command.output().expect("an end");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        (ended.status.code(), said)
    };
    let (status, said) = restart(&[]);
    assert_eq!(status, Some(125), "{said}");
    assert!(said.contains("reads keys from a terminal") && said.contains("--no-tty"), "{said}");
    // Its standard input ends.
    assert_eq!(restart(&["--no-tty"]), (Some(0), String::new()));

    let session = Session::start(&bench, &[text(&ckpt), "--", "cat"]);
    until("cat", || {
        let exe = fs::read_link(format!("/proc/{}/exe", session.child.id()));
        exe.is_ok_and(|exe| exe.ends_with("cat")).then_some(())
    });
    save(session);
    let (status, said) = restart(&[]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("ran at a terminal, and there is none here"), "{said}");
    assert_eq!(restart(&["--no-tty"]), (Some(0), String::new()));
}

/// A restart that fails at its last step leaves the terminal as it was: usable, of its size, and the shell's.
#[test]
fn a_restart_that_fails_gives_the_terminal_back() {
    const PROGRAM: &str = r#"
import os, subprocess, sys, tty
other = subprocess.Popen(["sleep", "1000"]) if sys.argv[1] == "job" else None
tty.setraw(0)
print("ready", flush=True)
os.read(0, 1)
"#;
    const SCRIPT: &str = r#"
trap "echo resized" WINCH
./x.ckpt $1
echo "ended $?"
modes() { stty -a | tr -s ' ;' '\n' | grep -cxE "icanon|echo|isig|opost" | sed "s/^/$1 /"; }
modes atonce
left=600
until [ "$(modes later)" = "later 4" ] || [ $left = 0 ]; do sleep 0.1; left=$((left - 1)); done
modes later
echo over
"#;
    for (who, kind, step) in [
        (Who::Nobody, "job", "planned"),
        (Who::Nobody, "job", "installed"),
        (Who::Me, "job", "installed"),
        (Who::Nobody, "one", "installed"),
        (Who::Me, "one", "installed"),
    ] {
        let bench = Bench::new(who);
        bench.file("p.py", PROGRAM);
        bench.file("s.sh", SCRIPT);
        let line =
            [text(&bench.ckpt()), "-n", "x.ckpt", "python3", "p.py", kind].map(str::to_owned);
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        let session = Session::start(&bench, &line);
        session.shows("ready");
        let pid = session.child.id().to_string();
        bench.must(&["save", "--stop", &pid, "-n", &bench.name("x.ckpt")]);
        session.ends_with(0);
        let fault = format!("CKPT_FAULT={step}");
        let ids = if kind == "job" { "--ids=auto" } else { "--ids=new" };
        let session = Session::start(&bench, &["env", &fault, "bash", "s.sh", ids]);
        session.shows("over");
        let screen = session.screen.lock().expect("no panic").clone();
        let all = format!("{who:?} {kind} {step}: {screen}");
        assert!(!screen.contains("ended 0") && !screen.contains("resized"), "{all}");
        assert!(
            screen.contains("later 4") && (kind == "one" || screen.contains("atonce 4")),
            "{all}"
        );
        session.ends_with(0);
    }
}
