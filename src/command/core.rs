// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt core FILE [OUT]`: a checkpoint as the core files that debuggers read (core(5), elf(5); fs/binfmt_elf.c,
//! include/uapi/linux/elfcore.h and elf.h of the kernel).

use super::fetch;
use crate::error::{Because, Result};
use crate::image::PAGE;
use crate::ptrace::frame;
use crate::resource::xstate::{self, BASE, LEGACY, Layout};
use crate::restart::MapPath;
use crate::restart::phase1_check::{Saved, Whole, check_all};
use crate::settings::server::Transfer;
use ckpt_abi::image::{Chunk, CpuLeaf, Thread, VmaKind, VmaRecord, WHOLE_IMAGE, vma_flag};
use ckpt_abi::region::Control;
use std::ffi::OsStr;
use std::fs::File;
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use zerocopy::IntoBytes;

/// Most bytes of memory without any content that a core file shows as zeros; more is a reservation.
const RESERVATION: u64 = 1 << 30;
/// How far above a stack pointer the frame of a handler is looked for.
const REACH: u64 = 64 << 10;
/// Where struct user_regs_struct has RIP and RSP.
const RIP: usize = 16;
const RSP: usize = 19;

/// Kinds of notes (elf.h).
const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_X86_XSTATE: u32 = 0x202;
const NT_SIGINFO: u32 = 0x5349_4749;
const NT_FILE: u32 = 0x4649_4c45;
/// Bytes of an ELF header, of a program header and of a section header.
const EHDR: u64 = 64;
const PHDR: u64 = 56;
const SHDR: u64 = 64;
/// From so many program headers on, a section header tells their number (PN_XNUM).
const PN_XNUM: u64 = 0xffff;

/// Writes a core file for each process of a checkpoint, and says their names.
#[inline(never)]
pub(super) fn run(word: &OsStr, out: Option<PathBuf>, transfer: &Transfer) -> Result<u8> {
    let image = fetch::image(word, transfer)?;
    let (whole, all) = check_all(&image, &MapPath::default())?;
    let out = out.unwrap_or_else(|| "core".into());
    for saved in &all {
        let mut path = out.clone();
        if all.len() > 1 {
            path.as_mut_os_string().push(format!(".{}", saved.process.pid));
        }
        let why = || format!("cannot write {}", path.display());
        // It holds all that the program knew.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.because(why).map_err(|e| match path.exists() {
            true => e.hint("name another file: ckpt core FILE OUT"),
            false => e,
        })?;
        let written = (Core { whole: &whole, saved, file: &file }).write();
        if written.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        written.because(why)?;
        let program = image.text(saved.process.program);
        let line =
            format!("{}: process {}, {}", path.display(), saved.process.pid, program.display());
        super::print(&format!("{}\n", crate::error::printable(&line)))?;
    }
    Ok(0)
}

/// A piece of memory as the core file has it.
struct Segment {
    start: u64,
    end: u64,
    prot: u32,
    /// Whether the file has its bytes; else debuggers find them in the mapped file, or nowhere.
    is_there: bool,
}

struct Core<'a> {
    whole: &'a Whole<'a>,
    saved: &'a Saved<'a>,
    file: &'a File,
}

