// SPDX-License-Identifier: LGPL-2.1-only
//! What a monitoring system asks a server, in the text format of Prometheus (version 0.0.4).

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::statvfs::fstatvfs;

use super::log::Record;
use super::store::locked;
use super::users::User;

/// The kinds of requests in the log.
const REQUESTS: [&str; 6] = ["put", "get", "ls", "rm", "finish", "hello"];
/// How long somebody may take to ask, and to listen.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest question.
const QUESTION: usize = 8192;

/// For each kind of requests how many were done, how many failed, and bytes of images.
#[derive(Default)]
pub(super) struct Metrics(Mutex<[[u64; 3]; REQUESTS.len()]>);

/// The text in the making.
struct Page(String);

impl Page {
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.0.push_str(part);
        }
    }

    fn value(&mut self, name: &str, labels: &[[&str; 2]], value: u64) {
        self.0.push_str(name);
        for (i, [label, text]) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"");
            for part in [if i == 0 { "{" } else { "," }, label, "=\"", &text, "\""] {
                self.0.push_str(part);
            }
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        for part in [" ", &value.to_string(), "\n"] {
            self.0.push_str(part);
        }
    }
}

impl Metrics {
    /// Takes a request in.
    pub(super) fn count(&self, record: &Record) {
        let Some(kind) = REQUESTS.iter().position(|what| *what == record.what) else { return };
        let mut sums = locked(&self.0);
        let [done, failed, bytes] = &mut sums[kind];
        *(if record.outcome.is_ok() { done } else { failed }) += 1;
        *bytes += record.bytes;
    }

    /// The page.
    pub(super) fn text(&self, clients: usize, users: &[User]) -> String {
        let mut page = Page(String::new());
        let sums = *locked(&self.0);
        let name = "ckpt_requests_total";
        page.about(name, "counter", "Requests that were answered.");
        for (request, sums) in REQUESTS.iter().zip(sums) {
            for (result, sum) in ["ok", "failed"].iter().zip(sums) {
                page.value(name, &[["request", request], ["result", result]], sum);
            }
        }
        let name = "ckpt_request_bytes_total";
        page.about(name, "counter", "Bytes of checkpoints that went over the wire.");
        for (request, [.., bytes]) in REQUESTS.iter().zip(sums) {
            page.value(name, &[["request", request]], bytes);
        }
        page.about("ckpt_clients", "gauge", "Connections just now.");
        page.value("ckpt_clients", &[], clients as u64);
        if let Some(room) = users.first().and_then(|user| fstatvfs(&user.store.claim.root).ok()) {
            let name = "ckpt_free_bytes";
            page.about(name, "gauge", "Bytes that are free where checkpoints are stored.");
            page.value(name, &[], room.blocks_available() * room.fragment_size());
        }
        let found: Vec<_> = users.iter().map(stored).collect();
        let names = [
            ("ckpt_checkpoints", "Checkpoints that are stored."),
            ("ckpt_checkpoint_bytes", "Bytes of these, as clients see them."),
            ("ckpt_stored_bytes", "Bytes that these take up, which a quota is compared with."),
            ("ckpt_oldest_timestamp_seconds", "When the oldest was stored."),
            ("ckpt_newest_timestamp_seconds", "When the newest was stored."),
        ];
        for (i, (name, help)) in names.into_iter().enumerate() {
            page.about(name, "gauge", help);
            // There is no oldest one where there is none.
            for (user, found) in users.iter().zip(&found).filter(|(_, f)| f[0] > 0 || i < 3) {
                let label = [["user", user.name.as_str()]];
                page.value(name, if user.name.is_empty() { &[] } else { &label }, found[i]);
            }
        }
        page.0
    }
}

/// Their number, bytes, bytes taken up, the oldest, the newest.
fn stored(user: &User) -> [u64; 5] {
    let [mut count, mut bytes, mut oldest, mut newest] = [0, 0, u64::MAX, 0];
    let _ = user.store.list("", &mut |entry| {
        count += 1;
        bytes += entry.len;
        oldest = oldest.min(entry.time);
        newest = newest.max(entry.time);
        Ok(())
    });
    [count, bytes, user.store.used(), oldest, newest]
}

/// Answers whoever asks, one after the other.
pub(super) fn serve(listener: &TcpListener, text: &dyn Fn() -> String) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => _ = answer(stream, text),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn answer(mut stream: TcpStream, text: &dyn Fn() -> String) -> io::Result<()> {
    let begin = Instant::now();
    let left = || {
        let left = PATIENCE.checked_sub(begin.elapsed()).filter(|left| !left.is_zero());
        left.ok_or(io::Error::from(io::ErrorKind::TimedOut)).map(Some)
    };
    let (mut said, mut piece) = (Vec::new(), [0; 1024]);
    while !said.windows(4).any(|end| end == b"\r\n\r\n") && said.len() < QUESTION {
        stream.set_read_timeout(left()?)?;
        match stream.read(&mut piece)? {
            0 => break,
            n => said.extend_from_slice(&piece[..n]),
        }
    }
    let asks_for_head = said.starts_with(b"HEAD ");
    let path = said.strip_prefix(if asks_for_head { b"HEAD ".as_slice() } else { b"GET " });
    let (status, body) =
        match path.is_some_and(|p| p.starts_with(b"/metrics ") || p.starts_with(b"/ ")) {
            true => ("200 OK", text()),
            false => ("404 Not Found", "there is only /metrics\n".to_owned()),
        };
    let head = [
        "HTTP/1.1 ",
        status,
        "\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: ",
        &body.len().to_string(),
        "\r\n\r\n",
    ];
    let answer = head.concat() + if asks_for_head { "" } else { &body };
    let mut rest = answer.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(left()?)?;
        rest = &rest[stream.write(rest)?..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted() {
        let mut page = Page(String::new());
        page.value("a", &[], 1);
        page.value("b", &[["user", "x\"\\y"], ["z", ""]], 2);
        assert_eq!(page.0, "a 1\nb{user=\"x\\\"\\\\y\",z=\"\"} 2\n");
    }
}
