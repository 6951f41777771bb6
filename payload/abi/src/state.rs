// SPDX-License-Identifier: LGPL-2.1-only
//! The records of a saved process, section by section ([`crate::image::SectionKind`]).

use crate::record;

record! {
    /// A NUMA policy (set_mempolicy(2), mbind(2)).
    NumaPolicy, 152, {
        /// The thread; 0 of a policy of memory.
        thread: u32,
        /// MPOL_BIND and so on, with its flags.
        mode: u32,
        /// Where the memory begins, and where it ends.
        start: u64,
        /// The first byte behind it.
        end: u64,
        /// Its nodes, one bit each.
        nodes: [u64; 16],
    }
}

record! {
    /// A piece of the section of strings.
    Text, 8, {
        /// Offset in [`crate::image::SectionKind::Strings`].
        offset: u32,
        /// Bytes.
        len: u32,
    }
}

record! {
    /// Where the checkpoint was taken.
    Machine, 112, {
        /// utsname.nodename.
        host: Text,
        /// utsname.release.
        kernel: Text,
        /// Nanoseconds since 1970 (CLOCK_REALTIME) at the freeze.
        realtime: u64,
        /// CLOCK_MONOTONIC at the freeze, in nanoseconds.
        monotonic: u64,
        /// CLOCK_BOOTTIME at the freeze, in nanoseconds.
        boottime: u64,
        /// XCR0: the state components that the kernel had enabled.
        xcr0: u64,
        /// Version of the ckpt that wrote the image.
        version: Text,
        /// Checksum of the kernel's boot id: two machines, or two boots, differ; 0: unknown.
        boot: u64,
        /// Name of the CPU.
        processor: Text,
        /// Room to grow.
        reserved: [u64; 5],
    }
}

record! {
    /// An answer of CPUID.
    CpuLeaf, 24, {
        /// EAX before.
        leaf: u32,
        /// ECX before.
        subleaf: u32,
        /// EAX.
        eax: u32,
        /// EBX.
        ebx: u32,
        /// ECX.
        ecx: u32,
        /// EDX.
        edx: u32,
    }
}

record! {
    /// One process.
    ProcessRecord, 344, {
        /// Process id.
        pid: u32,
        /// umask(2).
        umask: u32,
        /// Base of the payload's region.
        region: u64,
        /// Length of the payload's region.
        region_len: u64,
        /// Program as started, for people.
        program: Text,
        /// Arguments joined by NUL bytes, for people.
        arguments: Text,
        /// Path of the executable (/proc/PID/exe).
        exe: Text,
        /// Working directory.
        cwd: Text,
        /// The fields of struct prctl_mm_map (prctl(2), PR_SET_MM_MAP) from start_code to env_end.
        mm: [u64; 11],
        /// /proc/PID/oom_score_adj, if [`process_flag::OOM_SCORE`] is set.
        oom_score: i32,
        /// /proc/PID/coredump_filter, if [`process_flag::COREDUMP_FILTER`] is set.
        coredump_filter: u32,
        /// First byte of the vdso, or 0.
        vdso: u64,
        /// Length of the vdso.
        vdso_len: u64,
        /// First byte of the vvar pages before it.
        vvar: u64,
        /// Length of the vvar pages.
        vvar_len: u64,
        /// Bits of [`process_flag`].
        flags: u32,
        /// Registrations for membarrier(2), as bits of MEMBARRIER_CMD_REGISTER_…
        membarrier: u32,
        /// Which checkpoint of the chain this is, from 1.
        generation: u64,
        /// Process group and session, for people.
        group: u32,
        /// See `group`.
        session: u32,
        /// The features of a CPU that the program may use, in the order of ckpt's table.
        cpu: [u64; 2],
        /// State components that the program asked leave for (ARCH_GET_XCOMP_PERM).
        permitted: u64,
        /// By which signal it was stopped, if that is known; else 0.
        stopped_by: u32,
        /// Its effective user id, and, below, its group id.
        user: u32,
        /// See `user`.
        group_id: u32,
        /// prctl(2), PR_GET_SECUREBITS.
        securebits: u32,
        /// Its root directory; empty: that of the process that started the job.
        root: Text,
        /// Real, effective, saved and file system user id.
        users: [u32; 4],
        /// Group ids in the same order.
        groups: [u32; 4],
        /// Supplementary groups, four bytes each; all ones: one that the user namespace of the checkpoint does not map.
        supplementary: Text,
        /// Capabilities: effective, permitted, inheritable, bounding, ambient.
        capabilities: [u64; 5],
        /// Protection keys that are allocated (pkey_alloc(2)): bit N is key N.
        keys: u32,
        /// One more than /proc/PID/loginuid; 0: none is set, or it is not known.
        login: u32,
    }
}