impl Core<'_> {
    fn write(&self) -> Result<()> {
        let chunks = self.whole.image.chunks()?;
        let segments: Vec<Segment> = self
            .saved
            .vmas
            .iter()
            .flat_map(|vma| segments(vma, &self.pieces(vma, &chunks)))
            .collect();
        let notes = self.notes(&chunks)?;
        let headers = segments.len() as u64 + 1;
        let section = if headers >= PN_XNUM { SHDR } else { 0 };
        let start = EHDR + headers * PHDR + section;
        let first = (start + notes.len() as u64).next_multiple_of(PAGE);
        let mut head = elf_header(headers, section);
        head.extend(program_header(4, 0, start, [0, notes.len() as u64, 0]));
        let mut at = first;
        for segment in &segments {
            let len = segment.end - segment.start;
            let there = if segment.is_there { len } else { 0 };
            // PROT_READ is 1, PF_R is 4.
            let prot = segment.prot;
            let flags = (prot & 1) << 2 | prot & 2 | prot >> 2 & 1;
            head.extend(program_header(1, flags, at, [segment.start, there, len]));
            at += there;
        }
        if section != 0 {
            let mut header = [0u8; SHDR as usize];
            header[44..48].copy_from_slice(&(headers as u32).to_le_bytes());
            head.extend(header);
        }
        head.extend(notes);
        self.put(&head, 0)?;
        let mut at = first;
        for segment in segments.iter().filter(|segment| segment.is_there) {
            self.fill(segment, at, &chunks)?;
            at += segment.end - segment.start;
        }
        self.file.set_len(at).because(|| "it would be too long")
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).because(|| "no room")
    }

    /// What the image has of a mapping: the chunks, and by how much their addresses differ.
    fn pieces<'c>(&self, vma: &VmaRecord, chunks: &'c [Chunk]) -> Vec<(&'c Chunk, u64)> {
        let (process, object, shift) = match vma.kind == VmaKind::Shared as u32 {
            true => (WHOLE_IMAGE, vma.object, vma.start.wrapping_sub(vma.offset)),
            false => (self.saved.part.number(), ckpt_abi::image::NO_OBJECT, 0),
        };
        let [low, high] = [vma.start, vma.end].map(|at| at.wrapping_sub(shift));
        let first = chunks.partition_point(|c| {
            (c.process, c.object, c.address + u64::from(c.len)) <= (process, object, low)
        });
        let is_in = |c: &&Chunk| (c.process, c.object) == (process, object) && c.address < high;
        chunks[first..].iter().take_while(is_in).map(|chunk| (chunk, shift)).collect()
    }

    /// Writes what the image has of a segment; the rest are holes.
    fn fill(&self, segment: &Segment, at: u64, chunks: &[Chunk]) -> Result<()> {
        let of = self.saved.vmas.partition_point(|vma| vma.end <= segment.start);
        let Some(vma) = self.saved.vmas.get(of) else { return Ok(()) };
        for (chunk, shift) in self.pieces(vma, chunks) {
            let from = chunk.address.wrapping_add(shift);
            let (low, high) =
                (from.max(segment.start), (from + u64::from(chunk.len)).min(segment.end));
            if low < high {
                let bytes = self.whole.image.read_chunk(chunk)?;
                let piece = &bytes[(low - from) as usize..(high - from) as usize];
                self.put(piece, at + (low - segment.start))?;
            }
        }
        Ok(())
    }

    fn notes(&self, chunks: &[Chunk]) -> Result<Vec<u8>> {
        let mut notes = Vec::new();
        let xcr0 = self.whole.machine.xcr0;
        let from = Layout::new(&self.whole.cpuid, xcr0);
        let to = debuggers_layout(xcr0);
        for (index, thread) in self.saved.threads.iter().enumerate() {
            note(&mut notes, "CORE", NT_PRSTATUS, &self.status(thread, chunks)?);
            if index == 0 {
                note(&mut notes, "CORE", NT_PRPSINFO, &self.about());
                note(&mut notes, "CORE", NT_AUXV, &self.saved.auxv);
                note(&mut notes, "CORE", NT_FILE, &self.files());
            }
            // None has come.
            note(&mut notes, "CORE", NT_SIGINFO, &[0; 128]);
            let (at, len) = (thread.xstate as usize, thread.xstate_len as usize);
            let area = at.checked_add(len).and_then(|end| self.saved.xstate.get(at..end));
            if let Some(area) = area.filter(|area| area.len() >= LEGACY) {
                note(&mut notes, "CORE", NT_FPREGSET, &area[..LEGACY]);
                let area = xstate::convert(area, &from, &to);
                if area.len() > LEGACY {
                    note(&mut notes, "LINUX", NT_X86_XSTATE, &area);
                }
            }
        }
        Ok(notes)
    }

    /// struct elf_prstatus.
    fn status(&self, thread: &Thread, chunks: &[Chunk]) -> Result<[u8; 336]> {
        let process = &self.saved.process;
        let mut status = [0; 336];
        status[24..32].copy_from_slice(&thread.mask.to_le_bytes());
        let ids = [thread.tid, 0, process.group, process.session];
        status[32..48].copy_from_slice(ids.as_bytes());
        status[112..328].copy_from_slice(self.outside(thread, chunks)?.as_bytes());
        status[328] = 1;
        Ok(status)
    }

    /// The registers of a thread; of one that is in the payload's handler those with which it came there, for a debugger
    /// does not find the way from the one to the other.
    fn outside(&self, thread: &Thread, chunks: &[Chunk]) -> Result<[u64; 27]> {
        let (mut regs, process) = (thread.regs, &self.saved.process);
        if !(process.region..process.region + process.region_len).contains(&regs[RIP]) {
            return Ok(regs);
        }
        let field = process.region + offset_of!(Control, restorer) as u64;
        let restorer = self.memory(field, 8, chunks)?;
        let stack = self.memory(regs[RSP], REACH, chunks)?;
        let frame = (0..stack.len()).step_by(8).find(|at| stack[*at..].starts_with(&restorer));
        let Some(frame) = frame else { return Ok(regs) };
        for (number, register) in regs.iter_mut().enumerate() {
            let place = frame::offset(number * 8).map(|at| frame + at);
            if let Some(value) = place.and_then(|at| stack.get(at..at + 8)?.try_into().ok()) {
                *register = u64::from_le_bytes(value);
            }
        }
        Ok(regs)
    }

    /// A piece of the process's own memory; zeros where there is nothing.
    fn memory(&self, at: u64, len: u64, chunks: &[Chunk]) -> Result<Vec<u8>> {
        memory(self.saved, at, len, chunks)
    }

    /// struct elf_prpsinfo.
    fn about(&self) -> [u8; 136] {
        let process = &self.saved.process;
        let mut about = [0; 136];
        about[1] = b'R';
        about[16..24].copy_from_slice([process.users[0], process.groups[0]].as_bytes());
        let ids = [process.pid, 0, process.group, process.session];
        about[24..40].copy_from_slice(ids.as_bytes());
        let name = self.saved.threads.first().map_or([0; 16], |thread| thread.name);
        about[40..56].copy_from_slice(&name);
        let arguments = self.whole.image.text(process.arguments);
        let spaced = arguments.as_bytes().iter().map(|byte| if *byte == 0 { b' ' } else { *byte });
        about[56..135].iter_mut().zip(spaced).for_each(|(to, from)| *to = from);
        about
    }

    /// Which mapping is of which file.
    fn files(&self) -> Vec<u8> {
        let named = |vma: &&VmaRecord| {
            let name = self.whole.image.text(vma.name);
            name.as_bytes().starts_with(b"/") && vma.flags & vma_flag::REGION == 0
        };
        let all: Vec<&VmaRecord> = self.saved.vmas.iter().filter(named).collect();
        let mut bytes = Vec::new();
        let numbers = [all.len() as u64, PAGE].into_iter();
        let places = all.iter().flat_map(|vma| [vma.start, vma.end, vma.offset / PAGE]);
        numbers.chain(places).for_each(|number| bytes.extend(number.to_le_bytes()));
        for vma in all {
            bytes.extend(self.whole.image.text(vma.name).as_bytes());
            bytes.push(0);
        }
        bytes
    }
}

