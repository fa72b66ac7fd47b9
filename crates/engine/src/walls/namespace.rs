//! A user and network namespace of its own, with a loopback device that leads nowhere but to our own listener.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsRawFd,
};

use rustix::thread::UnshareFlags;

/// Enters new namespaces. With a `door`, brings loopback up and listens there: the listener belongs to these namespaces wherever it is
/// accepted on.
pub(super) fn enter(door: bool) -> Result<Option<TcpListener>, String> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: none of the flags changes the table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|error| format!("unshare: {error}"))?;
    map(user, group).map_err(|error| format!("mapping the user: {error}"))?;
    if !door {
        return Ok(None);
    }
    bring_up_loopback().map_err(|error| format!("bringing loopback up: {error}"))?;
    let door =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| format!("listening on loopback: {error}"))?;
    Ok(Some(door))
}

/// Files keep their owner: who we are outside is who we are inside.
fn map(user: u32, group: u32) -> io::Result<()> {
    // Without it an unprivileged process may not map its group.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

fn bring_up_loopback() -> io::Result<()> {
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: the request names an interface and holds flags, as SIOCSIFFLAGS wants, and outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
