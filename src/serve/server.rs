// SPDX-License-Identifier: LGPL-2.1-only
//! The server: listens, limits, and comes to a clean end.
//!
//! A thread for each connection, at most [`Plan::max_clients`]; who comes on top is told so at once.
//! Each has fixed buffers, so memory is bounded by the number of connections. SIGTERM and SIGINT are
//! blocked in all threads and taken by the main one with sigwait(3).

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::socket::Backlog;

use super::channel::Wire;
use super::claim::Claim;
use super::metrics::{self, Metrics};
use super::protocol::{Mode, PREAMBLE, Preamble, VERSION, Welcome};
use super::session;
use super::store::{Limits, locked};
use super::users::{self, Keys, User};
use crate::error::{Because, Error, Result};

/// Bytes of stack of the threads.
pub(crate) const STACK: usize = 512 << 10;
/// So many clients are served with two threads and several buffers each; more, with one of each.
const CROWD: usize = 64;
/// Longest time for a preamble and a handshake.
const GREETING: Duration = Duration::from_secs(10);
/// What a client must reach on average over its connection, in bytes a second, after [`LEASE`].
const SLOWEST: u64 = 1024;
/// How long a client may be slower than that.
const LEASE: Duration = Duration::from_secs(300);
/// How long the end waits for the connections that were cut.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a server is to do.
pub(crate) struct Plan {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where it stores.
    pub directory: PathBuf,
    /// Whose keys are known.
    pub keys: Keys,
    /// Where it tells of itself.
    pub metrics: Option<SocketAddr>,
    /// Limits of the store, or of each user's.
    pub limits: Limits,
    /// Most connections at one time.
    pub max_clients: usize,
    /// How long a connection may be silent.
    pub timeout: Duration,
    /// Whether the lines of the log are JSON.
    pub json: bool,
}

struct Server {
    plan: Plan,
    /// Of the directory with those of users.
    claim: Option<Claim>,
    users: Mutex<Arc<Vec<User>>>,
    /// All users that there were, whose stores are open still.
    known: Mutex<Vec<User>>,
    metrics: Metrics,
    crowd: Mutex<Crowd>,
    gone: Condvar,
}

#[derive(Default)]
struct Crowd {
    /// The connections by number; their streams, to cut them at the end.
    present: HashMap<u64, TcpStream>,
    count: u64,
    closing: bool,
}

/// Serves until SIGTERM or SIGINT; SIGHUP has the keys of users read again. `ready` gets the addresses that it listens on,
/// and that of the metrics.
///
/// # Errors
/// The directory or an address cannot be used.
pub(crate) fn serve(
    plan: Plan,
    ready: impl FnOnce(&[SocketAddr], Option<SocketAddr>),
) -> Result<()> {
    // Each client has a connection, a file and packs.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if matches!(plan.keys, Keys::Each(_)) {
        signals.add(Signal::SIGHUP);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)
        .because(|| "cannot block signals")?;
    let claim = users::claim(&plan.keys, &plan.directory)?;
    let users = users::all(&plan.keys, &plan.directory, plan.limits, &[])?;
    let mut listeners = Vec::new();
    for address in &plan.listen {
        listeners.push(listen(*address)?);
    }
    let told = plan.metrics.map(listen).transpose()?;
    let server = Arc::new(Server {
        plan,
        claim,
        known: Mutex::new(users.clone()),
        users: Mutex::new(Arc::new(users)),
        metrics: Metrics::default(),
        crowd: Mutex::default(),
        gone: Condvar::default(),
    });
    let address = |listener: &TcpListener| {
        listener.local_addr().because(|| "cannot find out our own address")
    };
    let addresses = listeners.iter().map(address).collect::<Result<Vec<_>>>()?;
    let told_at = told.as_ref().map(address).transpose()?;
    for listener in listeners {
        let server = server.clone();
        spawn(move || server.accept(&listener)).because(|| "cannot start a thread")?;
    }
    if let Some(listener) = told {
        let server = server.clone();
        let tell = move || metrics::serve(&listener, &|| server.told());
        spawn(tell).because(|| "cannot start a thread")?;
    }
    ready(&addresses, told_at);
    while signals.wait().because(|| "cannot wait for signals")? == Signal::SIGHUP {
        match server.reload() {
            Ok(users) => eprintln!("ckpt: {users} users are known"),
            Err(e) => eprintln!("ckpt: the users stay as they were: {e}"),
        }
    }
    server.close();
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let any = |a: &SocketAddr| a.is_ipv6() && a.ip().is_unspecified();
    match TcpListener::bind(address) {
        // A system without IPv6.
        Err(e) if any(&address) && e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], address.port())))
        }
        bound => bound,
    }
    // As many may wait as the system allows (net.core.somaxconn); the standard library lets 128.
    .and_then(|listener| {
        nix::sys::socket::listen(&listener, Backlog::MAXALLOWABLE)?;
        Ok(listener)
    })
    .because(|| format!("cannot listen on {address}"))
    .map_err(|e: Error| e.hint("choose another port with -p or address with --listen"))
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(STACK).spawn(work).map(drop)
}

