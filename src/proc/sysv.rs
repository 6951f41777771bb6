// SPDX-License-Identifier: LGPL-2.1-only
//! The System V objects of our IPC namespace (/proc/sysvipc, sysvipc(7)).

use super::id::Pid;
use super::text::{lines, words};

/// What /proc/sysvipc says of an object; zero where a kind has no such thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its identifier.
    pub id: i32,
    /// Its key, 0 of IPC_PRIVATE.
    pub key: i32,
    /// Permissions, and whether it is to be removed (SHM_DEST).
    pub mode: u32,
    /// Bytes of a segment, or how many semaphores.
    pub size: u64,
    /// Who owns it.
    pub user: u32,
    /// Who owns it.
    pub group: u32,
    /// How often a segment is mapped.
    pub attached: u64,
    /// Bytes of a segment that are swapped out.
    pub swapped: u64,
    /// Who has made or used it last, as process ids.
    pub users: [Pid; 2],
    /// When it was made or its owner was changed, in seconds since 1970.
    pub changed: i64,
}

/// All objects of a kind ("shm", "sem", "msg"); none where there are none to be seen.
pub(crate) fn all(kind: &str) -> Vec<Entry> {
    parse(&std::fs::read(format!("/proc/sysvipc/{kind}")).unwrap_or_default())
}

/// "       key      semid perms      nsems   uid   gid ...", and a line for each object.
fn parse(text: &[u8]) -> Vec<Entry> {
    let mut all = lines(text);
    let names: Vec<&[u8]> = words(all.next().unwrap_or_default()).collect();
    let entry = |line: &[u8]| {
        let mut entry = Entry::default();
        let mut count = 0;
        for (name, word) in names.iter().zip(words(line)) {
            let word = std::str::from_utf8(word).ok()?;
            let number = word.parse::<i64>().ok()?;
            count += 1;
            match *name {
                b"key" => entry.key = number as i32,
                b"shmid" | b"semid" | b"msqid" => entry.id = number as i32,
                b"perms" => entry.mode = u32::from_str_radix(word, 8).ok()?,
                b"size" | b"nsems" => entry.size = number.cast_unsigned(),
                b"uid" => entry.user = number as u32,
                b"gid" => entry.group = number as u32,
                b"nattch" => entry.attached = number.cast_unsigned(),
                b"swap" => entry.swapped = number.cast_unsigned(),
                b"cpid" | b"lspid" => entry.users[0] = Pid::new(number as i32),
                b"lpid" | b"lrpid" => entry.users[1] = Pid::new(number as i32),
                b"ctime" => entry.changed = number,
                _ => {}
            }
        }
        (count == names.len() && count > 2).then_some(entry)
    };
    all.filter_map(entry).collect()
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_names() {
        let text = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
  10018455         24  1600                    56  7301  7302      7 65534   100 65534     0 1790000000          0 1790000007                  4096                     8
x
";
        let entry = Entry {
            id: 24,
            key: 10_018_455,
            mode: 0o1600,
            size: 56,
            user: 65534,
            group: 100,
            attached: 7,
            swapped: 8,
            users: [7301, 7302].map(Pid::new),
            changed: 1_790_000_007,
        };
        assert_eq!(parse(text), [entry]);
        assert!(parse(b"").is_empty());
    }
}
