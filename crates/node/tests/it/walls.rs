//! The walls around the engine of an open mart, as the kernel tells of its process. What they stop is tried by the engine's own test
//! `escapes`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::server::{DEV, TestServer};

fn status(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} is not in\n{status}")).trim().to_owned()
}

/// None where the kernel does not let us look, which is a wall as well: the engine is nobody else's to look into.
fn allowed<T>(looked: std::io::Result<T>) -> Option<T> {
    match looked {
        Ok(seen) => Some(seen),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_has_no_privilege_no_environment_and_nothing_open_but_its_mart() {
    let server = TestServer::start_with(&[("TARN_SECRET_OF_THE_NODE", "hush")]).await;
    server.query("CREATE TABLE t AS SELECT 42 AS a").await.rows();
    let log = server.log();
    let stands = |wall: &str| !log.contains(&format!("the wall `{wall}` around engines does not stand here"));
    let (engine, node) = (server.engine_pid(DEV), server.node_pid());

    assert_eq!(status(engine, "NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(engine, set).trim_start_matches('0'), "", "{set}");
    }
    assert_eq!(status(engine, "Seccomp") == "2", stands("seccomp"));
    let limits = std::fs::read_to_string(format!("/proc/{engine}/limits")).expect("it runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the kernel says");
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");

    let namespace = |pid: u32, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    for kind in ["user", "net", "ipc", "uts"] {
        if let Some(own) = allowed(namespace(engine, kind)) {
            let nodes = namespace(node, kind).expect("the node is ours");
            assert_eq!(own != nodes, stands("namespace"), "{kind}");
        }
    }
    if let Some(environment) = allowed(std::fs::read(format!("/proc/{engine}/environ"))) {
        assert_eq!(String::from_utf8_lossy(&environment), "");
    }
    if let Some(open) = allowed(std::fs::read_dir(format!("/proc/{engine}/fd"))) {
        let targets: Vec<PathBuf> = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()).collect();
        assert!(!targets.is_empty());
        let mart = server.state_dir().join("marts").join(DEV);
        // It watches its own memory there.
        let own = PathBuf::from(format!("/proc/{engine}/status"));
        let devices = ["/dev/null", "/dev/zero", "/dev/urandom"].map(Path::new);
        let foreign = |target: &&PathBuf| {
            let known = **target == own || devices.contains(&target.as_path()) || target.starts_with(&mart);
            target.is_absolute() && !known
        };
        assert_eq!(targets.iter().find(foreign), None, "{targets:?}");
    }
}
