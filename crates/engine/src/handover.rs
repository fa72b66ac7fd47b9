//! How a node and an engine it starts find each other: the descriptors an engine begins with, and the two messages before it serves.
//!
//! The engine's standard input is one end of a socket pair that keeps messages apart. On it the engine says [`Hello`] once it can
//! wait for its mart, and the node answers with the [`EngineConfig`]. Descriptors travel with either.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use rustix::{
    io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use serde::{Deserialize, Serialize};

use crate::{config::EngineConfig, walls::Report};

/// The engine's listening unix socket.
pub const LISTENER: RawFd = 3;
/// The engine's end of a socket pair; at its end of file it ends at once.
pub const LIFE: RawFd = 4;
/// The first descriptor that an engine does not begin with.
pub const KEPT: u32 = 5;

/// Far more than any configuration takes.
const LONGEST: usize = 64 << 10;

/// An engine's first words.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The walls that stand so far.
    pub report: Report,
}

/// The node's ends of what an engine begins with.
pub struct Ends {
    /// Where the two messages go.
    pub talk: OwnedFd,
    /// The engine ends when this is closed.
    pub life: OwnedFd,
}

/// Gives `command` what an engine begins with: `listener` as its socket, and the other ends of what is returned.
pub fn equip(command: &mut Command, listener: OwnedFd) -> io::Result<Ends> {
    let pair = |kind| socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let (life, engines_life) = pair(SocketType::STREAM)?;
    let (talk, engines_talk) = pair(SocketType::SEQPACKET)?;
    // Out of the way of the numbers they are to have.
    let listener = fcntl_dupfd_cloexec(listener, LISTENER + 10)?;
    let engines_life = fcntl_dupfd_cloexec(engines_life, LISTENER + 10)?;
    command.stdin(Stdio::from(engines_talk));
    // SAFETY: between fork and exec only `dup2` is called, which is async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in [(&listener, LISTENER), (&engines_life, LIFE)] {
                if libc::dup2(from.as_raw_fd(), to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(Ends { talk, life })
}

/// The engine's part: says hello, with the door if there is one, and waits for its configuration; gives the mart's lock with it. None
/// if the node went away instead.
pub fn introduce(
    talk: impl AsFd,
    hello: &Hello,
    door: Option<TcpListener>,
) -> io::Result<Option<(EngineConfig, Option<OwnedFd>)>> {
    send(&talk, hello, door.as_ref().map(AsFd::as_fd))?;
    drop(door);
    receive(talk)
}

/// Sends one message with a descriptor or none.
pub fn send<T: Serialize>(talk: impl AsFd, message: &T, fd: Option<impl AsFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_ref().map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(talk, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message with the descriptor that came along; None at the end.
pub fn receive<T: serde::de::DeserializeOwned>(talk: impl AsFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(&talk, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            got => break got?,
        }
    };
    if got.bytes == 0 {
        return Ok(None);
    }
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last().or(fd);
        }
    }
    let message = serde_json::from_slice(&bytes[..got.bytes]).map_err(io::Error::other)?;
    Ok(Some((message, fd)))
}

/// Marks a descriptor of ours as not to be inherited by what this process might start.
pub fn keep_private(fd: impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}
