//! Flight SQL as clients in other languages can't see it well: broken streams and connections, tickets of others, what runs how often.

pub mod client;
mod damage;

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use arrow_flight::sql::{
    CommandPreparedStatementQuery, CommandStatementIngest, CommandStatementUpdate, EndTransaction, ProstMessageExt,
    TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{CancelFlightInfoRequest, FlightData, FlightDescriptor, HandshakeRequest, Ticket};
use futures::StreamExt;
use prost::Message;
use reqwest::Method;
use serde_json::json;
use tonic::Code;

use crate::server::{TOKEN, TestServer};
use client::{Client, ticket_of};

async fn count(server: &TestServer, sql: &str) -> i64 {
    server.query(sql).await.rows()[0][0].as_i64().expect("a number")
}

/// A token of the tenant `default`.
async fn token(server: &TestServer, role: &str) -> String {
    // It is made with its mart, when that is asked for.
    server.query("SELECT 1").await.rows();
    let body = json!({"tenant": "default", "role": role, "name": "test"});
    let answer = server.send(server.request(Method::POST, "/v1/tokens").json(&body)).await;
    answer.body["token"].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn a_write_takes_effect_without_a_fetch_and_never_twice() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    client.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    let info = client.execute("INSERT INTO t FROM range(3)").await.expect("it runs");
    assert_eq!(info.total_records, 3);
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 3);
    for _ in 0..3 {
        assert_eq!(client.count(&info).await.expect("the answer is kept"), 1);
    }
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 3);
    assert_eq!(client.update("DELETE FROM t WHERE i > 0").await.expect("it runs"), 2);
    let described = client.prepare("INSERT INTO t VALUES (?)", None).await.expect("it is described");
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 1);
    let handle = described.prepared_statement_handle;
    let query = CommandPreparedStatementQuery { prepared_statement_handle: handle };
    let error = client.info(query).await.expect_err("its parameter is missing");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_returning_answer_of_any_size_is_of_one_run() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    client.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    let info = client.execute("INSERT INTO t FROM range(500000) RETURNING i, i + 1, i + 2").await.expect("it runs");
    assert_eq!(client.count(&info).await.expect("it is given once"), 500_000);
    let again = client.count(&info).await.expect_err("a large one is given once");
    assert_eq!(again.code(), Code::NotFound);
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 500_000);
}

