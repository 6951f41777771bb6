// SPDX-License-Identifier: LGPL-2.1-only
//! One process with its standard streams.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, until};

/// What a restart says that waits for a port.
const KEEPS_PORT: &str = "which the kernel keeps for a minute after its use";

/// A child with pipes for its standard streams; killed by its process id and reaped when dropped.
pub(crate) struct Run {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    complaints: Option<JoinHandle<()>>,
    called: String,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// The lines of its standard output that nobody had taken.
    pub stdout: Vec<String>,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit status, if it was no signal.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The lines of its standard error but the one about the pipe of standard input, whose writer is the test.
    pub(crate) fn complaints(&self) -> String {
        let ours = "what is written to the pipe of standard input";
        self.stderr.split_inclusive('\n').filter(|line| !line.contains(ours)).collect()
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

impl Run {
    /// Starts the command with three pipes.
    #[track_caller]
    pub(crate) fn start(command: Command) -> Self {
        Self::start_to(command, Stdio::piped())
    }

    /// Starts the command with standard output elsewhere than in a pipe.
    #[track_caller]
    pub(crate) fn start_to(mut command: Command, stdout: Stdio) -> Self {
        let called = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => panic!("cannot start {called}: {e}"),
        };
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).split(b'\n') {
                    let Ok(line) = line else { break };
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        break;
                    }
                }
            });
        }
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut pipe, text) = (child.stderr.take().expect("a pipe"), stderr.clone());
        let complaints = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut piece) {
                text.lock().expect("no panic").push_str(&String::from_utf8_lossy(&piece[..n]));
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines, stderr, complaints: Some(complaints), called }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process id as an argument.
    pub(crate) fn pid_text(&self) -> String {
        self.pid().to_string()
    }

    /// Sends a signal.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.nix_pid(), signal).unwrap_or_else(|e| panic!("{signal} to {}: {e}", self.called));
    }

    /// Sends a signal again and again until something holds: a signal that comes while an earlier
    /// dump is being finished is ignored.
    #[track_caller]
    pub(crate) fn signal_until(
        &mut self,
        signal: Signal,
        what: &str,
        holds: impl Fn(&mut Self) -> bool,
    ) {
        until(&format!("{what}; {}", self.called), || {
            if self.lives() {
                self.signal(signal);
            }
            holds(self).then_some(())
        });
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid()).expect("a process id"))
    }

    /// What it has said on standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().expect("no panic").clone()
    }

    /// Waits until standard error contains `text`.
    #[track_caller]
    pub(crate) fn complaint(&self, text: &str) {
        until(&format!("{text:?} on standard error of {}", self.called), || {
            self.stderr().contains(text).then_some(())
        });
    }

    /// Writes a line to its standard input.
    #[track_caller]
    pub(crate) fn say(&mut self, line: &str) {
        let pipe = self.stdin.as_mut().expect("standard input is open");
        if let Err(e) = pipe.write_all(format!("{line}\n").as_bytes()) {
            panic!("{} does not listen: {e}; {}", self.called, self.stderr());
        }
    }

    /// The next line of its standard output.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut next = self.lines.recv_timeout(PATIENCE);
        // A restart waits for a port as long as that, where nobody may end what keeps it (TIME_WAIT).
        if next == Err(RecvTimeoutError::Timeout) && self.stderr().contains(KEEPS_PORT) {
            next = self.lines.recv_timeout(PATIENCE);
        }
        match next {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                panic!("{} says nothing; on standard error: {}", self.called, self.stderr())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.wait();
                panic!("{} ended ({status}) in silence: {}", self.called, self.stderr())
            }
        }
    }

    /// The next line if it is there already.
    pub(crate) fn line_now(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// The next line, which must be this one.
    #[track_caller]
    pub(crate) fn expect(&mut self, line: &str) {
        let got = self.line();
        assert_eq!(got, line, "from {}; on standard error: {}", self.called, self.stderr());
    }

    /// Says "check" and expects "ok".
    #[track_caller]
    pub(crate) fn check(&mut self) {
        self.say("check");
        self.expect("ok");
    }

    /// Whether it runs still.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What became of it so far, for a failure's message.
    pub(crate) fn fate(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => format!("ended ({status}): {}", self.stderr()),
            _ => format!("runs: {}", self.stderr()),
        }
    }

    /// Waits for its end with standard input left open.
    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            let said = self.stderr();
            assert!(begin.elapsed() < PATIENCE, "{} does not end: {said}", self.called);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end. Its standard input stays open until then.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let status = self.wait();
        drop(self.stdin.take());
        let complaints = self.complaints.take().expect("only end takes it");
        until("the end of standard error", || complaints.is_finished().then_some(()));
        let mut stdout = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            stdout.push(line);
        }
        Ended { status, stdout, stderr: self.stderr() }
    }

    /// Closes its standard input and waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Ended {
        drop(self.stdin.take());
        self.end()
    }

    /// Waits for its end, which must be exit status 0.
    #[track_caller]
    pub(crate) fn ends_well(self) -> Ended {
        let called = self.called.clone();
        let ended = self.end();
        assert_eq!(ended.code(), Some(0), "{called}: {ended:?}");
        ended
    }

    /// Says "go" and expects a good end: the subject has checked itself.
    #[track_caller]
    pub(crate) fn go(mut self) -> Ended {
        self.say("go");
        self.ends_well()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.lives() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