/// Where debuggers look for the components of an extended state, whatever the processor: gdb before 14 knows no other
/// places (gdbsupport/x86-xstate.h), later ones take them for those by the length.
fn debuggers_layout(xcr0: u64) -> Layout {
    const PLACES: [(u32, u32, u32); 7] = [
        (2, 576, 256),
        (3, 960, 64),
        (4, 1024, 64),
        (5, 1088, 64),
        (6, 1152, 512),
        (7, 1664, 1024),
        (9, 2688, 8),
    ];
    let leaf = |(subleaf, ebx, eax)| CpuLeaf { leaf: 0xd, subleaf, eax, ebx, ecx: 0, edx: 0 };
    let known = PLACES.iter().fold(BASE, |all, (component, ..)| all | 1 << component);
    Layout::new(&PLACES.map(leaf), xcr0 & known)
}

/// A piece of a process's own memory; zeros where the image has nothing.
pub(super) fn memory(saved: &Saved<'_>, at: u64, len: u64, chunks: &[Chunk]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    for chunk in saved.part.memory(chunks) {
        let (low, high) =
            (chunk.address.max(at), (chunk.address + u64::from(chunk.len)).min(at + len));
        if low < high {
            let content = saved.part.image().read_chunk(chunk)?;
            let from = &content[(low - chunk.address) as usize..(high - chunk.address) as usize];
            bytes[(low - at) as usize..(high - at) as usize].copy_from_slice(from);
        }
    }
    Ok(bytes)
}

