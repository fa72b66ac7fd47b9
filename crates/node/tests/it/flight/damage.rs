//! Damaged requests: tickets, handles, commands, actions and frames with bits flipped, cut, spliced, lengths that lie. Never a panic,
//! always a status, and the node serves on.
//!
//! `TARN_TEST_DAMAGES` sets how many (default 20000), `TARN_TEST_SEED` repeats a run. `fuzz/` reads the same bytes with libFuzzer.

use arrow_flight::sql::{
    ActionCreatePreparedStatementRequest, ActionEndTransactionRequest, CommandGetTables, CommandPreparedStatementQuery,
    CommandStatementQuery, CommandStatementUpdate, ProstMessageExt,
};
use arrow_flight::{Action, FlightData, FlightDescriptor};
use futures::{StreamExt, stream};
use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::client::{Client, ticket_of};
use super::upload;
use crate::server::TestServer;

/// Requests that are sent at once.
const AT_ONCE: usize = 32;
/// Sent to the node, of so many damages; the rest is only read.
const SENT: u64 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(bytes.len()).expect("it is short").to_be_bytes());
    frame.extend_from_slice(&bytes);
    frame
}

/// Real requests by call.
async fn samples(client: &Client) -> Vec<(&'static str, Vec<u8>)> {
    let query = CommandStatementQuery { query: "SELECT 1".into(), transaction_id: None };
    let read = client.info(query.clone()).await.expect("it is described");
    let held = client.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    let tables =
        client.info(CommandGetTables { include_schema: true, ..Default::default() }).await.expect("it is asked");
    let handle = client.prepare("SELECT ?", None).await.expect("it is described").prepared_statement_handle;
    let transaction = client.begin().await.expect("it begins");
    let prepared = CommandPreparedStatementQuery { prepared_statement_handle: handle };
    let update = CommandStatementUpdate { query: "SELECT 2".into(), transaction_id: Some(transaction.clone()) };
    let end = ActionEndTransactionRequest { transaction_id: transaction, action: 9 };
    let prepare = ActionCreatePreparedStatementRequest { query: "SELECT 1".into(), transaction_id: None };
    let descriptor = |command: Vec<u8>| FlightDescriptor::new_cmd(command);
    let action = |name: &str, body: Vec<u8>| framed(&Action { r#type: name.into(), body: body.into() });
    let mut all = vec![
        ("DoGet", framed(&ticket_of(&read))),
        ("DoGet", framed(&ticket_of(&held))),
        ("DoGet", framed(&ticket_of(&tables))),
        ("GetFlightInfo", framed(&descriptor(query.as_any().encode_to_vec()))),
        ("GetFlightInfo", framed(&descriptor(prepared.as_any().encode_to_vec()))),
        ("GetSchema", framed(&descriptor(prepared.as_any().encode_to_vec()))),
        ("DoAction", action("EndTransaction", end.as_any().encode_to_vec())),
        ("DoAction", action("CreatePreparedStatement", prepare.as_any().encode_to_vec())),
        ("DoAction", action("SetSessionOptions", b"\x0a\x10\x0a\x06schema\x12\x06\x0a\x04main".to_vec())),
    ];
    let first =
        FlightData { flight_descriptor: Some(descriptor(update.as_any().encode_to_vec())), ..Default::default() };
    all.push(("DoPut", framed(&first)));
    all.push(("DoPut", upload("u", 2).iter().flat_map(framed).collect()));
    all
}

/// One of the usual ways in which bytes go wrong.
fn damaged(random: &mut StdRng, sample: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len().max(1)).min(bytes.len().saturating_sub(1));
        match random.random_range(0..6) {
            _ if bytes.is_empty() => bytes.push(random.random()),
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].choose(random).expect("there are some"),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.random()),
            4 => bytes.splice(at.., other[at.min(other.len())..].iter().copied()).for_each(drop),
            _ => {
                let length: u32 = random.random();
                let end = (at + 4).min(bytes.len());
                bytes.splice(at..end, length.to_be_bytes()).for_each(drop);
            }
        }
    }
    // The frame's own length is right more often than not, so that what is inside gets looked at.
    if bytes.len() > 5 && random.random_bool(0.8) {
        bytes[0] = 0;
        let length = u32::try_from(bytes.len() - 5).expect("it is short").to_be_bytes();
        bytes[1..5].copy_from_slice(&length);
    }
    bytes
}

#[tokio::test]
async fn damaged_requests_get_a_status() {
    let seed = number("TARN_TEST_SEED").unwrap_or_else(rand::random);
    println!("TARN_TEST_SEED={seed}");
    let damages = number("TARN_TEST_DAMAGES").unwrap_or(20_000);
    let mut random = StdRng::seed_from_u64(seed);
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    let samples = samples(&client).await;
    let mut sent = Vec::new();
    for turn in 0..damages {
        let (call, sample) = samples.choose(&mut random).expect("there are some");
        let (_, other) = samples.choose(&mut random).expect("there are some");
        let bytes = damaged(&mut random, sample, other);
        node::flight::untrusted::read(&bytes);
        if let Some(message) = bytes.get(5..) {
            node::flight::untrusted::read(message);
        }
        if turn % SENT == 0 {
            sent.push((*call, bytes));
        }
    }
    let told: Vec<_> = stream::iter(sent.iter().map(|(call, bytes)| client.raw(call, bytes.clone())))
        .buffered(AT_ONCE)
        .collect()
        .await;
    for ((call, bytes), status) in sent.iter().zip(told) {
        // 2 is what a server says that does not know what happened to it.
        assert!(status.is_some_and(|status| status != 2), "{call} {status:?} to {bytes:?}");
    }
    assert!(node::flight::untrusted::read(&node::flight::untrusted::sample()), "what is whole is taken");
    client.execute("SELECT 1").await.expect("the node serves on");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
