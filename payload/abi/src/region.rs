// SPDX-License-Identifier: LGPL-2.1-only
//! The payload's region in a process: one run of addresses that holds all of ckpt there.
//!
//! ```text
//! base            control page(s)      Control, read and written from outside
//! + API           the C API            its lists, and what it asks a process of ours for
//! + WAITS         waits                what is known of interrupted waits, a slot a thread
//! + STACKS        small stacks         of the processes that the payload starts
//! + SLOTS         slots                what threads were that work for a host
//! + TURNS         whose turn it is     a page that a fork(2) gives to the child empty
//! + PAYLOAD       libckpt.so           as its ELF program headers say
//! + exe_start     the ckpt executable  read-only copy: the dumper, and the stub of images
//! ```

use crate::api::{API, Api, Unopened};
use crate::{ABI_VERSION, mixed, record};

/// Where regions may lie: start, end, and what they begin at multiples of.
///
/// In the first range lie no main programs, mmap areas, Go, GHC, ZGC or V8 heaps, and no shadow memory of
/// AddressSanitizer. ThreadSanitizer and MemorySanitizer have theirs there, or take it for a mistake: they allow the second,
/// which they leave to programs that are not position-independent (compiler-rt, tsan_platform.h, msan.h).
pub const RANGES: [[u64; 3]; 2] = [
    [0x4100_0000_0000, 0x4f00_0000_0000, 0x10_0000_0000],
    [0x70_0000_0000, 0x78_0000_0000, 0x4000_0000],
];

/// Whether a region may begin at an address.
#[must_use]
pub const fn is_base(address: u64) -> bool {
    let ([a, b, c], [d, e, f]) = (RANGES[0], RANGES[1]);
    (address >= a && address < b && address.is_multiple_of(c))
        || (address >= d && address < e && address.is_multiple_of(f))
}

/// The next place for a region of `len` bytes behind `base`, from the first (0) on; 0 behind the last.
#[must_use]
pub const fn next_base(base: u64, len: u64) -> u64 {
    let ([a, b, c], [d, e, f]) = (RANGES[0], RANGES[1]);
    if base == 0 {
        return a;
    }
    if base >= a {
        let next = base.wrapping_add(c);
        return if next.wrapping_add(len) <= b { next } else { d };
    }
    let next = base.wrapping_add(f);
    if next.wrapping_add(len) <= e { next } else { 0 }
}

/// Bytes from the base of the region to its [`Wait`]s.
pub const WAITS: u64 = 0x6000;
/// How many slots for waits there are.
pub const WAIT_COUNT: u64 = 2048;
/// Bytes from the base of the region to its stacks.
pub const STACKS: u64 = WAITS + WAIT_COUNT * 64;
/// Bytes of each of the small stacks.
pub const STACK_LEN: u64 = 0x4000;
/// How many small stacks there are.
pub const STACK_COUNT: u64 = 4;
/// Bytes from the base of the region to its [`Slot`]s.
pub const SLOTS: u64 = STACKS + STACK_LEN * STACK_COUNT;
/// Bytes of a slot: its head, and a signal frame with the largest extended state.
pub const SLOT_LEN: u64 = 0x7000;
/// How many slots there are.
pub const SLOT_COUNT: u64 = 16;
/// Bytes from the beginning of a slot to its signal frame.
pub const SLOT_FRAME: u64 = 256;
/// Bytes from the beginning of a slot to the calls of a list, each of [`LISTED`] bytes: number, six arguments, result.
/// A negative number ends it.
pub const SLOT_LIST: u64 = 0x4000;
/// Bytes of a call in a list.
pub const LISTED: u64 = 64;
/// Bytes from the base of the region to its [`Turns`].
pub const TURNS: u64 = SLOTS + SLOT_LEN * SLOT_COUNT;
/// Bytes from the base of the region to the ELF image of the payload.
pub const PAYLOAD: u64 = TURNS + 0x1000;

