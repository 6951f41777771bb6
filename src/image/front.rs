// SPDX-License-Identifier: LGPL-2.1-only
//! The first page of a checkpoint: a small program that looks whether all of the file is there, before anything
//! behind that page is touched.
//!
//! The kernel maps an executable without a look at its length, and who touches a page behind the end of a file that was
//! cut off dies of SIGBUS; so would the kernel itself, which clears what lies behind a segment's data in the last page
//! of it (padzero in fs/binfmt_elf.c). So the executable in an image lies behind a page with an ELF header of its own,
//! whose segments end with pages, and its code begins only when the file has the length that this page says.
//!
//! ```text
//! 0        ELF header
//! 64       length of the file, the ways from this page to the real entry point and to the program headers, code
//!          program headers: what is too short for them is refused by the kernel (ENOEXEC)
//! 4096     the executable
//! ```
//!
//! The page is mapped behind all else, so that the executable's addresses stay as they are. Before Linux 5.18 AT_PHDR is
//! wrong then (load_addr in fs/binfmt_elf.c); the code sets it.
//!
//! # Safety
//! The assembly is data of ours, which is only copied here; its two symbols are its first byte and the one behind it.
#![allow(unsafe_code)]

use super::PAGE;
use goblin::elf64::header::{ELFMAG, ET_DYN, Header};
use goblin::elf64::program_header::{PF_R, PF_X, PT_GNU_STACK, PT_LOAD, ProgramHeader};
use std::mem::{offset_of, size_of};

// The kernel gives the stack as execve(2) says: the number of arguments, then their addresses.
std::arch::global_asm!(
    ".pushsection .rodata.ckpt_front, \"a\", @progbits",
    ".balign 8",
    ".globl ckpt_front_begin",
    ".hidden ckpt_front_begin",
    "ckpt_front_begin:",
    ".quad 0",
    ".quad 0",
    ".quad 0",
    "mov r8, rsp",
    "sub rsp, 1024",
    "lea rdi, [rip + 32f]",
    "mov rsi, rsp",
    "mov eax, {stat}",
    "syscall",
    "test eax, eax",
    "jne 2f",
    "mov rax, [rsp + {size}]",
    "cmp rax, [rip + ckpt_front_begin]",
    "jb 3f",
    "2: lea rsi, [rip + ckpt_front_begin - {header}]",
    "mov rcx, [r8]",
    "lea rdi, [r8 + rcx * 8 + 16]",
    "22: add rdi, 8",
    "cmp qword ptr [rdi - 8], 0",
    "jne 22b",
    "23: mov rax, [rdi]",
    "test rax, rax",
    "je 25f",
    "cmp rax, {phdr}",
    "je 24f",
    "add rdi, 16",
    "jmp 23b",
    "24: mov rax, rsi",
    "add rax, [rip + ckpt_front_begin + 16]",
    "mov [rdi + 8], rax",
    "25: mov rsp, r8",
    "xor edx, edx",
    "add rsi, [rip + ckpt_front_begin + 8]",
    "jmp rsi",
    // One line in one call: "ckpt: ", the name without control characters, and the reason.
    "3: cld",
    "mov rdi, rsp",
    "lea rsi, [rip + 33f]",
    "mov ecx, 6",
    "rep movsb",
    "mov rsi, [r8 + 8]",
    "test rsi, rsi",
    "je 7f",
    "mov ecx, 700",
    "4: lodsb",
    "test al, al",
    "je 7f",
    "cmp al, 32",
    "jb 5f",
    "cmp al, 127",
    "jne 6f",
    "5: mov al, 63",
    "6: stosb",
    "dec ecx",
    "jne 4b",
    "7: lea rsi, [rip + 34f]",
    "lea rcx, [rip + 35f]",
    "sub rcx, rsi",
    "rep movsb",
    "mov rdx, rdi",
    "sub rdx, rsp",
    "mov rsi, rsp",
    "mov edi, 2",
    "mov eax, {write}",
    "syscall",
    "mov edi, {failed}",
    "mov eax, {exit}",
    "syscall",
    "32: .asciz \"/proc/self/exe\"",
    "33: .ascii \"ckpt: \"",
    "34: .ascii \" was cut off: its end is missing; restart an older checkpoint or another copy\\n\"",
    "35:",
    ".globl ckpt_front_end",
    ".hidden ckpt_front_end",
    "ckpt_front_end:",
    ".popsection",
    stat = const nix::libc::SYS_stat,
    size = const offset_of!(nix::libc::stat, st_size),
    header = const size_of::<Header>(),
    phdr = const nix::libc::AT_PHDR,
    write = const nix::libc::SYS_write,
    failed = const crate::error::FAILED,
    exit = const nix::libc::SYS_exit_group,
);

unsafe extern "C" {
    static ckpt_front_begin: u8;
    static ckpt_front_end: u8;
}

/// Where the length of the file stands in the page.
const LENGTH: usize = size_of::<Header>();
/// Where the way to the real entry point does.
const ENTRY: usize = LENGTH + 8;
/// Where the way to the program headers does.
const TABLE: usize = ENTRY + 8;
/// Where the code begins.
const CODE: usize = TABLE + 8;

