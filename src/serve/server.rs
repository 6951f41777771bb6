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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::channel::{KEY, Wire};
use super::protocol::{Mode, PREAMBLE, Preamble, VERSION, Welcome};
use super::session;
use super::store::{Limits, Store};
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
    /// The shared key; None: anybody may do anything.
    pub key: Option<[u8; KEY]>,
    /// Limits of the store.
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
    store: Store,
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

/// Serves until SIGTERM or SIGINT. `ready` gets the addresses that it listens on.
///
/// # Errors
/// The directory or an address cannot be used.
pub(crate) fn serve(plan: Plan, ready: impl FnOnce(&[SocketAddr])) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)
        .because(|| "cannot block signals")?;
    let store = Store::open(&plan.directory, plan.limits)?;
    let mut listeners = Vec::new();
    for address in &plan.listen {
        listeners.push(listen(*address)?);
    }
    let server =
        Arc::new(Server { plan, store, crowd: Mutex::default(), gone: Condvar::default() });
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>();
    let addresses = addresses.because(|| "cannot find out our own address")?;
    for listener in listeners {
        let server = server.clone();
        spawn(move || server.accept(&listener)).because(|| "cannot start a thread")?;
    }
    ready(&addresses);
    signals.wait().because(|| "cannot wait for signals")?;
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
    .because(|| format!("cannot listen on {address}"))
    .map_err(|e: Error| e.hint("choose another port with -p or address with --listen"))
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(STACK).spawn(work).map(drop)
}

impl Server {
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
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
        let key = self.plan.key.as_ref();
        let crowded = self.crowd().present.len() > CROWD;
        session::answer(stream, key, &self.store, who.to_string(), crowded).print(self.plan.json);
    }

    /// Cuts what is going on, waits until it has cleaned up, and leaves nothing.
    fn close(&self) {
        let mut crowd = self.crowd();
        crowd.closing = true;
        for stream in crowd.present.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let empty = self.gone.wait_timeout_while(crowd, FAREWELL, |c| !c.present.is_empty());
        drop(empty);
        self.store.close();
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