#[tokio::test]
async fn a_ticket_opens_only_for_whom_it_was_written() {
    let server = TestServer::start().await;
    let owner = Client::connect_as(server.address(), &token(&server, "writer").await).await;
    let other = Client::connect_as(server.address(), &token(&server, "writer").await).await;
    let read = owner.execute("SELECT 42").await.expect("it is described");
    let held = owner.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    let handle = owner.prepare("SELECT 1", None).await.expect("it is described").prepared_statement_handle;
    for info in [&read, &held] {
        let error = other.get(ticket_of(info)).await.expect_err("it is another's");
        assert_eq!(error.code(), Code::NotFound);
        let mut bytes = ticket_of(info).ticket.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let error = owner.get(Ticket { ticket: bytes.into() }).await.expect_err("it is garbled");
        assert_eq!(error.code(), Code::InvalidArgument);
        for _ in 0..20 {
            owner.get(ticket_of(info)).await.expect("it is the owner's, as often as wanted");
        }
    }
    let query = CommandPreparedStatementQuery { prepared_statement_handle: handle };
    assert_eq!(other.info(query.clone()).await.expect_err("it is another's").code(), Code::NotFound);
    owner.info(query).await.expect("it is the owner's");
    let error = owner.get(Ticket { ticket: "SELECT 1".into() }).await.expect_err("it is no ticket");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn tickets_outlive_the_node_and_the_master_key_voids_them() {
    let mut server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    client.execute("CREATE TABLE t AS FROM range(7)").await.expect("it runs");
    let info = client.execute("FROM t").await.expect("it is described");
    server.stop().await;
    server.start_again().await;
    let client = Client::connect(server.address()).await;
    assert_eq!(client.count(&info).await.expect("the key is in the control store"), 7);
    server.stop().await;
    server.start_again_with(&[("TARN_MASTER_KEY", "another secret")]).await;
    let client = Client::connect(server.address()).await;
    assert_eq!(client.count(&info).await.expect_err("the key is another").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_token_that_was_revoked_or_may_only_read_gets_no_further() {
    let server = TestServer::start().await;
    let reader = Client::connect_as(server.address(), &token(&server, "reader").await).await;
    let error = reader.execute("CREATE TABLE t(i BIGINT)").await.expect_err("a reader does not write");
    assert_eq!(error.code(), Code::PermissionDenied);
    let stranger = Client::connect_as(server.address(), "tarn_0_wrong").await;
    assert_eq!(stranger.execute("SELECT 1").await.expect_err("nobody knows it").code(), Code::Unauthenticated);
    let elsewhere =
        Client::connect_as(server.address(), &token(&server, "reader").await).await.with("tarn-mart", "other/mart");
    assert_eq!(elsewhere.execute("SELECT 1").await.expect_err("another tenant's").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_handshake_gives_a_bearer_with_the_mart_and_a_place() {
    let server = TestServer::start().await;
    server.send(server.request(Method::POST, "/v1/tenants/default/marts").json(&json!({"name": "sales"}))).await;
    let basic = |user: &str, password: &str| {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
    };
    let client = Client::connect(server.address()).await.with("authorization", &basic("default/sales", TOKEN));
    let shaken = client.stub().handshake(client.request(futures::stream::iter([HandshakeRequest::default()]))).await;
    let shaken = shaken.expect("the password is a token");
    let bearer = shaken.metadata().get("authorization").expect("a bearer").to_str().expect("it is text").to_owned();
    let first = Client::connect(server.address()).await.with("authorization", &bearer);
    first.execute("CREATE TEMP TABLE mine AS FROM range(5)").await.expect("it runs");
    // Another connection of the same handshake is the same place.
    let second = Client::connect(server.address()).await.with("authorization", &bearer);
    let info = second.execute("FROM mine").await.expect("the table is there");
    assert_eq!(second.count(&info).await.expect("it is read"), 5);
    second.execute("CREATE TABLE here(i BIGINT)").await.expect("it runs");
    let there = server.query_in("default/sales", json!({"sql": "SELECT count(*) FROM here"})).await;
    assert_eq!(there.rows()[0][0], 0);
    let wrong = Client::connect(server.address()).await.with("authorization", &basic("default/sales", "wrong"));
    assert_eq!(wrong.execute("SELECT 1").await.expect_err("nobody knows it").code(), Code::Unauthenticated);
}

#[tokio::test]
async fn what_a_connection_has_open_ends_with_it() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    client.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    let transaction = client.begin().await.expect("it begins");
    let insert = CommandStatementUpdate {
        query: "INSERT INTO t VALUES (1)".to_owned(),
        transaction_id: Some(transaction.clone()),
    };
    assert_eq!(client.update_by(insert).await.expect("it runs"), 1);
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 0);
    client.cut();
    let other = Client::connect(server.address()).await;
    // Whenever the node has noticed, the transaction is gone.
    loop {
        match other.end(transaction.clone(), EndTransaction::Unspecified).await.expect_err("no way to end").code() {
            Code::InvalidArgument => {}
            code => panic!("{code:?}"),
        }
        let insert = CommandStatementUpdate {
            query: "INSERT INTO t VALUES (2)".to_owned(),
            transaction_id: Some(transaction.clone()),
        };
        match other.update_by(insert).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => {
                assert_eq!(error.code(), Code::NotFound, "{error}");
                break;
            }
        }
    }
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 0);
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing_and_its_temporary_tables_outlive_it() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    client.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    for (action, expected) in [(EndTransaction::Rollback, 0), (EndTransaction::Commit, 2)] {
        let transaction = client.begin().await.expect("it begins");
        let run = |query: &str| {
            let command = CommandStatementUpdate { query: query.to_owned(), transaction_id: Some(transaction.clone()) };
            client.update_by(command)
        };
        run("CREATE OR REPLACE TEMP TABLE two AS FROM range(2)").await.expect("it runs");
        run("INSERT INTO t FROM two").await.expect("it runs");
        client.end(transaction.clone(), action).await.expect("it ends");
        assert_eq!(count(&server, "SELECT count(*) FROM t").await, expected);
        let error = client.end(transaction, action).await.expect_err("it has ended");
        assert_eq!(error.code(), Code::NotFound);
    }
    let info = client.execute("FROM two").await.expect("the table is the connection's");
    assert_eq!(client.count(&info).await.expect("it is read"), 2);
    client.act("CloseSession", Vec::new()).await.expect("it closes");
    assert_eq!(client.execute("FROM two").await.expect_err("it is gone").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_transaction_whose_end_fails_leaves_nothing_open() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    client.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    for (action, first) in [(EndTransaction::Commit, 0), (EndTransaction::Rollback, 10)] {
        let transaction = client.begin().await.expect("it begins");
        let query = format!("INSERT INTO t VALUES ({first})");
        let insert = CommandStatementUpdate { query, transaction_id: Some(transaction.clone()) };
        client.update_by(insert).await.expect("it runs");
        let late = client.also_with("tarn-timeout-ms", "0");
        late.end(transaction, action).await.expect_err("its deadline has passed");
        client.update(&format!("INSERT INTO t VALUES ({})", first + 1)).await.expect("it commits by itself");
        assert_eq!(count(&server, &format!("SELECT count(*) FROM t WHERE i = {}", first + 1)).await, 1);
        assert_eq!(count(&server, &format!("SELECT count(*) FROM t WHERE i = {first}")).await, 0);
    }
}

#[tokio::test]
async fn nothing_runs_outside_of_a_transaction_that_sql_began_and_its_engine_lost() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    client.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    for end in ["ROLLBACK", "COMMIT"] {
        client.update("BEGIN").await.expect("it begins");
        client.update("INSERT INTO t VALUES (1)").await.expect("it runs");
        server.kill_engine(crate::server::DEV);
        while client.update("INSERT INTO t VALUES (2)").await.expect_err("it is outside").code() != Code::Aborted {}
        for sql in ["INSERT INTO t VALUES (3)", "BEGIN", "FROM t"] {
            assert_eq!(client.execute(sql).await.expect_err(sql).code(), Code::Aborted);
        }
        let ended = client.update(end).await;
        assert_eq!(ended.is_ok(), end == "ROLLBACK", "{ended:?}");
        assert_eq!(count(&server, "SELECT count(*) FROM t").await, 0);
        client.update("BEGIN").await.expect("there is none now");
        client.update("ROLLBACK").await.expect("it is over");
    }
    assert_eq!(client.update("INSERT INTO t VALUES (4)").await.expect("it commits by itself"), 1);
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn a_prepared_write_never_outlives_a_transaction_that_was_taken_away() {
    let server = TestServer::start().await;
    let other = Client::connect(server.address()).await;
    other.execute("CREATE TABLE t(i BIGINT)").await.expect("it runs");
    let run =
        |handle: &bytes::Bytes| other.info(CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() });
    let sql = "INSERT INTO t VALUES (1)";
    // Its client ends it: drivers go on with the statement.
    let ended = other.begin().await.expect("it begins");
    let handle = other.prepare(sql, Some(ended.clone())).await.expect("it is described").prepared_statement_handle;
    run(&handle).await.expect("it runs in it");
    other.end(ended, EndTransaction::Rollback).await.expect("it ends");
    run(&handle).await.expect("it runs by itself");
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 1);
    // Its connection breaks.
    let client = Client::connect(server.address()).await;
    let taken = client.begin().await.expect("it begins");
    let handle = other.prepare(sql, Some(taken.clone())).await.expect("it is described").prepared_statement_handle;
    client.cut();
    let error = loop {
        match run(&handle).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 1);
}

