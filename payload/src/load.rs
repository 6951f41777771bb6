// SPDX-License-Identifier: LGPL-2.1-only
//! The payload as libckpt.so, loaded by the dynamic loader.
//!
//! What the loader maps only carries the C API. The payload at work is always the one in the
//! region: that which `ckpt` has injected, or else a copy that is made here, at the same place and
//! laid out in the same way, so that dumps and restarts know one kind of process.
//!
//! # Safety
//! The linker's symbols and the ELF headers of this very object say where it lies; the region is
//! nobody else's (MAP_FIXED_NOREPLACE).
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{assist, heirs, signals, sys};
use ckpt_abi::api::{API, Api, Request};
use ckpt_abi::region::{Control, MAGIC, NAME_LEN, PAYLOAD, TURNS, Turns, VERSION, next_base};
use core::mem::offset_of;

const SIGTSTP: u32 = 20;

const PT_LOAD: u32 = 1;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const R_X86_64_RELATIVE: u64 = 8;

unsafe extern "C" {
    /// First byte of this object's ELF image, defined by the linker.
    static __ehdr_start: u8;
    /// Its end, without the executable that `ckpt sdk` appends.
    static _end: u8;
    /// Its dynamic section.
    static _DYNAMIC: u8;
    fn ckpt_thunk();
    fn ckpt_clone_thunk();
    fn ckpt_restorer();
    fn ckpt_handler();
    fn ckpt_visit();
    fn ckpt_socket_wait();
    fn ckpt_suspended();
    fn ckpt_rest();
    fn ckpt_run();
}

/// What the dynamic loader calls. An injected payload has no loader.
#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;

extern "C" fn load() {
    let Some((start, len)) = executable() else { return };
    if Page::find().is_none()
        && let Some(page) = create(start, len)
    {
        signals::take(page);
        if environment() {
            // What is wrong with it was said by the assistant; the rest holds.
            assist::configure(page, Request::Environment, [0; 4], core::ptr::null());
        }
        heirs::equip(image());
    }
    // The mapping of the file would be in every image and break when the file is rewritten.
    // SAFETY: the executable's own segment of this object, which nothing refers to.
    unsafe { sys::replace(start, pages(len)) };
}

fn image() -> u64 {
    (&raw const __ehdr_start) as u64
}

fn payload_len() -> u64 {
    pages(((&raw const _end) as u64).wrapping_sub(image()))
}

fn pages(len: u64) -> u64 {
    len.wrapping_add(4095) & !4095
}

fn word(address: u64) -> u64 {
    // SAFETY: the callers read the headers of this object, which are mapped and aligned.
    unsafe { (address as *const u64).read() }
}

/// A program header: type and flags, virtual address, bytes in the file, bytes in memory.
fn header(index: u64) -> Option<(u32, u32, [u64; 3])> {
    let (table, count) = (word(image().wrapping_add(32)), word(image().wrapping_add(56)) & 0xffff);
    let at = image().wrapping_add(table).wrapping_add(index.wrapping_mul(56));
    let kind = word(at);
    let field = |n: u64| word(at.wrapping_add(n));
    (index < count).then(|| (kind as u32, (kind >> 32) as u32, [field(16), field(32), field(40)]))
}

/// Where the loader has mapped the ckpt executable; None in a library without one.
fn executable() -> Option<(u64, u64)> {
    let mut index = 0;
    while let Some((kind, _, [address, len, _])) = header(index) {
        if kind == PT_LOAD && address >= payload_len() {
            return Some((image().wrapping_add(address), len));
        }
        index = index.wrapping_add(1);
    }
    None
}

