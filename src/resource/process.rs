// SPDX-License-Identifier: LGPL-2.1-only
//! What belongs to the process as a whole: its address-space marks, limits, umask, directory.

use super::descriptor::directory;
use super::plan::{Arena, Orders, Step};
use super::written::Written;
use super::{Common, Gathered, Target, cpu, memory, privileges, vdso, xstate};
use crate::error::{Because, Result};
use crate::image::PAGE;
use crate::proc::{self, Pid};
use crate::ptrace::list::{List, Question, Replies};
use ckpt_abi::image::{LimitRecord, ProcessRecord, SignalAction, process_flag};
use nix::libc;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use zerocopy::FromZeros;

const PR_SET_MM_MAP: u64 = 14;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const PR_SET_IO_FLUSHER: u64 = 57;
const PR_GET_IO_FLUSHER: u64 = 58;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_GET_MEMORY_MERGE: u64 = 68;
/// PR_THP_DISABLE_EXCEPT_ADVISED (Linux 6.18).
const THP_EXCEPT_ADVISED: u64 = 2;
/// prctl_mm_map.exe_fd that leaves /proc/PID/exe as it is, which needs no privilege.
const NO_FD: u32 = u32::MAX;

/// Saves the process.
#[inline(never)]
pub(crate) fn save(
    asked: &ProcessQuestions,
    answers: &Replies,
    target: &Target<'_>,
    gathered: &mut Gathered,
    common: &mut Common,
) -> Result<()> {
    let pid = target.frozen.pid;
    let Some(seen) = target.rest else { return Ok(()) };
    let (stat, status) = (target.stat, &target.status);
    let brk = answers.expect(asked.brk, "cannot read the program break")?;
    let place = vdso::Place::find(target.vmas);
    let arguments = &seen.arguments;
    let joined = arguments.iter().map(|a| a.as_bytes()).collect::<Vec<_>>().join(&0);
    let own = Written::of(seen, common.relatives.of(status.ppid), target.process().login());
    let cwd = &seen.cwd;
    let root = &seen.root.path;
    let has_left = *root != outside(common, pid);
    if has_left && !privileges::are_given_again() {
        let text = format!(
            "its root directory {} (chroot(2)): a restart has the restarter's",
            root.display()
        );
        gathered.losses.push(text);
    }
    let strings = &mut common.strings;
    let groups = privileges::seen_groups(status);
    let groups: Vec<u8> = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
    let process = ProcessRecord {
        pid: pid.word(),
        umask: status.umask.unwrap_or(0o022),
        region: target.region.base,
        region_len: target.region.control.region_len,
        program: strings.add(arguments.first().cloned().unwrap_or_default()),
        arguments: strings.add(OsString::from_vec(joined)),
        exe: strings.add(&seen.exe.path),
        cwd: strings.add(&cwd.path),
        mm: [
            stat.start_code,
            stat.end_code,
            stat.start_data,
            stat.end_data,
            stat.start_brk,
            brk,
            stat.start_stack,
            stat.arg_start,
            stat.arg_end,
            stat.env_start,
            stat.env_end,
        ],
        vdso: place.vdso,
        vdso_len: place.vdso_len,
        vvar: place.vvar,
        vvar_len: place.vvar_len,
        flags: asked.flags(answers)
            | asked.locked.flags(answers)
            | own.flags
            | if cwd.deleted { process_flag::NOWHERE } else { 0 },
        oom_score: own.oom_score,
        coredump_filter: own.coredump_filter,
        membarrier: asked.membarrier(answers),
        group: stat.pgrp.word(),
        session: stat.session.word(),
        cpu: cpu::Set::of_config(&target.region.control.config).0,
        permitted: answers.get::<u64>(asked.permitted) & xstate::DYNAMIC,
        user: status.uid[1],
        group_id: status.gid[1],
        root: strings.add(if has_left { root.as_os_str() } else { OsStr::new("") }),
        users: status.uid,
        groups: status.gid,
        supplementary: strings.add(OsStr::from_bytes(&groups)),
        capabilities: privileges::sets(status),
        keys: asked.keys(answers),
        login: own.login,
        ..ProcessRecord::new_zeroed()
    };
    gathered.process = Some(process);
    refuse(answers.result(asked.segments), status.tags_addresses, gathered);
    gathered.auxv.clone_from(&seen.auxv);
    gathered.limits = seen.limits.iter().map(|&(soft, hard)| LimitRecord { soft, hard }).collect();
    Ok(())
}