fn load(table: &str) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Create.into(),
            if_exists: TableExistsOption::Append.into(),
        }),
        table: table.to_owned(),
        ..Default::default()
    }
}

/// So many batches of a thousand rows, with the command in the first message.
fn upload(table: &str, batches: usize) -> Vec<FlightData> {
    let column = Arc::new(Int64Array::from_iter_values(0..1000));
    let batch = RecordBatch::try_from_iter([("i", column as _)]).expect("a table");
    let mut data = batches_to_flight_data(&batch.schema(), vec![batch; batches]).expect("it is encoded");
    data[0].flight_descriptor = Some(FlightDescriptor::new_cmd(load(table).as_any().encode_to_vec()));
    data
}

#[tokio::test]
async fn a_load_that_is_cut_leaves_nothing() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    assert_eq!(client.put(futures::stream::iter(upload("whole", 10))).await.expect("it is loaded"), 10_000);
    // The stream stops in the middle, and its connection with it.
    let (sent, waiting) = tokio::sync::oneshot::channel();
    let begun = futures::stream::iter(upload("cut", 100)).chain(futures::stream::once(async move {
        let _ = sent.send(());
        std::future::pending().await
    }));
    let uploading = Client::connect(server.address()).await;
    {
        let put = uploading.put(begun);
        tokio::select! {
            result = put => panic!("it has not ended: {result:?}"),
            _ = waiting => {}
        }
    }
    uploading.cut();
    // The stream is reset, and its connection goes on.
    let (sent, waiting) = tokio::sync::oneshot::channel();
    let begun = futures::stream::iter(upload("reset", 100)).chain(futures::stream::once(async move {
        let _ = sent.send(());
        std::future::pending().await
    }));
    tokio::select! {
        result = client.put(begun) => panic!("it has not ended: {result:?}"),
        _ = waiting => {}
    }
    // A message whose body is shorter than it says.
    let mut lying = upload("lying", 2);
    let last = lying.last_mut().expect("there are batches");
    last.data_body = last.data_body.slice(..8);
    let error = client.put(futures::stream::iter(lying)).await.expect_err("it is refused");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let names = "SELECT count(*) FROM duckdb_tables() WHERE table_name IN ('cut', 'reset', 'lying')";
    assert_eq!(count(&server, names).await, 0);
    assert_eq!(count(&server, "SELECT count(*) FROM whole").await, 10_000);
}

