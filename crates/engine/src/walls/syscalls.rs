//! seccomp: system calls that an engine never needs fail with EPERM.
//!
//! A list of what is denied, not of what is allowed: DuckDB, its extensions and the C library use what they like of memory, files and
//! threads, and Landlock guards those. What is denied is what leads out of the process or deep into the kernel.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter,
};

/// Other processes, other programs, sockets that listen, namespaces, mounts, the kernel's rarely used corners, clocks, keys.
const DENIED: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_shmget,
];

/// The same, where the processor has them.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[libc::SYS_mknod, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

const NAMESPACES: c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Kept of a socket's type without its flags.
const SOCKET_TYPE: u64 = 0xf;

/// Restricts this thread and what it starts.
pub(super) fn restrict() -> Result<(), String> {
    let denied = denied().map_err(|error| format!("seccomp: {error}"))?;
    apply(denied, libc::EPERM)?;
    #[cfg(target_arch = "x86_64")]
    apply_filter(&no_x32()).map_err(|error| format!("seccomp: {error}"))?;
    // Its flags lie in memory, out of a filter's sight; the C library goes on with `clone` when it is not there.
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

/// The same calls have other numbers in the x32 ABI, which some kernels have built in and nobody uses.
#[cfg(target_arch = "x86_64")]
fn no_x32() -> [seccompiler::sock_filter; 4] {
    /// In the number of every such call.
    const X32: u32 = 0x4000_0000;
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter { code: code as u16, jt, jf, k };
    [
        // The number is what a filter's data begins with.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: c_int) -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| format!("seccomp: {error}"))?;
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch)
        .and_then(seccompiler::BpfProgram::try_from)
        .map_err(|error| format!("seccomp: {error}"))?;
    apply_filter(&filter).map_err(|error| format!("seccomp: {error}"))
}

fn denied() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    let argument = |index, operator, value| SeccompCondition::new(index, Dword, operator, value);
    let when = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions);
    let ip = u64::from(libc::AF_INET.unsigned_abs());
    let stream = u64::from(libc::SOCK_STREAM.unsigned_abs());
    // TCP to the gateway is the only socket there is.
    let mut sockets = vec![when(vec![argument(0, SeccompCmpOp::Ne, ip)?])?];
    for other in (0..=SOCKET_TYPE).filter(|kind| *kind != stream) {
        sockets.push(when(vec![argument(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE), other)?])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    let mut clones = Vec::new();
    for bit in (0..32).map(|bit| 1u64 << bit).filter(|bit| u64::from(NAMESPACES.unsigned_abs()) & bit != 0) {
        clones.push(when(vec![argument(0, SeccompCmpOp::MaskedEq(bit), bit)?])?);
    }
    rules.insert(libc::SYS_clone, clones);
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![when(vec![argument(0, SeccompCmpOp::Ne, own)?])?]);
    // Limits of others.
    rules.insert(
        libc::SYS_prlimit64,
        vec![when(vec![argument(0, SeccompCmpOp::Ne, 0)?, argument(0, SeccompCmpOp::Ne, own)?])?],
    );
    Ok(rules)
}