/// Bits of [`ProcessRecord::flags`].
pub mod process_flag {
    /// prctl(PR_GET_DUMPABLE) was 1.
    pub const DUMPABLE: u32 = 1;
    /// [`super::Process::oom_score`] is another than that of its parent, which it had from birth.
    pub const OOM_SCORE: u32 = 2;
    /// PR_SET_CHILD_SUBREAPER was set.
    pub const SUBREAPER: u32 = 4;
    /// PR_SET_THP_DISABLE was set.
    pub const THP_DISABLE: u32 = 8;
    /// It was stopped (SIGSTOP and kin), or about to be.
    pub const STOPPED: u32 = 16;
    /// PR_SET_MDWE: memory that is written is never executed.
    pub const MDWE: u32 = 32;
    /// PR_SET_MDWE with PR_MDWE_NO_INHERIT.
    pub const MDWE_NO_INHERIT: u32 = 64;
    /// [`super::Process::coredump_filter`] is known.
    pub const COREDUMP_FILTER: u32 = 128;
    /// PR_SET_THP_DISABLE with PR_THP_DISABLE_EXCEPT_ADVISED.
    pub const THP_BY_ADVICE: u32 = 256;
    /// PR_SET_MEMORY_MERGE: pages that are alike become one (KSM), also those to come.
    pub const MEMORY_MERGE: u32 = 512;
    /// PR_SET_IO_FLUSHER was set.
    pub const IO_FLUSHER: u32 = 1024;
    /// Mappings to come are locked (mlockall(2), MCL_FUTURE).
    pub const LOCK_FUTURE: u32 = 2048;
    /// They are when they are touched (MCL_ONFAULT).
    pub const LOCK_FUTURE_ON_FAULT: u32 = 4096;
    /// Its working directory was removed.
    pub const NOWHERE: u32 = 8192;
    /// It may remember ids of its own, outside of where a restart corrects them. Looked for in single processes.
    pub const REMEMBERS_IDS: u32 = 16384;
    /// It has other users, groups, capabilities or securebits than a program that its user starts.
    pub const PRIVILEGES: u32 = 32768;
}

record! {
    /// One thread.
    Thread, 544, {
        /// Thread id.
        tid: u32,
        /// Bits of [`thread_flag`].
        flags: u32,
        /// struct user_regs_struct, as it has to be when the thread goes on: system calls that
        /// were interrupted are rewound.
        regs: [u64; 27],
        /// Signal mask.
        mask: u64,
        /// sigaltstack: address, flags (low 32 bits), size.
        altstack: [u64; 3],
        /// Robust list head.
        robust_list: u64,
        /// Robust list head's length.
        robust_list_len: u64,
        /// PR_GET_TID_ADDRESS.
        tid_address: u64,
        /// rseq area, or 0.
        rseq: u64,
        /// Length it was registered with.
        rseq_len: u32,
        /// Signature it was registered with; of a main thread that has ended its exit status.
        rseq_signature: u32,
        /// Thread name (comm), NUL-padded.
        name: [u8; 16],
        /// Offset of the xstate in its section.
        xstate: u64,
        /// Bytes of the xstate, as PTRACE_GETREGSET NT_X86_XSTATE gives it.
        xstate_len: u64,
        /// Scheduling policy (sched(7)), with SCHED_RESET_ON_FORK.
        policy: u32,
        /// Static priority.
        priority: u32,
        /// Nice value.
        nice: i32,
        /// PR_SET_PDEATHSIG.
        death_signal: u32,
        /// Timer slack in nanoseconds; 0: unknown.
        timer_slack: u64,
        /// ioprio_get(2); 0: none was set.
        io_priority: u64,
        /// Run time, deadline and period of SCHED_DEADLINE in nanoseconds (sched_setattr(2)); of others the first is
        /// their slice, if the kernel tells (Linux 6.12).
        deadline: [u64; 3],
        /// sched_setaffinity(2): CPUs 0 to 1023; all zero: not restricted.
        affinity: [u64; 16],
        /// Where a Go runtime keeps the thread's id (runtime.m.procid), or 0.
        go_id: u64,
        /// Which of `regs` hold the thread's own id, on its way into a lock: bit N is word N.
        id_registers: u64,
        /// personality(2).
        personality: u32,
        /// sched_attr.sched_flags that belong to SCHED_DEADLINE.
        deadline_flags: u32,
        /// The last of its seccomp filters, as the number of a [`Filter`] from 1; 0: none; [`STRICT`].
        filter: u32,
        /// Room to grow.
        spare: u32,
    }
}