/// Makes the region; None where there is no room.
fn create(executable: u64, executable_len: u64) -> Option<Page> {
    let exe_start = PAYLOAD.wrapping_add(payload_len());
    let region_len = exe_start.wrapping_add(pages(executable_len));
    let base = map(region_len)?;
    copy(base.wrapping_add(exe_start), executable, executable_len);
    let to = base.wrapping_add(PAYLOAD);
    if !lay_out(to) {
        sys::unmap(base, region_len);
        return None;
    }
    let at = |symbol: unsafe extern "C" fn()| {
        to.wrapping_add((symbol as *const () as u64).wrapping_sub(image()))
    };
    let put = |offset: usize, value: u64| {
        // SAFETY: the region was just mapped.
        unsafe { (base.wrapping_add(offset as u64) as *mut u64).write(value) };
    };
    put(offset_of!(Control, region_len), region_len);
    put(offset_of!(Control, payload_len), payload_len());
    put(offset_of!(Control, exe_start), exe_start);
    put(offset_of!(Control, exe_len), executable_len);
    put(offset_of!(Control, thunk), at(ckpt_thunk));
    put(offset_of!(Control, clone_thunk), at(ckpt_clone_thunk));
    put(offset_of!(Control, handler), at(ckpt_handler));
    put(offset_of!(Control, restorer), at(ckpt_restorer));
    put(offset_of!(Control, run), at(ckpt_run));
    put(API as usize + offset_of!(Api, visit_entry), at(ckpt_visit));
    put(API as usize + offset_of!(Api, socket_wait), at(ckpt_socket_wait));
    put(API as usize + offset_of!(Api, suspended), at(ckpt_suspended));
    put(API as usize + offset_of!(Api, rest), at(ckpt_rest));
    put(offset_of!(Control, config.asyncsig), SIGTSTP.into());
    // Without it a child would take its parent's for its own.
    sys::wipe_on_fork(base.wrapping_add(TURNS), 4096);
    put(TURNS as usize + offset_of!(Turns, owner), sys::getpid().into());
    put(offset_of!(Control, version), u64::from(VERSION) | u64::from(sys::getpid()) << 32);
    let page = Page::at(base);
    default_name(page);
    for fd in 0..3u64 {
        let standard = standard(fd);
        for (i, value) in standard.into_iter().enumerate() {
            let index = (fd as usize).wrapping_mul(3).wrapping_add(i);
            put(offset_of!(Control, standard).wrapping_add(index.wrapping_mul(8)), value);
        }
    }
    protect(base.wrapping_add(exe_start), pages(executable_len), sys::PROT_READ);
    put(offset_of!(Control, magic), u64::from_le_bytes(MAGIC));
    Some(page)
}

/// Device, inode and access mode of a standard stream; zeros for a closed one.
fn standard(fd: u64) -> [u64; 3] {
    const ACCMODE: u64 = 3;
    let flags = sys::status_flags(fd as i64);
    if flags < 0 {
        return [0; 3];
    }
    let [device, inode, ..] = sys::stat(fd as i64);
    [device, inode, flags as u64 & ACCMODE]
}

fn map(len: u64) -> Option<u64> {
    let mut base = next_base(0, len);
    while base != 0 {
        if sys::map_at(base, len) {
            return Some(base);
        }
        base = next_base(base, len);
    }
    None
}

fn copy(to: u64, from: u64, len: u64) {
    // SAFETY: the callers copy from this object into the new region.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len as usize) };
}

fn protect(start: u64, len: u64, prot: u64) -> bool {
    // SAFETY: the callers protect parts of the new region.
    unsafe { sys::protect(start, len, prot) }
}

/// Copies this object to `to` as it has to be there; false where memory must not become executable (PR_SET_MDWE, prctl(2)).
fn lay_out(to: u64) -> bool {
    let mut index = 0;
    while let Some((kind, _, [address, _, len])) = header(index) {
        if kind == PT_LOAD && address < payload_len() {
            copy(to.wrapping_add(address), image().wrapping_add(address), len);
        }
        index = index.wrapping_add(1);
    }
    relocate(to);
    index = 0;
    while let Some((kind, flags, [address, _, len])) = header(index) {
        if kind == PT_LOAD && address < payload_len() {
            let start = address & !4095;
            let len = pages(address.wrapping_add(len)).wrapping_sub(start);
            // PF_R is 4, PF_W 2 and PF_X 1; PROT_ bits are the other way round.
            let flags = u64::from(flags);
            let prot = (flags >> 2 & 1) | (flags & 2) | (flags & 1) << 2;
            if !protect(to.wrapping_add(start), len, prot) {
                return false;
            }
        }
        index = index.wrapping_add(1);
    }
    true
}