/// Says what of a process no restart gives back: a table of segments, by its length in bytes or an error where the kernel has
/// none, and addresses that would be others.
fn refuse(segments: i64, tags_addresses: bool, gathered: &mut Gathered) {
    if segments > 0 {
        gathered.obstacles.push("it has memory segments of its own (modify_ldt(2))".into());
    }
    if tags_addresses {
        gathered
            .obstacles
            .push("it uses tagged addresses (arch_prctl(2), ARCH_ENABLE_TAGGED_ADDR)".into());
    }
}

/// The root directory of the process that started the job: who is in another one finds itself there again, and who is not
/// stays where the job is.
fn outside(common: &mut Common, pid: Pid) -> OsString {
    let root = common.tables.root().unwrap_or(pid);
    let above = common.relatives.of(root).status.as_ref().map_or(Pid::NONE, |it| it.ppid);
    common.relatives.of(above).root.clone().map_or_else(|| "/".into(), OsString::from)
}

/// What only the process can say.
pub(crate) struct ProcessQuestions {
    locked: memory::locked::LockQuestions,
    brk: Question,
    segments: Question,
    keys: Vec<Question>,
    membarrier: Question,
    /// The state components that the process may use because it asked (AMX); 0 where the kernel has no such thing
    /// (before 5.16).
    permitted: Question,
    dumpable: Question,
    huge: Question,
    merge: Question,
    flusher: Question,
    mdwe: Question,
    reaper: Question,
}

/// Asks for each protection key whether it is allocated: then it is missed that nothing is at the address `free`
/// (mm/mprotect.c, do_mprotect_pkey). None where the CPU has no such thing.
fn keys(list: &mut List, free: u64) -> Vec<Question> {
    let count = if cpu::xcr0() & 1 << 9 == 0 { 0 } else { 15 };
    let ask = |key| list.call(libc::SYS_pkey_mprotect, &[free, PAGE, 0, key]);
    (1..=count).map(ask).collect()
}

impl ProcessQuestions {
    /// Asks; `free` is an address where nothing is.
    pub(crate) fn add(list: &mut List, free: u64) -> Self {
        const READ: u64 = 0;
        const GET_REGISTRATIONS: u64 = 512;
        const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
        let prctl = libc::SYS_prctl;
        Self {
            locked: memory::locked::ask(list, free),
            brk: list.call(libc::SYS_brk, &[0]),
            segments: list.reading(libc::SYS_modify_ldt, &[READ, 0, 8], 1, 8),
            keys: keys(list, free),
            membarrier: list.call(libc::SYS_membarrier, &[GET_REGISTRATIONS]),
            permitted: list.reading(libc::SYS_arch_prctl, &[ARCH_GET_XCOMP_PERM, 0], 1, 8),
            dumpable: list.call(prctl, &[libc::PR_GET_DUMPABLE as u64]),
            huge: list.call(prctl, &[libc::PR_GET_THP_DISABLE as u64]),
            merge: list.call(prctl, &[PR_GET_MEMORY_MERGE]),
            flusher: list.call(prctl, &[PR_GET_IO_FLUSHER]),
            mdwe: list.call(prctl, &[PR_GET_MDWE]),
            reaper: list.reading(prctl, &[libc::PR_GET_CHILD_SUBREAPER as u64, 0], 1, 4),
        }
    }

    /// The protection keys that are allocated, as bits.
    fn keys(&self, answers: &Replies) -> u32 {
        let allocated = |key: &Question| answers.result(*key) == -i64::from(libc::ENOMEM);
        let keys = (1..).zip(&self.keys).filter(|(_, key)| allocated(key));
        keys.fold(0, |all, (key, _): (u32, _)| all | 1 << key)
    }

    /// The registrations for membarrier(2). Before Linux 6.3 nobody can tell; the common one is assumed
    /// then, which costs little if it was not there.
    fn membarrier(&self, answers: &Replies) -> u32 {
        const REGISTER_PRIVATE_EXPEDITED: u32 = 16;
        u32::try_from(answers.result(self.membarrier)).unwrap_or(REGISTER_PRIVATE_EXPEDITED)
    }