fn code() -> &'static [u8] {
    let (begin, end) = (&raw const ckpt_front_begin, &raw const ckpt_front_end);
    // SAFETY: both are of one piece of data, which lasts as long as we.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

/// An executable behind such a page; as it is where it is none that could lie there.
pub(super) fn put_before(stub: &[u8]) -> Vec<u8> {
    fronted(stub).unwrap_or_else(|| stub.to_vec())
}

/// Tells the page how long the file is.
pub(super) fn set_length(stub: &mut [u8], len: u64) {
    if is_before(stub)
        && let Some(place) = stub.get_mut(LENGTH..LENGTH + 8)
    {
        place.copy_from_slice(&len.to_le_bytes());
    }
}

/// How long the page is: 0 of an executable that has none.
pub(super) fn len(stub: &[u8]) -> usize {
    if is_before(stub) { PAGE as usize } else { 0 }
}

/// Whether an executable begins behind the first page: no other has another ELF header there.
fn is_before(stub: &[u8]) -> bool {
    let page = PAGE as usize;
    stub.starts_with(ELFMAG) && stub.get(page..).is_some_and(|rest| rest.starts_with(ELFMAG))
}

fn fronted(stub: &[u8]) -> Option<Vec<u8>> {
    let header = *Header::from_bytes(stub.first_chunk()?);
    let (at, count) = (usize::try_from(header.e_phoff).ok()?, usize::from(header.e_phnum));
    let table = stub.get(at..at.checked_add(count * size_of::<ProgramHeader>())?)?;
    if !stub.starts_with(ELFMAG) || header.e_type != ET_DYN {
        return None;
    }
    let mut segments = ProgramHeader::from_bytes(table, count);
    let mut moved = Vec::with_capacity(stub.len() + 3 * PAGE as usize);
    moved.resize(PAGE as usize, 0);
    moved.extend_from_slice(stub);
    let loaded = segments.clone();
    for segment in &mut segments {
        whole_pages(segment, &loaded, &mut moved)?;
    }
    let loads = segments.iter().filter(|segment| segment.p_type == PT_LOAD);
    let end = loads.map(|segment| segment.p_vaddr.saturating_add(segment.p_memsz)).max()?;
    let place = end.checked_next_multiple_of(PAGE)?;
    let front = ProgramHeader {
        p_type: PT_LOAD,
        p_flags: PF_R | PF_X,
        p_vaddr: place,
        p_paddr: place,
        p_filesz: PAGE,
        p_memsz: PAGE,
        p_align: PAGE,
        ..ProgramHeader::default()
    };
    // The kernel wants them in the order of their addresses (elf(5)).
    segments.push(front);
    let code = code();
    let table_at = (LENGTH + code.len()).next_multiple_of(8);
    let table: Vec<u8> = segments.iter().flat_map(bytes).collect();
    let page = moved.get_mut(..PAGE as usize)?;
    page[..LENGTH].copy_from_slice(stub.get(..LENGTH)?);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(Header, e_entry), &(place + CODE as u64).to_le_bytes());
    put(offset_of!(Header, e_phoff), &(table_at as u64).to_le_bytes());
    put(offset_of!(Header, e_phnum), &(segments.len() as u16).to_le_bytes());
    put(LENGTH, code);
    put(ENTRY, &header.e_entry.wrapping_sub(place).to_le_bytes());
    put(TABLE, &(table_at as u64).to_le_bytes());
    put(table_at, &table);
    Some(moved)
}

/// Moves a segment by a page of the file. What of it is to be mapped ends with a page, which the kernel then has nothing to clear
/// in; None if something of another lies in that page.
fn whole_pages(
    segment: &mut ProgramHeader,
    others: &[ProgramHeader],
    file: &mut Vec<u8>,
) -> Option<()> {
    if segment.p_type == PT_GNU_STACK {
        return Some(());
    }
    segment.p_offset += PAGE;
    if segment.p_type != PT_LOAD || segment.p_memsz == segment.p_filesz {
        return Some(());
    }
    let (start, end) = (segment.p_offset, segment.p_offset.checked_add(segment.p_filesz)?);
    let whole = end.next_multiple_of(PAGE);
    let is_there = |other: &ProgramHeader| {
        let at = other.p_offset.saturating_add(PAGE);
        other.p_type == PT_LOAD && at < whole && at.saturating_add(other.p_filesz) > end
    };
    if others.iter().any(is_there) {
        return None;
    }
    let (from, to) = (usize::try_from(end).ok()?, usize::try_from(whole).ok()?);
    file.resize(file.len().max(to), 0);
    file.get_mut(from..to)?.fill(0);
    segment.p_filesz = whole - start;
    segment.p_memsz = segment.p_memsz.max(segment.p_filesz);
    Some(())
}

fn bytes(segment: &ProgramHeader) -> Vec<u8> {
    let ProgramHeader { p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align } =
        *segment;
    let words = [p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align].map(u64::to_le_bytes);
    [&p_type.to_le_bytes()[..], &p_flags.to_le_bytes(), words.as_flattened()].concat()
}