/// [`Thread::filter`] of a thread in seccomp's strict mode.
pub const STRICT: u32 = u32::MAX;

record! {
    /// A filter of system calls (seccomp(2)), which threads obey after those before it.
    Filter, 24, {
        /// The one before it, as the number of a [`Filter`] from 1; 0: none.
        before: u32,
        /// Bits of [`filter_flag`].
        flags: u32,
        /// Where its program is in [`crate::image::SectionKind::FilterCode`], in bytes.
        start: u64,
        /// Bytes of it.
        len: u64,
    }
}

/// Bits of [`Filter::flags`].
pub mod filter_flag {
    /// SECCOMP_FILTER_FLAG_LOG.
    pub const LOG: u32 = 2;
    /// Those before it let it be installed by prctl(2) alone.
    pub const BY_PRCTL: u32 = 1 << 16;
}

/// Bits of [`Thread::flags`].
pub mod thread_flag {
    /// The thread was in a system call that must fail with EINTR after a restart.
    pub const INTERRUPTED: u32 = 1;
    /// The word at [`super::Thread::tid_address`] held the thread's id (glibc's struct pthread).
    pub const TID_CACHED: u32 = 2;
    /// The word behind it held the process's id (glibc before 2.25).
    pub const PID_CACHED: u32 = 4;
    /// musl's struct pthread holds the thread's id.
    pub const MUSL: u32 = 8;
    /// no_new_privs was set (prctl(2), PR_SET_NO_NEW_PRIVS).
    pub const NO_NEW_PRIVS: u32 = 16;
    /// PR_SET_TSC: RDTSC raises SIGSEGV.
    pub const NO_TSC: u32 = 32;
    /// ARCH_SET_CPUID: CPUID raises SIGSEGV.
    pub const NO_CPUID: u32 = 64;
    /// PR_MCE_KILL_EARLY.
    pub const MCE_EARLY: u32 = 128;
    /// PR_MCE_KILL_LATE.
    pub const MCE_LATE: u32 = 256;
    /// PR_SPEC_STORE_BYPASS is disabled.
    pub const STORE_BYPASS: u32 = 512;
    /// PR_SPEC_STORE_BYPASS is disabled for ever (PR_SPEC_FORCE_DISABLE).
    pub const STORE_BYPASS_FORCED: u32 = 1024;
    /// PR_SPEC_INDIRECT_BRANCH is disabled.
    pub const INDIRECT_BRANCH: u32 = 2048;
    /// PR_SPEC_INDIRECT_BRANCH is disabled for ever.
    pub const INDIRECT_BRANCH_FORCED: u32 = 4096;
    /// The first-level data cache is emptied when another task takes its processor (PR_SPEC_L1D_FLUSH).
    pub const L1D_FLUSH: u32 = 8192;
    /// The main thread, which has ended before others.
    pub const ENDED: u32 = 16384;
}

record! {
    /// A word of a held mutex that names its owner by the thread's id.
    Owner, 16, {
        /// The thread's id.
        tid: u32,
        /// Room to grow.
        reserved: u32,
        /// The word.
        address: u64,
    }
}

record! {
    /// What the kernel calls struct sigaction.
    SignalAction, 32, {
        /// Handler, SIG_DFL (0) or SIG_IGN (1).
        handler: u64,
        /// SA_ flags.
        flags: u64,
        /// Restorer.
        restorer: u64,
        /// Mask.
        mask: u64,
    }
}

record! {
    /// A queued signal.
    PendingSignal, 136, {
        /// Thread id whose queue it is in, 0: the process's.
        tid: u32,
        /// Room to grow.
        reserved: u32,
        /// siginfo_t.
        siginfo: [u8; 128],
    }
}

record! {
    /// struct rlimit64.
    LimitRecord, 16, {
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    }
}

record! {
    /// Something that was not saved.
    LossRecord, 8, {
        /// A sentence.
        what: Text,
    }
}

record! {
    /// One of the process's timers.
    Timer, 96, {
        /// 0: ITIMER_REAL, 1: ITIMER_VIRTUAL, 2: ITIMER_PROF, 3: a POSIX timer.
        kind: u32,
        /// Id of a POSIX timer.
        id: i32,
        /// Nanoseconds left; 0: disarmed.
        left: u64,
        /// Period in nanoseconds; 0: once.
        period: u64,
        /// Clock of a POSIX timer.
        clock: i32,
        /// sigev_signo.
        signal: u32,
        /// sigev_notify.
        notify: u32,
        /// Thread id of SIGEV_THREAD_ID.
        tid: u32,
        /// sigev_value.
        value: u64,
        /// Overruns not yet fetched.
        overruns: u64,
        /// Room to grow.
        reserved: [u64; 5],
    }
}
