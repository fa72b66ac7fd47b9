//! `POST …/persist`: a query's result into a table of Postgres, all of it or nothing.

use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use engine::sql::{self, Kind};
use engine::wire::{FLIGHT, Role};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::query::{self, Made, query_id};
use super::{App, Caller, Shared, json, mart_id, parse_object, read_body};
use crate::auth::Principal;
use crate::error::{ApiError, Code};
use crate::flight;
use crate::names::MartId;
use crate::persist::{self, Described, Destination, Mode, Recorded, columns, target};
use crate::router::POSITION;
use crate::visit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PersistBody {
    sql: String,
    postgres: PostgresBody,
    #[serde(default)]
    params: Option<Box<RawValue>>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    idempotency_key: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PostgresBody {
    connection: String,
    table: String,
    mode: Word,
    /// The columns that tell rows apart, for `upsert`.
    #[serde(default)]
    key: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Create,
    Append,
    Replace,
    Upsert,
}

/// The longest key.
const MOST_KEY_BYTES: usize = 200;

pub(super) async fn run(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let id = query_id(&headers)?;
    let done = async {
        let mart = mart_id(&tenant, &mart)?;
        let body = read_body(body).await?;
        let body: PersistBody = parse_object(&body)?;
        // Whoever goes away takes the transaction along: it is rolled back with its connection.
        app.persist(&caller, mart, (id, &headers), body).await
    };
    done.await.map(json).map_err(|error: ApiError| error.request_id(id))
}

impl App {
    async fn persist(
        self: &Arc<Self>,
        caller: &Principal,
        mart: MartId,
        (id, headers): (Uuid, &HeaderMap),
        body: PersistBody,
    ) -> Result<Value, ApiError> {
        if caller.role_in(&mart)? == Role::Reader {
            return Err(ApiError::new(Code::Forbidden, "a reader may not persist"));
        }
        let statement = lone_read(&body.sql)?;
        let destination = destination(&body.postgres)?;
        if body.idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MOST_KEY_BYTES) {
            return Err(ApiError::new(Code::Invalid, "`idempotency_key` wants 1 to 200 bytes"));
        }
        let connection = self.config.postgres.get(&body.postgres.connection, &mart.tenant).ok_or_else(|| {
            let what = format!("there is no Postgres connection `{}` for this tenant", body.postgres.connection);
            ApiError::new(Code::NotFound, what).hint("an operator names them: TARN_POSTGRES_{NAME}")
        })?;
        // The same key is for the same work of the same mart.
        let key = body.idempotency_key.as_ref().map(|key| format!("{mart}/{key}"));
        let what = fingerprint(&body, statement);
        let (params, at) = (body.params.as_deref(), body.at.as_deref());
        let own = |sql| Made { sql, params, timeout_ms: body.timeout_ms, at, session: None };

        let describe = format!("DESCRIBE {statement}");
        let (_, rows) = query::rows(self, caller, mart.clone(), (Uuid::new_v4(), headers), &own(&describe)).await?;
        let described = rows.iter().map(|row| described(row)).collect::<Result<Vec<_>, _>>()?;
        let tls = self.config.postgres.tls(connection)?;
        let open = target::begin(&connection.config, &tls, destination.clone(), key.is_some()).await?;
        if let Some(key) = &key
            && let Some(before) = open.claim(key, &what).await?
        {
            if before.what != what {
                return Err(ApiError::new(Code::Conflict, "this `idempotency_key` was used for something else"));
            }
            return Ok(answer(&before, true, &body.postgres));
        }
        let prepared = persist::prepare(&open, &destination, &described).await?;
        let sql = columns::wrapped(statement, &prepared.columns);
        let request = serde_json::to_vec(&own(&sql)).map_err(|error| ApiError::internal("a request is JSON", error))?;
        let mut checked = query::check(self, caller, mart.clone(), (id, headers), request.into()).await?;
        visit::asks(statement, body.params.as_deref(), body.at.as_deref());
        // With an error's reason at the end of the stream, which only this form has.
        checked.ask.headers.insert(ACCEPT, HeaderValue::from_static(FLIGHT));
        let result = query::answer(self, checked).await?;
        if let Some(error) = result.extensions().get::<ApiError>() {
            return Err(error.clone());
        }
        let position = result.headers().get(&POSITION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut sink = pin!(open.copy(&prepared.into, &prepared.columns).await?);
        let sum = persist::send(result.into_body(), &prepared.columns, sink.as_mut(), flight::failure, flight::broken)
            .await?;
        let copied = sink.finish().await.map_err(target::told)?;
        if copied != sum.rows {
            return Err(ApiError::internal(
                "Postgres counts the rows that it was sent",
                format!("{copied} of {}", sum.rows),
            ));
        }
        open.place(&prepared.columns, copied, prepared.exists).await?;
        let recorded = Recorded { what, rows: sum.rows, checksum: sum.checksum(), position };
        if let Some(key) = &key {
            open.record(key, &recorded).await?;
        }
        open.commit(&connection.config, &tls, key.as_deref()).await?;
        Ok(answer(&recorded, false, &body.postgres))
    }
}

fn answer(recorded: &Recorded, replayed: bool, to: &PostgresBody) -> Value {
    json!({
        "rows": recorded.rows, "checksum": recorded.checksum, "position": recorded.position, "replayed": replayed,
        "connection": to.connection, "table": to.table, "mode": to.mode,
    })
}

fn lone_read(text: &str) -> Result<&str, ApiError> {
    let statements = sql::split(text).map_err(|error| ApiError::new(Code::Sql, error.to_string()))?;
    match statements.as_slice() {
        [one] if one.kind == Kind::Read && !["show", "describe", "desc", "summarize"].contains(&one.first.as_str()) => {
            Ok(&text[one.span.clone()])
        }
        _ => Err(ApiError::new(Code::Invalid, "what is persisted is the result of one query")
            .hint("run what writes before, with `…/query`")),
    }
}

fn destination(to: &PostgresBody) -> Result<Destination, ApiError> {
    let mode = match (to.mode, to.key.as_slice()) {
        (Word::Upsert, []) => {
            return Err(ApiError::new(Code::Invalid, "`upsert` wants `key`, the columns that tell rows apart"));
        }
        (Word::Upsert, key) => Mode::Upsert(key.to_vec()),
        (_, [_, ..]) => return Err(ApiError::new(Code::Invalid, "`key` is for `upsert`")),
        (Word::Create, _) => Mode::Create,
        (Word::Append, _) => Mode::Append,
        (Word::Replace, _) => Mode::Replace,
    };
    Destination::parse(&to.table, mode).ok_or_else(|| {
        ApiError::new(Code::Invalid, "`table` wants `table` or `schema.table`").hint("odd names stand in double quotes")
    })
}

/// Of what a request does, whatever it is called.
fn fingerprint(body: &PersistBody, statement: &str) -> String {
    let params = body.params.as_deref().map(RawValue::get);
    let whole = json!([
        statement,
        params,
        body.at,
        body.postgres.connection,
        body.postgres.table,
        body.postgres.mode,
        body.postgres.key
    ]);
    blake3::hash(whole.to_string().as_bytes()).to_hex().to_string()
}

fn described(row: &[Value]) -> Result<Described, ApiError> {
    let text = |at: usize| row.get(at).and_then(Value::as_str).map(str::to_owned);
    match (text(0), text(1)) {
        (Some(name), Some(duckdb_type)) => Ok(Described { name, duckdb_type }),
        _ => Err(ApiError::internal("DESCRIBE names columns and types", "something else")),
    }
}