/// Applies the relative relocations. The others are the C library's functions, which the API calls
/// from where the loader has put it; the copy has no use for them.
fn relocate(to: u64) {
    let (mut table, mut len) = (0u64, 0u64);
    let mut entry = (&raw const _DYNAMIC) as u64;
    while word(entry) != 0 {
        match word(entry) {
            DT_RELA => table = word(entry.wrapping_add(8)),
            DT_RELASZ => len = word(entry.wrapping_add(8)),
            _ => {}
        }
        entry = entry.wrapping_add(16);
    }
    // glibc replaces the offset by the address, musl does not.
    if table < image() {
        table = table.wrapping_add(image());
    }
    let end = table.wrapping_add(len);
    while table < end {
        let [offset, kind, addend] = [0, 8, 16].map(|n| word(table.wrapping_add(n)));
        if kind & 0xffff_ffff == R_X86_64_RELATIVE {
            // SAFETY: relocations point into the image, of which `to` is a writable copy.
            unsafe { (to.wrapping_add(offset) as *mut u64).write(to.wrapping_add(addend)) };
        }
        table = table.wrapping_add(24);
    }
}

/// Names the checkpoint after the program, in the current directory.
fn default_name(page: Page) {
    const SUFFIX: &[u8] = b".ckpt";
    let name = page.config_name();
    let mut arguments = [0u8; 1024];
    let fd = sys::open_to_read(c"/proc/self/cmdline");
    let len = if fd < 0 { 0 } else { sys::read(fd, &mut arguments) };
    sys::close(fd);
    // SAFETY: the field of that length, which nobody uses before the region is complete.
    let cwd = unsafe { sys::working_directory(name, NAME_LEN) };
    let mut at = if cwd > 0 { (cwd as usize).wrapping_sub(1) } else { 0 };
    let mut put = |byte: u8| {
        if at < NAME_LEN - 1 {
            // SAFETY: inside the name's field.
            unsafe { name.wrapping_add(at).write(byte) };
            at = at.wrapping_add(1);
        }
    };
    put(b'/');
    let program = arguments.iter().take(len).take_while(|b| **b != 0);
    let start = program.clone().rposition_of_slash();
    let mut empty = true;
    for byte in program.skip(start) {
        put(*byte);
        empty = false;
    }
    if empty {
        b"program".iter().for_each(|b| put(*b));
    }
    SUFFIX.iter().for_each(|b| put(*b));
}

/// How many bytes go up to and with the last slash.
trait LastSlash {
    fn rposition_of_slash(self) -> usize;
}

impl<'a, I: Iterator<Item = &'a u8>> LastSlash for I {
    fn rposition_of_slash(self) -> usize {
        let (mut at, mut start) = (0usize, 0usize);
        for byte in self {
            at = at.wrapping_add(1);
            if *byte == b'/' {
                start = at;
            }
        }
        start
    }
}

/// Whether the environment says anything about checkpoints.
fn environment() -> bool {
    const PREFIX: &[u8] = b"CKPT_";
    let fd = sys::open_to_read(c"/proc/self/environ");
    if fd < 0 {
        return false;
    }
    let mut found = false;
    let mut buffer = [0u8; 4096];
    // How much of the prefix has matched; PREFIX.len() + 1: not at the beginning of a variable.
    let mut matched = 0usize;
    loop {
        let len = sys::read(fd, &mut buffer);
        for byte in buffer.iter().take(len) {
            matched = match (*byte, PREFIX.get(matched)) {
                (0, _) => 0,
                (byte, Some(wanted)) if byte == *wanted => matched.wrapping_add(1),
                _ => PREFIX.len().wrapping_add(1),
            };
            found |= matched == PREFIX.len();
        }
        if len == 0 || found {
            break;
        }
    }
    sys::close(fd);
    found
}