    fn flags(&self, answers: &Replies) -> u32 {
        let is_set = |asked, flag| if answers.result(asked) == 1 { flag } else { 0 };
        let mut flags = is_set(self.dumpable, process_flag::DUMPABLE)
            | is_set(self.merge, process_flag::MEMORY_MERGE)
            | is_set(self.flusher, process_flag::IO_FLUSHER);
        // Linux 6.18 answers with the flags of the request.
        flags |= match answers.result(self.huge) {
            ..=0 => 0,
            answer if answer & THP_EXCEPT_ADVISED.cast_signed() != 0 => {
                process_flag::THP_DISABLE | process_flag::THP_BY_ADVICE
            }
            _ => process_flag::THP_DISABLE,
        };
        // Before Linux 6.3 there is no such thing, and an error is no number of flags.
        if let Ok(bits @ 1..=3) = u32::try_from(answers.result(self.mdwe)) {
            flags |= if bits & 1 != 0 { process_flag::MDWE } else { 0 };
            flags |= if bits & 2 != 0 { process_flag::MDWE_NO_INHERIT } else { 0 };
        }
        if answers.get::<u32>(self.reaper) != 0 {
            flags |= process_flag::SUBREAPER;
        }
        flags
    }
}

/// Orders that stop a program that was stopped when it was saved, before any of its threads enters it: its restart is
/// over then but for the way into the program. All of them are in the restorer until SIGCONT comes, or the next dump
/// brings them home. `signal` is one that stops; another than SIGSTOP only where the kernel lets it (its process group is
/// not orphaned, setpgid(2)), and where it has no handler.
pub(crate) fn restore_stop(
    process: &ProcessRecord,
    signal: i32,
    actions: &[SignalAction],
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    if process.flags & process_flag::STOPPED == 0 {
        return Ok(());
    }
    let (pid, number) = (u64::from(std::process::id()), u64::from(signal.unsigned_abs()));
    let plain = actions.get(number as usize - 1).is_some_and(|action| action.handler == 0);
    if signal == libc::SIGSTOP || !plain {
        orders.call(Step::Leave, libc::SYS_kill, &[pid, libc::SIGSTOP as u64]);
        return Ok(());
    }
    // All signals are blocked here: this one waits until it is not.
    orders.call(Step::Leave, libc::SYS_kill, &[pid, number]);
    let set = arena.value(&(1u64 << (number - 1)))?;
    let args = [libc::SIG_UNBLOCK as u64, set, 0, 8];
    orders.call(Step::Leave, libc::SYS_rt_sigprocmask, &args);
    Ok(())
}

/// Sees that there is a directory that may be a current one; `makes` one that was removed.
///
/// # Errors
/// There is none, or it may not be entered.
pub(crate) fn find_directory(process: &ProcessRecord, cwd: &Path, makes: bool) -> Result<()> {
    use nix::unistd::{AccessFlags, eaccess};
    if process.flags & process_flag::NOWHERE != 0 {
        return if makes { directory::removed(cwd, None).map(drop) } else { Ok(()) };
    }
    // The dot is in a directory alone.
    eaccess(&cwd.join("."), AccessFlags::X_OK)
        .because(|| format!("cannot change to the program's directory {}", cwd.display()))
}

/// Changes to the saved working directory and umask. Nothing is lost when this fails.
pub(crate) fn restore_directory(process: &ProcessRecord, cwd: &Path) -> Result<()> {
    let why = || format!("cannot change to the program's directory {}", cwd.display());
    match process.flags & process_flag::NOWHERE {
        0 => std::env::set_current_dir(cwd).because(why)?,
        _ => nix::unistd::fchdir(directory::removed(cwd, None)?).because(why)?,
    }
    let umask = nix::sys::stat::Mode::from_bits_truncate(process.umask);
    nix::sys::stat::umask(umask);
    Ok(())
}

/// Orders that set brk, arguments, environment and auxv (prctl(2), PR_SET_MM_MAP).
///
/// /proc/PID/exe becomes `exe` first, where we may (CAP_CHECKPOINT_RESTORE); without that privilege
/// the same call without a descriptor does the rest.
pub(crate) fn restore_mm(
    process: &ProcessRecord,
    auxv: &[u8],
    exe: Option<i32>,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    let auxv_at = arena.bytes(auxv)?;
    let mut map = Vec::new();
    for value in process.mm {
        map.extend_from_slice(&value.to_le_bytes());
    }
    map.extend_from_slice(&auxv_at.to_le_bytes());
    map.extend_from_slice(&(auxv.len() as u32).to_le_bytes());
    let mut set = |fd: u32| -> Result<[u64; 5]> {
        let whole = [map.as_slice(), &fd.to_le_bytes()].concat();
        let at = arena.bytes(&whole)?;
        Ok([libc::PR_SET_MM as u64, PR_SET_MM_MAP, at, whole.len() as u64, 0])
    };
    if let Some(exe) = exe {
        orders.try_call(Step::MemoryMap, libc::SYS_prctl, &set(exe.cast_unsigned())?);
    }
    orders.call(Step::MemoryMap, libc::SYS_prctl, &set(NO_FD)?);
    Ok(())
}