impl Server {
    fn users(&self) -> Arc<Vec<User>> {
        locked(&self.users).clone()
    }

    /// Reads the keys again; how many users there are.
    fn reload(&self) -> Result<usize> {
        let mut known = locked(&self.known);
        let users = users::all(&self.plan.keys, &self.plan.directory, self.plan.limits, &known)?;
        let is_new = |user: &&User| known.iter().all(|other| other.name != user.name);
        let new: Vec<_> = users.iter().filter(is_new).cloned().collect();
        known.extend(new);
        let count = users.len();
        *locked(&self.users) = Arc::new(users);
        Ok(count)
    }

    fn told(&self) -> String {
        let clients = self.crowd().present.len();
        self.metrics.text(clients, &self.users())
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        locked(&self.crowd)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept() {
                Ok((stream, who)) => self.admit(stream, who),
                // Too many open files, or no memory: what is there has to end first.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, who: SocketAddr) {
        let mut crowd = self.crowd();
        if crowd.present.len() >= self.plan.max_clients || crowd.closing {
            drop(crowd);
            return turn_away(&stream);
        }
        let Ok(twin) = stream.try_clone() else { return turn_away(&stream) };
        crowd.count += 1;
        let number = crowd.count;
        crowd.present.insert(number, twin);
        drop(crowd);
        let server = self.clone();
        let started = spawn(move || {
            let guest = Guest { server: &server, number };
            server.attend(stream, who);
            drop(guest);
        });
        if started.is_err() {
            self.crowd().present.remove(&number);
        }
    }

    fn attend(&self, stream: TcpStream, who: SocketAddr) {
        let Ok(stream) = Guarded::new(stream, self.plan.timeout) else { return };
        let who = match who {
            SocketAddr::V6(v6) => {
                v6.ip().to_ipv4_mapped().map(|ip| SocketAddr::from((ip, v6.port())))
            }
            v4 => Some(v4),
        }
        .unwrap_or(who);
        let crowded = self.crowd().present.len() > CROWD;
        let record = session::answer(stream, &self.users(), who.to_string(), crowded);
        self.metrics.count(&record);
        record.print(self.plan.json);
    }

    /// Cuts what is going on, waits until it has cleaned up, and leaves nothing.
    fn close(&self) {
        let mut crowd = self.crowd();
        crowd.closing = true;
        for stream in crowd.present.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let waited = self.gone.wait_timeout_while(crowd, FAREWELL, |c| !c.present.is_empty());
        if waited.is_ok_and(|(crowd, _)| !crowd.present.is_empty()) {
            // What still goes on would make counts wrong that were called right; the next start cleans up.
            return;
        }
        locked(&self.known).iter().for_each(|user| user.store.close());
        if let Some(claim) = &self.claim {
            claim.leave();
        }
    }
}

/// Takes a connection off the list, also when its thread panics.
struct Guest<'a> {
    server: &'a Server,
    number: u64,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.server.crowd().present.remove(&self.number);
        self.server.gone.notify_all();
    }
}

/// Says that there are too many, without waiting for anything.
fn turn_away(mut stream: &TcpStream) {
    let no = Preamble { version: VERSION, mode: Mode::Plain, welcome: Welcome::Busy as u8 };
    let _ = stream.set_nonblocking(true);
    // What stays unread makes the kernel send a reset, which overtakes our word (tcp(7)).
    let _ = stream.read(&mut [0; PREAMBLE]);
    let _ = stream.write(&no.bytes());
    let _ = stream.shutdown(Shutdown::Write);
}

/// A connection with time limits.
struct Guarded {
    stream: TcpStream,
    begin: Instant,
    timeout: Duration,
    bytes: u64,
    trusted: bool,
}

impl Guarded {
    fn new(stream: TcpStream, timeout: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream, begin: Instant::now(), timeout, bytes: 0, trusted: false })
    }

    /// The time that is left for the next bytes.
    fn check(&self) -> io::Result<()> {
        let spent = self.begin.elapsed();
        if self.trusted {
            let lease = LEASE + Duration::from_secs(self.bytes / SLOWEST);
            return if spent > lease { Err(ErrorKind::TimedOut.into()) } else { Ok(()) };
        }
        let left = GREETING.min(self.timeout).checked_sub(spent).filter(|left| !left.is_zero());
        self.stream.set_read_timeout(Some(left.ok_or(ErrorKind::TimedOut)?))
    }
}

impl Read for Guarded {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let n = self.stream.read(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

impl Write for Guarded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        let n = self.stream.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        let n = self.stream.write_vectored(parts)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Guarded {
    fn speaks_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::NONE);
        poll(&mut fds, limit).is_ok_and(|n| n > 0)
    }

    fn trusted(&mut self) {
        self.trusted = true;
        let _ = self.stream.set_read_timeout(Some(self.timeout));
    }

    fn leave(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.stream.set_read_timeout(Some(Duration::from_secs(1)));
        let (begin, mut rest) = (Instant::now(), [0; 4096]);
        while begin.elapsed() < FAREWELL && matches!(self.stream.read(&mut rest), Ok(1..)) {}
    }
}