/// Version of a region: what two different builds of ckpt could meet over in a running program. Made of the layout, so
/// that it is another one with each change of that.
pub const VERSION: u32 = {
    let places = [API, WAITS, STACKS, SLOTS, SLOT_LIST, LIST_THUNK, TURNS, PAYLOAD];
    let records = [
        Config::LAYOUT,
        Last::LAYOUT,
        Control::LAYOUT,
        Turns::LAYOUT,
        Wait::LAYOUT,
        SocketWait::LAYOUT,
        Suspended::LAYOUT,
        Rest::LAYOUT,
        Slot::LAYOUT,
        Api::LAYOUT,
        Unopened::LAYOUT,
    ];
    let (mut hash, mut i) = (ABI_VERSION as u64, 0);
    while i < places.len() {
        hash = mixed(hash, "place", places[i] as usize);
        i += 1;
    }
    i = 0;
    while i < records.len() {
        hash = mixed(hash, "record", records[i] as usize);
        i += 1;
    }
    hash as u32
};

/// First bytes of a region.
pub const MAGIC: [u8; 8] = *b"CKPTRGN\n";

/// The same while a region is being made; one whose maker died is unmapped by the next.
pub const UNFINISHED: [u8; 8] = *b"CKPTHALF";

/// Longest checkpoint name in bytes, with its final NUL.
pub const NAME_LEN: usize = 4096;
/// Longest name of the file with the checkpoint server's key, with its final NUL.
pub const KEY_LEN: usize = 4096;
/// Bytes for the names of descendants that stay out, with a final NUL.
pub const WITHOUT_LEN: usize = 256;
/// Longest command for what has become of a checkpoint, with its final NUL.
pub const NOTIFY_LEN: usize = 1024;

/// Bytes of the reason in [`Last`], with its final NUL.
pub const REASON_LEN: usize = 248;

/// No process group, in [`Config::begun`].
pub const GROUP_LEFT: u32 = u32::MAX;

record! {
    /// The parameters of section 7.1 of the manual, and those that came later.
    Config, 13672, {
        /// CKPT_NAME, NUL-terminated; a file name is absolute.
        name: [u8; NAME_LEN],
        /// CKPT_ASYNCSIG; 0: no signal triggers a checkpoint.
        asyncsig: u32,
        /// CKPT_CONTINUE: 0 or 1.
        continues: u32,
        /// CKPT_MSPERIOD in milliseconds; 0: no periodic checkpoints.
        msperiod: u32,
        /// CKPT_EXIT: status of a program that a checkpoint ended, 0 to 255.
        exit_status: u32,
        /// How many files of a counted name are kept; 0: all.
        keep: u32,
        /// Bits of [`config_flag`].
        flags: u32,
        /// What the run is recognised by, as hashes that are never 0: the content of its executable, its
        /// arguments, and the directory that it began in. All 0: ckpt did not start it.
        launched: [u64; 3],
        /// Files of at most so many bytes travel in the image; 0: none.
        embed: u64,
        /// The features of a CPU that the program may use; all zero: see [`config_flag::CPU_KNOWN`].
        cpu: [u64; 2],
        /// File with the key of the checkpoint server, NUL-terminated and absolute; empty: none.
        key: [u8; KEY_LEN],
        /// CKPT_FALLBACK: the file for checkpoints that the server did not take, as `name`.
        fallback: [u8; NAME_LEN],
        /// A number that nobody else has, of the life of this process under ckpt: each restart has another. 0: none.
        run: u64,
        /// The image that the process was restarted from, as [`crate::image::Header::run`]; 0: it was not.
        before: [u64; 2],
        /// CKPT_WITHOUT: names and ids of descendants that stay out, between commas, NUL-terminated; empty: none does.
        without: [u8; WITHOUT_LEN],
        /// The session and the process group that the process was in when that life began, as it sees them (0: of another
        /// PID namespace). [`GROUP_LEFT`]: its group was another, which it led.
        begun: [u32; 2],
        /// CKPT_NOTIFY: what is run when a checkpoint has come to something, NUL-terminated; empty: nothing.
        notify: [u8; NOTIFY_LEN],
    }
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// CKPT_CONTINUE was given, so it decides for periodic checkpoints too.
    pub const CONTINUE_GIVEN: u32 = 1;
    /// The checkpoint server has no key.
    pub const INSECURE: u32 = 1 << 8;
    /// Checkpoints are compressed on their way to the server.
    pub const COMPRESS: u32 = 1 << 9;
    /// The key file is the usual one of somebody's home, which a restart elsewhere replaces.
    pub const KEY_USUAL: u32 = 1 << 10;
    /// [`super::Config::cpu`] is known, also where it is empty.
    pub const CPU_KNOWN: u32 = 1 << 11;
    /// Nobody has said which signal triggers checkpoints: none does, until `ckpt -p` takes the usual one.
    pub const SIGNAL_OPEN: u32 = 1 << 12;
    /// When the program has come to its normal end, its checkpoints get another name.
    pub const SET_ASIDE: u32 = 1 << 13;
    /// They stay as they are.
    pub const KEEP_FINISHED: u32 = 1 << 14;
    /// Checkpoints also tell what nobody is likely to miss.
    pub const VERBOSE: u32 = 1 << 15;
    /// Checkpoints hold the process without its descendants.
    pub const ALONE: u32 = 1 << 16;
    /// There is no checkpoint where one would go without something.
    pub const STRICT: u32 = 1 << 17;
    /// TCP connections to others go on, with a checkpoint that ends the program.
    pub const KEEP_TCP: u32 = 1 << 18;
    /// A restart goes on before its memory is there.
    pub const LAZY: u32 = 1 << 19;
    /// Periodic checkpoints write only what has changed.
    pub const INCREMENTAL: u32 = 1 << 20;
    /// What changes of all memory is tracked for that.
    pub const TRACK_ALL: u32 = 1 << 21;
    /// Checkpoints are encrypted.
    pub const ENCRYPT: u32 = 1 << 22;
}