#[tokio::test]
async fn a_load_joins_the_transaction_that_its_connection_has_open() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    let transaction = client.begin().await.expect("it begins");
    assert_eq!(client.put(futures::stream::iter(upload("t", 2))).await.expect("it is loaded"), 2000);
    assert_eq!(count(&server, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 't'").await, 0);
    client.end(transaction, EndTransaction::Rollback).await.expect("it is rolled back");
    assert_eq!(client.put(futures::stream::iter(upload("t", 1))).await.expect("it is loaded"), 1000);
    assert_eq!(count(&server, "SELECT count(*) FROM t").await, 1000);
}

#[tokio::test]
async fn a_query_is_cancelled_before_while_and_after_it_is_fetched() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    let cancel = |info: &arrow_flight::FlightInfo| {
        let request = CancelFlightInfoRequest { info: Some(info.clone()) };
        client.act("CancelFlightInfo", request.encode_to_vec())
    };
    let early = client.execute("SELECT 1").await.expect("it is described");
    cancel(&early).await.expect("it is cancelled");
    assert_eq!(client.get(ticket_of(&early)).await.expect_err("it never runs").code(), Code::Cancelled);
    let endless = client.execute("FROM range(100_000_000_000)").await.expect("it is described");
    let mut stream = client.stub().do_get(client.request(ticket_of(&endless))).await.expect("it streams").into_inner();
    stream.next().await.expect("there is a schema").expect("it is whole");
    cancel(&endless).await.expect("it is cancelled");
    let end = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it ended as if whole"),
        }
    };
    assert_eq!(end.code(), Code::Cancelled);
    cancel(&endless).await.expect("once more does no harm");
}

