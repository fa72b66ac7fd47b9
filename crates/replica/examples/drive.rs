//! Drives a replica by hand, one command a line on stdin, one answer a line on stdout. For trying it on files of a real DuckDB.
//!
//! `create` · `open ROOT` · `adopt ITER WAL` · `ship ITER WAL` · `begin` · `base ITER` · `rebase` · `drop`; arguments: STORE-DIR PREFIX UUID.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;

use replica::{CommitPoint, FileStore, MartReplica, Opened, Stores};

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let store = Arc::new(FileStore::open(args[1].as_ref()).expect("the store opens"));
    let stores = Stores { data: store.clone(), log: store };
    let mart = MartReplica::new(stores, args[2].as_str().into(), args[3].parse().expect("a UUID"));
    let mut opened: Option<Opened> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        println!("{}", run(&mart, &mut opened, &words).await.unwrap_or_else(|error| format!("error {error:?}")));
    }
}

async fn run(mart: &MartReplica, opened: &mut Option<Opened>, words: &[&str]) -> replica::Result<String> {
    let point = || CommitPoint {
        iteration: words[1].parse().expect("a number"),
        wal_end: words[2].parse().expect("a number"),
        time_us: 1,
    };
    match (words[0], opened.as_mut()) {
        ("create", _) => mart.create("hand").await.map(|()| "ok".into()),
        ("drop", _) => mart.drop_mart().await.map(|()| "ok".into()),
        ("open", _) => {
            let done = mart.open_writer(&PathBuf::from(words[1]), "hand").await?;
            let answer = format!("ok {} {:?} {}", done.dir.display(), done.how, done.shipper.durable());
            *opened = Some(done);
            Ok(answer)
        }
        ("adopt", Some(open)) => open.shipper.adopt(point()).await.map(|adopt| format!("ok {adopt:?}")),
        ("ship", Some(open)) => open.shipper.ship(&[point()]).await.map(|position| format!("ok {position}")),
        ("begin", Some(open)) => open.shipper.begin_checkpoint().await.map(|()| "ok".into()),
        ("base", Some(open)) => {
            open.shipper.ship_base(words[1].parse().expect("a number")).await.map(|position| format!("ok {position}"))
        }
        ("rebase", Some(open)) => open.shipper.rebase("hand").await.map(|()| format!("ok {}", open.shipper.durable())),
        _ => Ok("error unknown".into()),
    }
}