record! {
    /// What became of the last checkpoints. Its writer has the turn, and readers look at it without a lock: one whose sum is
    /// wrong is being written, or the program's own doing.
    Last, 296, {
        /// When the last that is whole was, in nanoseconds since 1970 (CLOCK_REALTIME); 0: there was none.
        at: u64,
        /// Its bytes.
        bytes: u64,
        /// How long the program stood still for it, in microseconds; 0: that is not known, as of one that was restarted.
        pause: u64,
        /// Its number ([`Control::generation`]).
        number: u64,
        /// When the last failed; 0: none has since there was a whole one.
        failed: u64,
        /// Why, NUL-terminated.
        reason: [u8; REASON_LEN],
        /// xxh3 of what is before it.
        sum: u64,
    }
}

record! {
    /// Head of the region. What comes before [`Self::thunk`] has its place in all versions: by it another version of
    /// ckpt finds the copy of this one, which it leaves the program to.
    Control, 14256, {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// [`VERSION`] of the payload.
        version: u32,
        /// Process that the payload was configured for, as it sees itself; a forked child differs.
        owner: u32,
        /// Bytes of the whole region.
        region_len: u64,
        /// Bytes of the payload's ELF image in memory, a multiple of the page size.
        payload_len: u64,
        /// Offset of the executable's copy from the base of the region.
        exe_start: u64,
        /// Bytes of the executable.
        exe_len: u64,
        /// Address of the thunk for system calls that a thread makes for a host ([`Slot`]).
        thunk: u64,
        /// Address of the thunk for clone(2).
        clone_thunk: u64,
        /// Address of the signal handler.
        handler: u64,
        /// Address of its return trampoline (sa_restorer).
        restorer: u64,
        /// Address of the interpreter of orders: `extern "C" fn(*const ListHead) -> !`.
        run: u64,
        /// How many checkpoints precede this run in the chain of restarts and saves.
        generation: u64,
        /// How the signal [`Config::asyncsig`] was disposed of before ckpt took it: the kernel's
        /// struct sigaction (handler, flags, restorer, mask).
        old_action: [u64; 4],
        /// Memory left by a restart that nobody needs any more: address.
        leftover: u64,
        /// Its length in bytes; 0: none.
        leftover_len: u64,
        /// Process that a dumper is started for.
        target: u32,
        /// Process id of the monitor, which takes the periodic checkpoints; 0: none. Another
        /// monitor that finds itself replaced here ends.
        monitor: u32,
        /// What 0, 1 and 2 were when ckpt took the program over: device, inode and access mode of
        /// each. Duplicates of them are the restarter's after a restart, wherever they are.
        standard: [[u64; 3]; 3],
        /// Why the last dumper could not be started: a negative error number, or 0.
        spawn_error: i64,
        /// 1: the program has locked itself in (seccomp(2)), so the handler makes no system call. The monitor writes it.
        locked_in: u64,
        /// How many of the first slots for waits may hold notes.
        waits: u64,
        /// 1: the checkpoint signal came from a terminal, which sends it to who is in the foreground.
        by_terminal: u32,
        /// Process id of the one outside that brings memory which is missing (`--lazy`), or did; 0: none.
        pager: u32,
        /// 1: it was said that the command of [`Config::notify`] failed.
        notify_failed: u32,
        /// Not 0: what of its memory is tracked (`uw` in smaps) is so by us; who tracks has a number of its own.
        tracked: u32,
        /// When the next periodic checkpoint is due, in nanoseconds since 1970, as the monitor says; 0: not known.
        due: u64,
        /// Room to grow.
        reserved: [u64; 2],
        /// What became of the last checkpoints.
        last: Last,
        /// The parameters.
        config: Config,
    }
}