#[tokio::test]
async fn an_engine_that_dies_never_ends_a_stream_well() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    let endless = client.execute("FROM range(100_000_000_000)").await.expect("it is described");
    let mut stream = client.stub().do_get(client.request(ticket_of(&endless))).await.expect("it streams").into_inner();
    stream.next().await.expect("there is a schema").expect("it is whole");
    server.kill_engine(crate::server::DEV);
    let end = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it ended as if whole"),
        }
    };
    assert_ne!(end.code(), Code::Ok);
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let server = TestServer::start().await;
    let client = Client::connect(server.address()).await;
    for action in ["BeginSavepoint", "EndSavepoint", "RenewFlightEndpoint", "CreatePreparedSubstraitPlan"] {
        assert_eq!(client.act(action, Vec::new()).await.expect_err(action).code(), Code::Unimplemented);
    }
    assert_eq!(client.act("Nonsense", Vec::new()).await.expect_err("unknown").code(), Code::InvalidArgument);
    let poll = client.stub().poll_flight_info(client.request(FlightDescriptor::default())).await;
    assert_eq!(poll.expect_err("it is not there").code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_about_a_mart_of_another_node_are_answered_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound");
    let (place, short) = (port.to_string(), ("TARN_TAKEOVER_AFTER", "5s"));
    let first = TestServer::start_with(&[short, ("TARN_ADVERTISE", &place), ("TARN_LISTEN", &place)]).await;
    first.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let store = format!("file:{}", first.objects_dir().display());
    let second = TestServer::start_with(&[short, ("TARN_STORE", &store)]).await;

    let client = Client::connect(second.address()).await;
    let insert = client.execute("INSERT INTO t VALUES (2)").await.expect("it is sent on");
    assert_eq!(client.count(&insert).await.expect("the answer is there"), 1);
    let many = client.execute("SELECT i, 'some bytes ' || i FROM range(300000) r(i)").await.expect("it is described");
    assert_eq!(client.count(&many).await.expect("it streams through"), 300_000);
    assert_eq!(client.put(futures::stream::iter(upload("loaded", 10))).await.expect("so does an upload"), 10_000);
    assert_eq!(client.execute("SELECT nothing").await.expect_err("an error is told").code(), Code::InvalidArgument);
    let late = client.execute("SELECT CASE WHEN i = 3000000 THEN error('late') END FROM range(4000000) r(i)").await;
    let late = client.count(&late.expect("it is described")).await.expect_err("it fails in the middle");
    assert!(late.message().contains("late"), "{late}");

    // Two clients of one node are two places at the other, and what one has open ends with its connection.
    client.execute("CREATE TEMP TABLE mine AS FROM range(5)").await.expect("it runs");
    client.execute("FROM mine").await.expect("the table is the connection's");
    let other = Client::connect(second.address()).await;
    assert_eq!(other.execute("FROM mine").await.expect_err("it is another's").code(), Code::InvalidArgument);
    let transaction = client.begin().await.expect("it begins");
    let insert =
        |query: &str| CommandStatementUpdate { query: query.to_owned(), transaction_id: Some(transaction.clone()) };
    client.update_by(insert("INSERT INTO t VALUES (3)")).await.expect("it runs");
    client.cut();
    while let Err(error) = other.update("UPDATE t SET a = a + 1").await {
        assert_eq!(error.code(), Code::Aborted, "{error}");
    }
    while other.update_by(insert("SELECT 1")).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(count(&first, "SELECT count(*) FROM t").await, 2);
}