/// The pieces of a mapping. Of a file the image has what was written, and a debugger reads the rest there: so that must not
/// be zeros here.
fn segments(vma: &VmaRecord, pieces: &[(&Chunk, u64)]) -> Vec<Segment> {
    let prot = vma.prot;
    let piece = |start, end, is_there| Segment { start, end, prot, is_there };
    let of_file =
        [VmaKind::PrivateFile, VmaKind::SharedFile].iter().any(|it| *it as u32 == vma.kind);
    if !of_file {
        let reserved = prot == 0 || vma.end - vma.start > RESERVATION;
        return vec![piece(vma.start, vma.end, !(pieces.is_empty() && reserved))];
    }
    let (mut all, mut at) = (Vec::<Segment>::new(), vma.start);
    for (chunk, shift) in pieces {
        let from = chunk.address.wrapping_add(*shift);
        let (low, high) = (from.max(at), (from + u64::from(chunk.len)).min(vma.end));
        if at < low {
            all.push(piece(at, low, false));
        }
        match all.last_mut().filter(|last| last.is_there && last.end == low) {
            Some(last) => last.end = high,
            None if low < high => all.push(piece(low, high, true)),
            None => {}
        }
        at = at.max(high);
    }
    if at < vma.end {
        all.push(piece(at, vma.end, false));
    }
    all
}

fn elf_header(headers: u64, section: u64) -> Vec<u8> {
    let mut header = vec![0; EHDR as usize];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |at: usize, value: u64, len: usize| {
        header[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    };
    // ET_CORE, EM_X86_64, EV_CURRENT.
    [(16, 4), (18, 62)].into_iter().for_each(|(at, value)| put(at, value, 2));
    put(20, 1, 4);
    put(32, EHDR, 8);
    if section != 0 {
        put(40, EHDR + headers * PHDR, 8);
    }
    let sizes = [EHDR, PHDR, headers.min(PN_XNUM), section, u64::from(section != 0)];
    (52..).step_by(2).zip(sizes).for_each(|(at, value)| put(at, value, 2));
    header
}

/// Of PT_NOTE (4) or PT_LOAD (1): where it is in the file; its address, and its bytes there and in memory.
fn program_header(kind: u32, flags: u32, offset: u64, [at, there, len]: [u64; 3]) -> Vec<u8> {
    let align = if kind == 1 { PAGE } else { 4 };
    let mut header = [kind, flags].as_bytes().to_vec();
    header.extend([offset, at, 0, there, len, align].as_bytes());
    header
}

fn note(notes: &mut Vec<u8>, owner: &str, kind: u32, content: &[u8]) {
    notes.extend([owner.len() as u32 + 1, content.len() as u32, kind].as_bytes());
    notes.extend(owner.as_bytes());
    notes.push(0);
    notes.resize(notes.len().next_multiple_of(4), 0);
    notes.extend(content);
    notes.resize(notes.len().next_multiple_of(4), 0);
}
