//! What a process behind an engine's walls can still do. A wall that the kernel of this machine lacks must be reported as lacking, and
//! nothing is then asked of it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Command, Stdio},
};

use engine::{
    handover,
    walls::{Report, Wall},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Tried {
    report: Report,
    /// Why an attempt failed; none where it succeeded.
    tried: BTreeMap<String, Option<String>>,
}

/// Runs `examples/walled.rs`, which the build put beside this test.
fn try_everything() -> (Tried, Report) {
    let test = std::env::current_exe().expect("this test");
    let built: PathBuf = test.ancestors().nth(2).expect("target/debug").join("examples/walled");
    let place = tempfile::tempdir().expect("a directory");
    let [dir, readable, outside, unix] = ["own", "readable", "outside", "unix"].map(|name| place.path().join(name));
    std::fs::create_dir(&dir).expect("makes it");
    std::fs::write(&readable, "lib").expect("writes");
    std::fs::write(&outside, "another mart's rows").expect("writes");
    let canary = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let _unix = UnixListener::bind(&unix).expect("listens");
    let port = canary.local_addr().expect("an address").port();

    let (talk, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .expect("a pair");
    let child = Command::new(built)
        .arg(&dir)
        .arg(port.to_string())
        .args([&readable, &outside, &unix])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let (first, _door) = handover::receive::<Report>(&talk).expect("speaks").expect("says what stands");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{output:?}");
    let tried: Tried = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(std::fs::read(&outside).expect("is there"), b"another mart's rows");
    assert_eq!(std::fs::read(&readable).expect("is there"), b"lib");
    canary.set_nonblocking(true).expect("can be set");
    if tried.report.stands(Wall::Namespace) {
        assert!(canary.accept().is_err(), "somebody reached a port of the host");
    }
    (tried, first)
}

#[test]
fn an_engine_gets_at_what_it_needs_and_at_nothing_else() {
    let (Tried { report, tried }, first) = try_everything();
    for name in ["own file", "own directory", "readable file", "gateway", "thread", "pair of sockets"] {
        assert_eq!(tried[name], None, "{name} is needed");
    }
    let walls: [(Wall, &[&str]); 5] = [
        (
            Wall::Files,
            &[
                "read /etc/passwd",
                "list /",
                "read outside",
                "write outside",
                "make a file beside",
                "truncate readable",
                "follow a link out",
                "node's environment",
                "own memory map",
            ],
        ),
        (Wall::Namespace, &["canary"]),
        (Wall::Ports, &["bind"]),
        (
            Wall::Seccomp,
            &["bind", "udp", "unix socket", "abstract socket", "program", "kill", "trace", "namespace", "io_uring"],
        ),
        (Wall::CoreDumps, &["core dumps"]),
    ];
    for (wall, attempts) in walls {
        if report.stands(wall) {
            for name in attempts {
                assert!(tried[*name].is_some(), "{name} succeeded although `{wall}` stands");
            }
        } else {
            assert!(
                report.lacking().any(|(lacking, why)| lacking == wall && !why.is_empty()),
                "{wall} is not accounted for"
            );
        }
    }
    if cfg!(target_arch = "x86_64") && report.stands(Wall::Seccomp) {
        // Not merely unknown to this machine's kernel.
        assert!(tried["x32"].as_ref().is_some_and(|why| why.contains("not permitted")), "{:?}", tried["x32"]);
    }
    assert!(report.stands(Wall::Privileges), "every kernel that is supported can drop privileges: {report:?}");
    // What stood first still does.
    for wall in first.walls.keys() {
        assert_eq!(first.stands(*wall), report.stands(*wall), "{wall}");
    }
    println!("walls of this machine: {report:?}");
}
