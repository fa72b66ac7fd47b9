//! A process behind an engine's walls that tries to get out: what the tests of `walls` run.
//!
//! `walled DIR PORT READABLE OUTSIDE UNIX` builds the walls around DIR with PORT as the gateway's, says hello on standard input's socket as an engine
//! does, and prints one JSON object: what stands, and for each attempt whether it succeeded.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

use engine::{
    handover,
    walls::{self, Ground},
};
use serde_json::json;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, port, readable, outside, unix] = args.as_slice() else {
        panic!("usage: walled DIR PORT READABLE OUTSIDE UNIX")
    };
    let port: u16 = port.parse().expect("a port");
    walls::close_descriptors(3);
    let walls::First { report, door } = walls::first(true);
    let own_port = door.as_ref().map_or(port, |door| door.local_addr().expect("listens").port());
    // The listener goes where the node's gateway would accept on it.
    handover::send(io::stdin(), &report, door.as_ref()).expect("the test listens");
    drop(door);
    let ground = Ground { own: vec![dir.into()], read: vec![readable.into()], port: Some(own_port) };
    let report = walls::second(report, &ground);
    let (dir, outside) = (Path::new(dir), Path::new(outside));
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connect = |at: SocketAddr| TcpStream::connect_timeout(&at, Duration::from_secs(2)).map(drop);
    let parent = rustix::process::getppid().expect("a parent").as_raw_nonzero().get();

    let mut tried = BTreeMap::new();
    let mut attempt = |name: &'static str, tried_it: io::Result<()>| {
        tried.insert(name, tried_it.map_err(|error| error.to_string()).err());
    };
    // What an engine does.
    attempt(
        "own file",
        fs::write(dir.join("own"), "x").and_then(|()| fs::rename(dir.join("own"), dir.join("renamed"))),
    );
    attempt("own directory", fs::create_dir(dir.join("sub")));
    attempt("readable file", fs::read(readable).map(drop));
    attempt("gateway", connect(local(own_port)));
    attempt("thread", std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().expect("ends")));
    attempt("pair of sockets", UnixStream::pair().map(drop));
    // What it never does.
    attempt("read /etc/passwd", fs::read("/etc/passwd").map(drop));
    attempt("list /", fs::read_dir("/").map(drop));
    attempt("read outside", fs::read(outside).map(drop));
    attempt("write outside", fs::write(outside, "x"));
    attempt("make a file beside", File::create(dir.with_extension("beside")).map(drop));
    attempt("truncate readable", File::options().write(true).truncate(true).open(readable).map(drop));
    attempt("follow a link out", std::os::unix::fs::symlink(outside, dir.join("link")));
    attempt("node's environment", fs::read(format!("/proc/{parent}/environ")).map(drop));
    attempt("own memory map", fs::read("/proc/self/maps").map(drop));
    attempt("canary", connect(local(port)));
    attempt("bind", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop));
    attempt("udp", UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop));
    attempt("unix socket", UnixStream::connect(unix).map(drop));
    attempt("abstract socket", UnixListener::bind(dir.join("sock")).map(drop));
    attempt("program", Command::new("/bin/true").status().map(drop));
    attempt(
        "kill",
        rustix::process::test_kill_process(rustix::process::getppid().expect("a parent")).map_err(Into::into),
    );
    // SAFETY: both calls take numbers only.
    attempt("trace", failed_below_zero(unsafe { libc::ptrace(libc::PTRACE_ATTACH, parent, 0, 0) }));
    // SAFETY: as above.
    attempt("namespace", failed_below_zero(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into()));
    // SAFETY: the call fails on its number of entries before it looks at the null pointer.
    attempt(
        "io_uring",
        failed_below_zero(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) }),
    );
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it asks for a number; the bit asks for another ABI's way of doing so.
    attempt("x32", failed_below_zero(unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) }));
    let core = rustix::process::Rlimit { current: None, maximum: None };
    attempt("core dumps", rustix::process::setrlimit(rustix::process::Resource::Core, core).map_err(Into::into));
    println!("{}", json!({ "report": report, "tried": tried }));
}

fn failed_below_zero(answer: i64) -> io::Result<()> {
    match answer {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
