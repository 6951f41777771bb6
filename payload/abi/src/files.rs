// SPDX-License-Identifier: LGPL-2.1-only
//! The records of what a saved process had open, and of what travels with it.

use crate::image::Text;
use crate::{codes, record};

record! {
    /// A file whose content is in the image: one for each device and inode.
    Object, 96, {
        /// An [`ObjectKind`] as a number.
        kind: u32,
        /// st_mode.
        mode: u32,
        /// Size in bytes; what no chunk has of it is a hole.
        size: u64,
        /// Inode number at the checkpoint.
        inode: u64,
        /// Device number.
        device: u64,
        /// Name: of a memfd, or a path that is or was the file's.
        name: Text,
        /// st_uid.
        user: u32,
        /// st_gid.
        group: u32,
        /// Time of the last access in nanoseconds since 1970.
        accessed: i64,
        /// Time of modification in nanoseconds since 1970.
        modified: i64,
        /// F_GET_SEALS of a memfd.
        seals: u32,
        /// Bits of [`object_flag`].
        flags: u32,
        /// The size of its pages in bytes, of memory in huge pages of hugetlbfs; else 0.
        page: u64,
        /// Room to grow.
        reserved: [u64; 2],
    }
}

/// Bits of [`Object::flags`].
pub mod object_flag {
    /// The content, size, mode, owner and times are those of the file itself, which a descriptor showed;
    /// else the object is known by its mappings only, and the image has their pages.
    pub const WHOLE: u32 = 1;
    /// Processes that are not in the image use it, too: it stays as it is, where it is there.
    pub const OUTSIDE: u32 = 2;
}

codes! {
    /// What an object is.
    ObjectKind: u32 {
        /// Memory that mappings or descriptors share (memfd_create(2), MAP_SHARED without a file).
        Memory = 1,
        /// A file that has no name any more.
        Deleted = 2,
        /// A file with a name, which travels along.
        Embedded = 3,
        /// A file with a name that is memory of the processes: it is made anew under its name.
        Named = 4,
        /// A segment of System V shared memory; `inode` is its identifier.
        Segment = 5,
    }
}

record! {
    /// A System V object (sysvipc(7)).
    SystemV, 80, {
        /// A [`SystemVKind`] as a number.
        kind: u32,
        /// Its identifier.
        id: u32,
        /// Its key; 0 of IPC_PRIVATE.
        key: u32,
        /// Permissions, SHM_DEST and SHM_LOCKED.
        mode: u32,
        /// Owner.
        user: u32,
        /// Owner's group.
        group: u32,
        /// Bytes of a segment or of a queue's capacity, or how many semaphores.
        size: u64,
        /// The object that a segment is, else [`crate::image::NO_OBJECT`].
        object: u32,
        /// None is known.
        flags: u32,
        /// Where what is in it begins in the section of all contents.
        content: u64,
        /// How many bytes that is.
        content_len: u64,
        /// Room to grow.
        reserved: [u64; 3],
    }
}

codes! {
    /// What a System V object is.
    SystemVKind: u32 {
        /// Shared memory.
        Segment = 1,
        /// A set of semaphores.
        Semaphores = 2,
        /// A message queue.
        Messages = 3,
    }
}

record! {
    /// What a process is to give back of a semaphore when it ends (SEM_UNDO).
    Undo, 16, {
        /// The set.
        set: u32,
        /// Which semaphore of it.
        number: u32,
        /// How much it will be changed by.
        adjust: i32,
        /// Room to grow.
        reserved: u32,
    }
}

