// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt serve`, `ckptsrv` and `ckpt keygen FILE`

use super::facts;
use crate::cli::{Command, ServeOptions};
use crate::error::{Because, Error, FAILED, Result, printable};
use crate::image::key;
use crate::serve::checkup;
use crate::serve::claim::Claim;
use crate::serve::server::{Plan, serve};
use crate::serve::store::Limits;
use crate::serve::users::{self, Keys};
use crate::settings::server::{Key, PORT};
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory of the original server.
const ORIGINAL: &str = "/tmp";

/// Whether we were called by the name of the original server.
pub(super) fn is_ckptsrv(args: &[OsString]) -> bool {
    args.first().is_some_and(|name| Path::new(name).file_name().is_some_and(|n| n == "ckptsrv"))
}

/// What the command line of ckptsrv asks for.
pub(super) fn as_ckptsrv(command: Command) -> Result<u8> {
    match command {
        Command::Serve(options) => run(&options),
        Command::Help(text) => super::print(&text),
        _ => Err(Error::new("ckptsrv can only serve")),
    }
}

/// Serves until SIGTERM.
pub(super) fn run(options: &ServeOptions) -> Result<u8> {
    super::dumper::prepare();
    if options.check {
        return check(options);
    }
    let keys = keys(options)?;
    let directory = directory(options);
    let plan = Plan {
        listen: addresses(options)?,
        directory: directory.clone(),
        keys,
        metrics: options.metrics.as_deref().map(metrics).transpose()?,
        limits: limits(options),
        max_clients: options.max_clients.unwrap_or(1024),
        timeout: Duration::from_secs(options.timeout.unwrap_or(30).max(1)),
        json: options.json,
    };
    serve(plan, |addresses, told| {
        if let Some(told) = told {
            eprintln!("ckpt: metrics at http://{told}/metrics");
        }
        for address in addresses {
            eprintln!("ckpt: serving {} on {address}", directory.display());
        }
    })?;
    eprintln!("ckpt: the server has ended");
    Ok(0)
}

fn directory(options: &ServeOptions) -> PathBuf {
    let here = if options.original { ORIGINAL } else { "." };
    options.directory.clone().unwrap_or_else(|| here.into())
}

fn limits(options: &ServeOptions) -> Limits {
    Limits {
        max_bytes: options.max_bytes.unwrap_or(u64::MAX),
        quota: options.quota.unwrap_or(u64::MAX),
        whole: options.whole || options.original,
    }
}

/// Looks at all that is stored.
fn check(options: &ServeOptions) -> Result<u8> {
    let directory = directory(options);
    let (places, claim) = match &options.users {
        Some(keys) => {
            let users = users::read(keys)?;
            let claim = Claim::of(&directory)?;
            (users.iter().map(|(user, _)| directory.join(user)).collect(), Some(claim))
        }
        None => (vec![directory], None),
    };
    let mut worst = 0;
    for place in places {
        let shown = place.display();
        let report = checkup::run(&place, limits(options))?;
        for (name, why) in &report.damaged {
            eprintln!("ckpt: {shown}: {} is damaged: {why}", printable(name));
            worst = FAILED;
        }
        super::print(&format!(
            "{shown}: {} checkpoints of {}, {} damaged; they take {}\n",
            report.checkpoints,
            facts::size(report.bytes),
            report.damaged.len(),
            facts::size(report.used),
        ))?;
    }
    if let Some(claim) = claim {
        claim.leave();
    }
    Ok(worst)
}

/// Makes a key.
#[inline(never)]
pub(super) fn keygen(file: &Path) -> Result<u8> {
    key::make(file)?;
    Ok(0)
}

/// Where to tell of ourselves: to this host alone, if there is but a port.
fn metrics(text: &str) -> Result<SocketAddr> {
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let found = text.to_socket_addrs().because(|| format!("cannot find the address {text}"));
    let first = found
        .and_then(|mut all| all.next().ok_or_else(|| Error::new(format!("{text} has no address"))));
    first.map_err(|e| e.hint("say --metrics PORT or HOST:PORT"))
}

/// The keys to serve with.
fn keys(options: &ServeOptions) -> Result<Keys> {
    let said = matches!(options.transfer.key, Some(Key::Said(_)));
    if let Some(keys) = &options.users {
        if options.transfer.insecure == Some(true) {
            return Err(Error::new("--users and --insecure exclude each other")
                .hint("users are known by their keys"));
        }
        return Ok(Keys::Each(keys.clone()));
    }
    if options.transfer.insecure == Some(true) || options.original && !said {
        eprintln!(
            "ckpt: warning: this is a simple insecure server suitable for only private use: \
             whoever reaches it may read, replace and remove checkpoints"
        );
        return Ok(Keys::None);
    }
    let usual =
        || Error::new("there is no home directory for a key").hint("name it with --key FILE");
    let file = options.transfer.key.as_ref().ok_or_else(usual)?;
    if let Key::Usual(path) = file
        && std::fs::symlink_metadata(path).is_err()
    {
        key::make_directory(path)?;
        key::make(path)?;
        eprintln!(
            "ckpt: made the key {0}; clients need it: where homes are not shared, copy it to \
             ~/.config/ckpt/key (mode 0600) on each host, for instance: \
             scp -p {0} HOST:.config/ckpt/key",
            path.display()
        );
    }
    key::of(file).map(Keys::One)
}

fn addresses(options: &ServeOptions) -> Result<Vec<SocketAddr>> {
    let port = options.port.unwrap_or(PORT);
    if options.listen.is_empty() {
        return Ok(vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]);
    }
    let mut addresses = Vec::new();
    for host in &options.listen {
        let found = (host.as_str(), port).to_socket_addrs();
        addresses.extend(found.because(|| format!("cannot find the address {host}"))?);
    }
    Ok(addresses)
}