/// Orders for the attributes of the process.
pub(crate) fn restore(process: &ProcessRecord, orders: &mut Orders) {
    let step = Step::Process;
    for bit in (0..32).map(|bit| 1u64 << bit).filter(|b| u64::from(process.membarrier) & b != 0) {
        orders.try_call(step, libc::SYS_membarrier, &[bit, 0, 0]);
    }
    let mut set = |flag: u32, args: &[u64]| {
        if process.flags & flag != 0 {
            orders.try_call(step, libc::SYS_prctl, args);
        }
    };
    set(process_flag::SUBREAPER, &[libc::PR_SET_CHILD_SUBREAPER as u64, 1]);
    let advised = process.flags & process_flag::THP_BY_ADVICE != 0;
    let how = if advised { THP_EXCEPT_ADVISED } else { 0 };
    set(process_flag::THP_DISABLE, &[libc::PR_SET_THP_DISABLE as u64, 1, how, 0, 0]);
    set(process_flag::MEMORY_MERGE, &[PR_SET_MEMORY_MERGE, 1, 0, 0, 0]);
    set(process_flag::IO_FLUSHER, &[PR_SET_IO_FLUSHER, 1, 0, 0, 0]);
    if process.flags & process_flag::MDWE != 0 {
        let bits = if process.flags & process_flag::MDWE_NO_INHERIT != 0 { 3 } else { 1 };
        orders.try_call(step, libc::SYS_prctl, &[PR_SET_MDWE, bits]);
    }
    restore_dumpable(process, orders);
}

/// The order that lets others look at the process, or not: behind every change of its users (commit_creds in
/// kernel/cred.c).
pub(crate) fn restore_dumpable(process: &ProcessRecord, orders: &mut Orders) {
    let dumpable = u64::from(process.flags & process_flag::DUMPABLE != 0);
    orders.try_call(Step::Process, libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, dumpable]);
}

/// Orders that ask leave again for state components that take it (AMX).
pub(crate) fn restore_permissions(permitted: u64, orders: &mut Orders) {
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const AMX_TILE_DATA: u64 = 18;
    if permitted & xstate::DYNAMIC != 0 {
        orders.try_call(Step::Process, libc::SYS_arch_prctl, &[ARCH_REQ_XCOMP_PERM, AMX_TILE_DATA]);
    }
}

/// Raises our hard limits to those that the program had, as far as we may (CAP_SYS_RESOURCE); a sentence
/// about those that stay lower than what it had.
pub(crate) fn raise_limits(saved: &[LimitRecord]) -> Result<Option<String>> {
    let own = proc::Process::own()?.limits()?;
    let mut lower = Vec::new();
    for (number, (limit, own)) in saved.iter().zip(own).enumerate() {
        if limit.hard > own.1
            && proc::limits::set(number, (own.0, limit.hard)).is_err()
            && limit.soft > own.1
        {
            let name = proc::limits::name(number);
            lower.push(format!("{name} {} (it had {})", own.1, shown(limit.soft)));
        }
    }
    Ok((!lower.is_empty()).then(|| {
        format!("the program has lower limits than at the checkpoint, which ckpt may not raise here: {}", lower.join(", "))
    }))
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "no limit".into() } else { limit.to_string() }
}

/// Orders for the resource limits: the last, because they could forbid what comes before.
///
/// A hard limit cannot be raised without privilege, so each is the lower of the saved one and the
/// restarter's own.
pub(crate) fn restore_limits(
    saved: &[LimitRecord],
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    let own = proc::Process::own()?.limits()?;
    for (number, (limit, own)) in saved.iter().zip(own).enumerate() {
        let hard = limit.hard.min(own.1);
        let wanted = LimitRecord { soft: limit.soft.min(hard), hard };
        if (wanted.soft, wanted.hard) != own {
            let at = arena.value(&wanted)?;
            orders.try_call(Step::Limit, libc::SYS_prlimit64, &[0, number as u64, at, 0]);
        }
    }
    Ok(())
}