record! {
    /// One open file descriptor.
    Descriptor, 128, {
        /// Number.
        fd: u32,
        /// A [`DescriptorKind`] as a number.
        kind: u32,
        /// Flags of open(2): access mode and status flags.
        flags: u32,
        /// 1: close on exec.
        cloexec: u32,
        /// Offset in the file.
        position: u64,
        /// The first descriptor that shares the open file description with this one, by process and number.
        shared_with: u32,
        /// st_mode.
        mode: u32,
        /// st_rdev.
        rdev: u64,
        /// Size of the file in bytes.
        size: u64,
        /// Time of modification in nanoseconds.
        mtime: i64,
        /// Path, or what /proc/PID/fd says.
        path: Text,
        /// Index of the object that is the file, or of the section that holds what is in it.
        content: u32,
        /// Kind's own number (eventfd counter's flags and so on); of a path, 1: the file's content
        /// travels in the image.
        extra: u32,
        /// Inode number.
        inode: u64,
        /// Device number.
        device: u64,
        /// Kind's own value.
        value: u64,
        /// F_SETOWN_EX of a description with O_ASYNC: F_OWNER_TID, F_OWNER_PID; negative: nobody.
        owner_type: i32,
        /// F_SETSIG.
        signal: u32,
        /// Which process of the image has the descriptor `shared_with`.
        shared_process: u32,
        /// The id of the process that `owner_type` is about.
        owner: u32,
        /// Room to grow.
        reserved_more: [u64; 2],
    }
}

codes! {
    /// Whose a lock on a file is.
    LockKind: u32 {
        /// The description's, of the whole file (flock(2)).
        File = 1,
        /// The process's (fcntl(2), F_SETLK).
        Process = 2,
        /// The description's (fcntl(2), F_OFD_SETLK).
        Description = 3,
        /// A lease (fcntl(2), F_SETLEASE).
        Lease = 4,
    }
}

record! {
    /// A lock on a file.
    FileLock, 32, {
        /// A descriptor by which it is held.
        fd: u32,
        /// A [`LockKind`] as a number.
        kind: u32,
        /// 1: nobody else may have one; 0: for reading.
        exclusive: u32,
        /// The process that /proc names as its holder, or 0.
        holder: u32,
        /// Its first byte.
        start: u64,
        /// How many bytes; 0: to the end, wherever that is.
        len: u64,
    }
}

record! {
    /// A timerfd.
    TimerDescriptor, 40, {
        /// Clock.
        clock: i32,
        /// Flags of timerfd_settime(2).
        flags: u32,
        /// Nanoseconds left; 0: disarmed.
        left: u64,
        /// Period in nanoseconds; 0: once.
        period: u64,
        /// Expirations not yet read.
        ticks: u64,
        /// Room to grow.
        reserved: u64,
    }
}

record! {
    /// What an epoll instance watches.
    EpollEntry, 32, {
        /// Number that the descriptor had when the watch was set.
        fd: u32,
        /// struct epoll_event's events.
        events: u32,
        /// struct epoll_event's data.
        data: u64,
        /// Inode number of the file.
        inode: u64,
        /// The descriptor that is the watched file: another than `fd` if that was closed, while a
        /// duplicate lives on.
        source: u32,
        /// Which process of the image has that, where nobody has the instance (it is under way in a socket).
        process: u32,
    }
}

record! {
    /// A socket. In its section come, each behind its length in four bytes: this, its name, its options (level and option
    /// as `level << 16 | option`, and 32 bytes of value), of TCP and UDP the name of the other end (names are struct
    /// sockaddr there), and what can be read from it: the bytes of a stream as one piece, else of each message the name
    /// of its sender and its bytes. Of a unix socket these have a piece before the bytes: the sender's process, user and
    /// group (SCM_CREDENTIALS), then the numbers of descriptors.
    Socket, 64, {
        /// SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET or SOCK_RAW.
        kind: u32,
        /// A bit of [`socket_flag`], or several.
        flags: u32,
        /// The inode number of the socket that it is connected to, or whose queue it waits in; 0 if it is not.
        peer: u64,
        /// 1: it receives no more; 2: it sends no more.
        shutdown: u32,
        /// The length of a listening socket's queue.
        backlog: u32,
        /// Mode and owners of the file that it is bound to.
        mode: u32,
        /// st_uid.
        user: u32,
        /// st_gid.
        group: u32,
        /// Which place it has in the queue of its listener.
        place: u32,
        /// AF_INET, AF_INET6, AF_PACKET or AF_NETLINK; 0 of a unix socket.
        family: u32,
        /// IPPROTO_TCP, IPPROTO_UDP and the like (SO_PROTOCOL); 0 of a unix socket.
        protocol: u32,
        /// Of a unix socket, the process, user and group that its other end, or who connects to it, has had as it was made
        /// (SO_PEERCRED).
        maker: [u32; 3],
        /// Room to grow.
        reserved: u32,
    }
}