record! {
    /// A wait that a dump interrupted, so that the next one knows how long it still lasts.
    Wait, 64, {
        /// struct timespec for a call that has to begin anew: the time that was left, or of a wait until a moment
        /// ([`Self::pointer`]) that moment.
        left: [u64; 2],
        /// Thread id.
        tid: u32,
        /// System call number.
        call: u32,
        /// Stack pointer, which tells this wait from a later one.
        rsp: u64,
        /// When a wait for a time ends, on CLOCK_MONOTONIC, in nanoseconds.
        deadline: u64,
        /// Which argument points to the moment of a wait until a moment: its number from 1 on; 0: it is none.
        pointer: u32,
        /// Clock of that moment.
        clock: u32,
        /// Room to grow.
        reserved: [u64; 2],
    }
}

record! {
    /// What a thread finds at its stack pointer that waits with ppoll(2) in place of a system call on a socket
    /// whose time-out ([`Self::left`]) had begun.
    SocketWait, 88, {
        /// struct pollfd: the descriptor.
        descriptor: u32,
        /// struct pollfd: the wanted events, and those that came.
        events: [u16; 2],
        /// struct timespec; the kernel keeps it up to date.
        left: [u64; 2],
        /// RDI, RSI, RDX and R10 of the call.
        arguments: [u64; 4],
        /// Address of its system call instruction.
        rip: u64,
        /// Its number.
        call: u64,
        /// Its result when the time is over.
        over: u64,
        /// RSP.
        rsp: u64,
    }
}

record! {
    /// What a thread finds at its stack pointer that waits with a signal mask of the call, and all signals blocked for
    /// before and after: what it goes on with when the call has ended.
    Suspended, 64, {
        /// Its own signal mask.
        mask: u64,
        /// Room for the result.
        result: u64,
        /// RDI, RSI, RDX and R10 of the call.
        arguments: [u64; 4],
        /// Address behind the call.
        rip: u64,
        /// RSP.
        rsp: u64,
    }
}

record! {
    /// What a thread finds at its stack pointer that makes the rest of a system call which a stop has cut short.
    Rest, 256, {
        /// The result so far.
        done: u64,
        /// Number of the call that it makes.
        call: u64,
        /// When that gives so much, the next one follows.
        expected: u64,
        /// Number of the next one, or 0.
        next: u64,
        /// Its arguments.
        next_arguments: [u64; 6],
        /// RDI, RSI, RDX, R10, R8 and R9 of the first call.
        arguments: [u64; 6],
        /// Where that returns to.
        rip: u64,
        /// RSP.
        rsp: u64,
        /// struct msghdr of the next one.
        message: [u64; 7],
        /// struct timespec of the present one.
        left: [u64; 2],
        /// Room to grow.
        reserved: [u64; 5],
    }
}

