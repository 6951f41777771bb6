//! epoll(7) instances.
//!
//! The kernel remembers a watched file together with the number it had, so the watches can only be
//! set when the restored descriptors have their numbers: by the restorer.

use super::plan::{Arena, Orders, Step};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::{Descriptor, DescriptorKind, EpollEntry};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use std::os::fd::OwnedFd;

/// The watches of an epoll instance, from its fdinfo (proc_pid_fdinfo(5)).
pub fn save(fd: &Fd) -> Vec<EpollEntry> {
    fd.extra.iter().filter(|(key, _)| key == "tfd").filter_map(|(_, value)| entry(value)).collect()
}

/// "       5 events:       1d data: ffffffffffffffff pos:0 ino:61af sdev:7"
fn entry(value: &str) -> Option<EpollEntry> {
    let mut words =
        value.split(|c: char| c.is_ascii_whitespace() || c == ':').filter(|w| !w.is_empty());
    let fd = words.next()?.parse().ok()?;
    let mut field = |name: &str| -> Option<u64> {
        let mut found = words.by_ref().skip_while(|word| *word != name);
        found.next()?;
        u64::from_str_radix(found.next()?, 16).ok()
    };
    let events = field("events")? as u32;
    let data = field("data")?;
    Some(EpollEntry { fd, events, data, inode: field("ino").unwrap_or(0) })
}

/// Makes an empty instance.
pub fn open() -> Result<OwnedFd> {
    let epoll =
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).because(|| "cannot make an epoll instance")?;
    Ok(epoll.0)
}

/// An instance's number and what it watches.
pub type Watches = (u32, Vec<EpollEntry>);

/// Leaves out what is watched no more: a file that was closed under its number while a duplicate
/// of it lives on elsewhere.
pub fn current(entries: Vec<EpollEntry>, records: &[Descriptor]) -> Vec<EpollEntry> {
    let lost = DescriptorKind::Lost as u32;
    let there = |e: &EpollEntry| {
        let open = |r: &Descriptor| r.fd == e.fd && r.kind != lost;
        records.iter().any(|r| open(r) && (e.inode == 0 || r.inode == e.inode))
    };
    entries.into_iter().filter(there).collect()
}

/// Orders that set the watches.
pub fn restore_watches(watches: &[Watches], arena: &mut Arena, orders: &mut Orders) -> Result<()> {
    for (epoll, entries) in watches {
        for entry in entries {
            // struct epoll_event is packed on x86-64.
            let mut event = Vec::from(entry.events.to_le_bytes());
            event.extend_from_slice(&entry.data.to_le_bytes());
            let at = arena.bytes(&event)?;
            let add = libc::EPOLL_CTL_ADD.cast_unsigned().into();
            let args = [u64::from(*epoll), add, entry.fd.into(), at];
            orders.call(Step::Watch, libc::SYS_epoll_ctl, &args);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fdinfo() {
        let line = "       5 events:       1d data: ffffffffffffff00 pos:0 ino:61af sdev:7";
        let wanted = EpollEntry { fd: 5, events: 0x1d, data: 0xffff_ffff_ffff_ff00, inode: 0x61af };
        assert_eq!(entry(line), Some(wanted));
        assert_eq!(entry("nonsense"), None);
    }
}