/// Bits of [`Socket::flags`].
pub mod socket_flag {
    /// It listens.
    pub const LISTENS: u32 = 1;
    /// It is bound, to a file if there is a path.
    pub const BOUND: u32 = 2;
    /// Nobody has the other end any more.
    pub const ABANDONED: u32 = 4;
    /// The other end was left with something unread in it (ECONNRESET).
    pub const RESET: u32 = 8;
    /// It waits to be accepted.
    pub const WAITS: u32 = 16;
    /// Somebody outside of the checkpoint has the other end, so a restart finds it reset.
    pub const OUTSIDE: u32 = 32;
    /// The other end has sent its end (shutdown(2)).
    pub const ENDED: u32 = 64;
    /// It is bound to an address that the machine did not have (IP_FREEBIND).
    pub const FOREIGN: u32 = 128;
    /// TCP: it is just connecting. unix: it sends to somebody outside, whose name comes behind the options.
    pub const CONNECTS: u32 = 256;
    /// A connection to somebody outside that goes on: a [`super::KeptTcp`] and what is sent and not acknowledged come before
    /// what can be read. Whoever does not make it go on finds it reset, as without this.
    pub const KEPT: u32 = 512;
}

record! {
    /// A TCP connection that goes on (tcp(7), TCP_REPAIR). Sequence numbers are those of the first byte in each queue.
    KeptTcp, 64, {
        /// Names the process that holds the connections of the checkpoint for a while.
        token: u64,
        /// Which of them it is there.
        place: u32,
        /// Its state (include/net/tcp_states.h).
        state: u32,
        /// Sequence number of what is sent.
        send: u32,
        /// Of what has come; an end that has come counts before it.
        receive: u32,
        /// The largest segment that the other end takes (mss_clamp).
        segment: u32,
        /// What both ends can (tcpi_options of struct tcp_info).
        options: u32,
        /// Scale of the window of what is sent, and above 16 bits that of what comes.
        scales: u32,
        /// What TCP_TIMESTAMP has answered.
        timestamp: u32,
        /// struct tcp_repair_window.
        window: [u32; 5],
        /// Room to grow.
        reserved: u32,
    }
}

record! {
    /// struct termios2 of the kernel (ioctl_tty(2)).
    Termios, 44, {
        /// c_iflag.
        input: u32,
        /// c_oflag.
        output: u32,
        /// c_cflag.
        control: u32,
        /// c_lflag.
        local: u32,
        /// c_line.
        line: u8,
        /// c_cc.
        chars: [u8; 19],
        /// c_ispeed and c_ospeed.
        speeds: [u32; 2],
    }
}

record! {
    /// A pseudo-terminal (pty(7)). In its section come, each behind its length in four bytes: this, what was typed and
    /// waits in the line discipline, what was typed behind it, and what was shown and the master has not read.
    Terminal, 96, {
        /// The number N of /dev/pts/N.
        number: u32,
        /// Bits of [`terminal_flag`].
        flags: u32,
        /// Rows, columns and pixels (struct winsize).
        window: [u16; 4],
        /// Its settings.
        termios: Termios,
        /// How many bytes of whole lines were typed, ends of file not counted (FIONREAD in canonical mode).
        lines: u32,
        /// st_mode of the slave, if it was open; else 0.
        mode: u32,
        /// Its owner.
        user: u32,
        /// Its group.
        group: u32,
        /// Room to grow.
        reserved: u32,
        /// Room to grow.
        reserved_more: [u64; 2],
    }
}