record! {
    /// What one process has and no child of it, in a page of its own (MADV_WIPEONFORK).
    Turns, 64, {
        /// A [`crate::turn::Turn`] as a number.
        turn: u64,
        /// Process that this page belongs to, as it sees itself; 0 in a child that nobody has asked yet. Another id
        /// than the reader's own says that the reader shares its memory (vfork(2)).
        owner: u32,
        /// How many threads are inside the signal handler; periodic checkpoints wait for them.
        handlers: u32,
        /// The child that is the parent of a dumper in our stead, or 0.
        keeper: u32,
        /// Room to grow.
        reserved0: u32,
        /// Room to grow.
        reserved: [u64; 5],
    }
}

record! {
    /// Head of a slot: what a thread was that works for a host, beside its frame at [`SLOT_FRAME`].
    Slot, 256, {
        /// 0, [`LENT`], [`LEAVING`] or [`BURNT`].
        state: u32,
        /// The thread.
        tid: u32,
        /// When its process began, in ticks of the clock (/proc/PID/stat): in a forked child and in a restarted
        /// program the slot is nobody's.
        began: u64,
        /// Signal mask.
        mask: u64,
        /// Registers as the stop found them (struct user_regs_struct).
        regs: [u64; 27],
        /// Room to grow.
        reserved: [u64; 2],
    }
}

/// [`Slot::state`]: the thread has its frame there.
pub const LENT: u32 = 1;
/// [`Slot::state`]: the thread reads its frame and goes home, without another look at its signals.
pub const LEAVING: u32 = 2;
/// [`Slot::state`]: a handler that began while its host died may still come back to the frame.
pub const BURNT: u32 = 3;

/// Signals that are blocked while the payload's handler runs: all but SIGSYS. A program may get our system calls as that
/// (PR_SET_SYSCALL_USER_DISPATCH, prctl(2)), and would die of it were it blocked (kernel/signal.c, force_sig_info_to_task).
pub const HANDLER_MASK: u64 = !(1 << 30);

/// Bytes from the thunk for one call to that for a list of them ([`SLOT_LIST`]).
pub const LIST_THUNK: u64 = 64;
/// Bytes from the first thunk to the end of the last, for clone(2).
pub const THUNK_LEN: u64 = 256;

record! {
    /// What a thread gets back that made its call in a hole: what a system call changes; it lies [`HOLE_AREA`] bytes
    /// behind the hole's first byte.
    HoleArea, 88, {
        /// Signal mask.
        mask: u64,
        /// R8.
        r8: u64,
        /// R9.
        r9: u64,
        /// RDI.
        rdi: u64,
        /// RSI.
        rsi: u64,
        /// RDX.
        rdx: u64,
        /// R10.
        r10: u64,
        /// RAX.
        rax: u64,
        /// RCX.
        rcx: u64,
        /// R11.
        r11: u64,
        /// RIP.
        rip: u64,
    }
}

/// Bytes from a hole's first byte to its [`HoleArea`].
pub const HOLE_AREA: u64 = 104;
/// Bytes of a hole with its area.
pub const HOLE_LEN: u64 = HOLE_AREA + 88;

// The parts of a region do not overlap, and a slot has room for its frame behind its head.
const _: () = {
    assert!(size_of::<Control>() as u64 <= API);
    assert!(API + size_of::<Api>() as u64 <= WAITS);
    assert!(size_of::<Wait>() == 64);
    assert!(size_of::<Slot>() as u64 <= SLOT_FRAME);
    assert!(SLOT_FRAME.is_multiple_of(64) && SLOT_LEN.is_multiple_of(64));
    assert!(SLOT_LIST < SLOT_LEN && SLOT_LIST.is_multiple_of(64));
    assert!(core::mem::offset_of!(Slot, state) == 0 && core::mem::offset_of!(Slot, tid) == 4);
    assert!(HOLE_AREA.is_multiple_of(8) && HOLE_LEN == HOLE_AREA + size_of::<HoleArea>() as u64);
};
