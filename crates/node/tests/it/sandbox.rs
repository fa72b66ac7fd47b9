//! What tenants' SQL gets away with, through the public API: a corpus of hostile statements, variations of its classes, and what a server
//! looks like afterwards. Another tenant's rows and a listener on loopback are the canaries.

mod corpus;
mod place;
mod variants;

use reqwest::StatusCode;
use serde_json::{Value, json};

use corpus::{Case, Expect, corpus};
use place::{Place, Role};

#[tokio::test(flavor = "multi_thread")]
async fn the_corpus_holds_on_the_embedded_store() {
    hold(Place::on_files().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_corpus_holds_on_s3() {
    hold(Place::on_seaweed().await).await;
}

async fn hold(place: Place) {
    let engine = place.engine();
    let before = place.content().await;
    let mut holes = Vec::new();
    let (bounded, quick): (Vec<Case>, Vec<Case>) =
        corpus().into_iter().partition(|case| case.expect == Expect::Bounded);
    for case in &quick {
        let answer = place.query(case.role, &place.fill(&case.sql)).await;
        let passed = answer.status == StatusCode::OK;
        if passed != (case.expect == Expect::Ok) || answer.status.is_server_error() {
            holes.push(format!("{}: {} {}\n    {}", case.id, answer.status, answer.body, case.sql));
        }
    }
    assert!(holes.is_empty(), "{} of {} cases:\n{}", holes.len(), quick.len(), holes.join("\n"));
    assert_eq!(place.engine(), engine, "a statement that is refused ended the engine");
    // The corpus's own allowed INSERT is the only change.
    assert_eq!(place.content().await.rows, before.rows + 1);
    for case in &bounded {
        place.bounded(case).await;
    }
    place.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn variations_of_what_is_refused_are_refused() {
    let place = Place::on_files().await;
    let engine = place.engine();
    let before = place.content().await;
    let mut tried = 0;
    let mut holes = Vec::new();
    for case in corpus().iter().filter(|case| case.expect == Expect::Blocked) {
        for sql in variants::of_statement(&place.fill(&case.sql)) {
            let answer = place.query(case.role, &sql).await;
            tried += 1;
            // EXPLAIN without ANALYZE tells how a statement would run, and does not run it.
            let planned = sql.starts_with("explain") && answer.body["rows"][0][0] == "physical_plan";
            if answer.status == StatusCode::OK && !planned || answer.status.is_server_error() {
                holes.push(format!("{}: {} {}\n    {sql}", case.id, answer.status, answer.body));
            }
        }
    }
    for variants::Named { sql, params, path } in variants::of_paths(&place) {
        let answer = place.send(Role::Writer, json!({"sql": sql, "params": params}), &path).await;
        tried += 1;
        // DuckDB answers a pattern without wildcards with itself, and asks nobody whether there is such a file.
        let echo = |row: &Value| row[0] == path.as_str() || row[0] == "s3://sm-acme-raw/d/f.csv";
        let echoed = sql.contains("glob(") && answer.body["rows"].as_array().is_some_and(|rows| rows.iter().all(echo));
        if answer.status == StatusCode::OK && !echoed || answer.status.is_server_error() {
            holes.push(format!("{} {}\n    {sql}", answer.status, answer.body));
        }
    }
    holes.truncate(60);
    assert!(holes.is_empty(), "of {tried}:\n{}", holes.join("\n"));
    assert!(tried > 3000, "only {tried} were tried");
    assert_eq!(place.engine(), engine, "the engine ended");
    assert_eq!(place.content().await, before, "something was written");
    place.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_writes_by_no_trick() {
    let place = Place::on_files().await;
    let before = place.content().await;
    let flight = place.flight(Role::Reader).await;
    let mut holes = Vec::new();
    for sql in variants::of_writes() {
        let answer = place.query(Role::Reader, &sql).await;
        if answer.status.is_success() || answer.status.is_server_error() {
            holes.push(format!("HTTP {} {}\n    {sql}", answer.status, answer.body));
        }
        if let Ok(info) = flight.execute(&sql).await
            && flight.count(&info).await.is_ok()
        {
            holes.push(format!("Flight\n    {sql}"));
        }
        if flight.update(&sql).await.is_ok() {
            holes.push(format!("Flight's update\n    {sql}"));
        }
    }
    assert!(holes.is_empty(), "{}", holes.join("\n"));
    assert_eq!(place.content().await, before, "something was written");
    place.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flight_refuses_what_http_refuses() {
    let place = Place::on_files().await;
    let before = place.content().await;
    let (reader, writer) = (place.flight(Role::Reader).await, place.flight(Role::Writer).await);
    let mut holes = Vec::new();
    for case in corpus().iter().filter(|case| case.expect == Expect::Blocked) {
        let flight = if case.role == Role::Reader { &reader } else { &writer };
        let sql = place.fill(&case.sql);
        let fetched = match flight.execute(&sql).await {
            Ok(info) => flight.count(&info).await.map(drop),
            Err(status) => Err(status),
        };
        for outcome in [fetched, flight.update(&sql).await.map(drop)] {
            match outcome {
                Ok(()) => holes.push(format!("{}: {sql}", case.id)),
                Err(status) => place.scan(&sql, &format!("{status:?}")),
            }
        }
    }
    assert!(holes.is_empty(), "{}", holes.join("\n"));
    assert_eq!(place.content().await, before, "something was written");
    place.finish().await;
}