record! {
    /// The terminal at which the processes ran in the foreground, and whose other end is not in the checkpoint.
    Screen, 64, {
        /// Its foreground process group, as [`crate::image::Member::group`] has it.
        foreground: u32,
        /// None is known.
        flags: u32,
        /// Rows, columns and pixels (struct winsize).
        window: [u16; 4],
        /// Its settings.
        termios: Termios,
        /// Room to grow.
        reserved: u32,
    }
}

/// Bits of [`Terminal::flags`].
pub mod terminal_flag {
    /// Packet mode of the master (TIOCPKT).
    pub const PACKETS: u32 = 1;
    /// No slave can be opened (TIOCSPTLCK).
    pub const LOCKED: u32 = 2;
    /// TIOCEXCL of the master.
    pub const EXCLUSIVE_MASTER: u32 = 4;
    /// TIOCEXCL of the slave.
    pub const EXCLUSIVE_SLAVE: u32 = 8;
    /// What is written to it waits (^S, tcflow(3)).
    pub const STOPPED: u32 = 16;
    /// The slave was open, and is no more.
    pub const CLOSED: u32 = 32;
    /// The slave was never opened.
    pub const UNOPENED: u32 = 64;
}

/// What [`Descriptor::extra`] says of a [`DescriptorKind::Pty`].
pub mod pty_end {
    /// The end that programs like script(1) have.
    pub const MASTER: u32 = 1;
    /// The end that is a terminal.
    pub const SLAVE: u32 = 2;
    /// A terminal whose master is gone.
    pub const HUNG_UP: u32 = 3;
}

codes! {
    /// What a descriptor is.
    DescriptorKind: u32 {
        /// Becomes what the restarter has under the number in [`Descriptor::value`] (0, 1 or 2).
        Stdio = 1,
        /// A file that is opened again by its path.
        Path = 2,
        /// A file without a name, which is an [`Object`].
        Deleted = 3,
        /// An [`Object`] of memory (memfd_create(2)).
        Memfd = 4,
        /// Not restored: the number answers EBADF after the restart.
        Lost = 5,
        /// eventfd(2): `value` is its count, `extra` 1 for EFD_SEMAPHORE.
        Event = 6,
        /// One end of a pipe(2) both of whose ends are in the program, or of a FIFO (then it has a path):
        /// `content` is the section with what is in it, `value` its capacity in bytes.
        Pipe = 7,
        /// timerfd_create(2): `content` is the section with a [`TimerDescriptor`].
        Timer = 8,
        /// signalfd(2): `value` is its mask.
        Signal = 9,
        /// epoll_create(2): `content` is the section with its [`EpollEntry`]s.
        Epoll = 10,
        /// A directory, opened by its path.
        Directory = 11,
        /// A device, opened by its path.
        Device = 12,
        /// The controlling terminal (/dev/tty).
        Terminal = 13,
        /// A file of /proc about the process itself; the path begins with /proc/self or
        /// /proc/thread-self.
        Proc = 14,
        /// A namespace of the process's own (/proc/self/ns/...), by the name in [`Descriptor::path`].
        Namespace = 15,
        /// A POSIX message queue (mq_overview(7)), by its name.
        Queue = 16,
        /// A unix socket: `content` is the section with a [`Socket`] and what belongs to it; the path is that of its file.
        Socket = 17,
        /// One end of a pseudo-terminal both of whose ends are in the checkpoint: `value` is its number, `extra` one of
        /// [`pty_end`], `content` the section with the [`Terminal`].
        Pty = 18,
        /// A process of the checkpoint (pidfd_open(2)): `value` is its id, 0 of one that was waited for.
        Process = 20,
        /// inotify_init(2): `content` is the section with its watches, each of number, mask and length in four bytes, and a
        /// path.
        Inotify = 21,
    }
}
