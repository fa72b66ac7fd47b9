//! What calls take and give, as JSON schemas.

use serde_json::{Value, json};

/// The schema of that name.
pub(super) fn of(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An object with these fields and no others.
fn exactly(required: &[&str], fields: Value) -> Value {
    json!({"type": "object", "additionalProperties": false, "required": required, "properties": fields})
}

/// An object with at least these fields: more may come.
fn object(fields: Value) -> Value {
    let required: Vec<_> = fields.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    json!({"type": "object", "required": required, "properties": fields})
}

fn list(of: Value) -> Value {
    json!({"type": "array", "items": of})
}

fn or_null(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

/// All of them.
pub(super) fn schemas() -> Value {
    let mut all = requests();
    for (name, schema) in answers().as_object().into_iter().flatten() {
        all[name] = schema.clone();
    }
    all["Anything"] = json!({"type": "object"});
    // What a name, a position and a moment look like.
    all["Name"] = json!({"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?$"});
    all["Position"] = json!({
        "type": "string", "pattern": "^(0|[1-9][0-9]{0,17})\\.(0|[1-9][0-9]{0,17})\\.(0|[1-9][0-9]{0,17})$",
        "description": "Epoch, checkpoint and byte of the log, in this order.", "examples": ["1.0.120"],
    });
    all["Moment"] = json!({
        "type": "string", "description": "An RFC 3339 time, a snapshot's name or a position.", "examples": ["2026-01-31T12:00:00Z"],
    });
    all
}

fn requests() -> Value {
    let sql = || json!({"type": "string", "minLength": 1, "examples": ["SELECT 42 AS answer"]});
    let params = || json!({"type": ["array", "object", "null"]});
    let millis = || json!({"type": ["integer", "null"], "minimum": 0});
    let flag = || json!({"type": "boolean"});
    json!({
        "Query": exactly(&["sql"], json!({
            "sql": sql(),
            "params": params(),
            "timeout_ms": millis(),
            "durability": {"enum": ["object", "local", null]},
            "at": {"anyOf": [of("Moment"), {"type": "null"}]},
            "max_rows": {"type": ["integer", "null"], "minimum": 0},
            "session": {"type": ["string", "null"], "format": "uuid"},
        })),
        "Plan": exactly(&["sql"], json!({
            "sql": sql(),
            "analyze": flag(),
            "format": {"enum": ["graphviz", "svg", "json", "text"]},
            "params": params(),
            "timeout_ms": millis(),
            "at": {"anyOf": [of("Moment"), {"type": "null"}]},
            "session": {"type": ["string", "null"], "format": "uuid"},
        })),
        "Persist": exactly(&["sql", "postgres"], json!({
            "sql": sql(),
            "postgres": exactly(&["connection", "table", "mode"], json!({
                "connection": {"type": "string"},
                "table": {"type": "string", "minLength": 1},
                "mode": {"enum": ["create", "append", "replace", "upsert"]},
                "key": list(json!({"type": "string"})),
            })),
            "params": params(),
            "timeout_ms": millis(),
            "at": {"anyOf": [of("Moment"), {"type": "null"}]},
            "idempotency_key": {"type": ["string", "null"], "minLength": 1, "maxLength": 200},
        })),
        "Sql": exactly(&["sql"], json!({"sql": {"type": "string"}})),
        "NewSnapshot": exactly(&["name"], json!({"name": {"type": "string"}, "at": {"anyOf": [of("Moment"), {"type": "null"}]}})),
        "Restore": exactly(&["at"], json!({
            "at": of("Moment"),
            "dry_run": flag(),
            "expected_position": {"anyOf": [of("Position"), {"type": "null"}]},
        })),
        "NewBranch": exactly(&["name"], json!({"name": of("Name"), "at": {"anyOf": [of("Moment"), {"type": "null"}]}})),
        "NewArchive": exactly(&[], json!({
            "at": {"anyOf": [of("Moment"), {"type": "null"}]},
            "storage_class": {"type": ["string", "null"], "pattern": "^[A-Z_]+$"},
            "older_than_days": {"type": ["number", "null"], "minimum": 0},
        })),
        "Retention": exactly(&["days"], json!({"days": {"type": ["number", "null"], "minimum": 0}})),
        "Sweep": exactly(&[], json!({"dry_run": flag()})),
        "Verify": exactly(&[], json!({"repair": flag(), "all": flag(), "trial": flag()})),
        "NewTenant": exactly(&["name"], json!({"name": of("Name")})),
        "NewMart": exactly(&["name"], json!({"name": of("Name"), "profile": or_null("string")})),
        "NewToken": exactly(&["role"], json!({
            "tenant": {"anyOf": [of("Name"), {"type": "null"}]},
            "mart": {"anyOf": [of("Name"), {"type": "null"}]},
            "role": {"enum": ["reader", "writer", "admin"]},
            "name": {"type": "string"},
            "expires_in": or_null("string"),
            "expires_at": {"type": ["string", "null"], "format": "date-time"},
            "profiles": {"type": ["array", "null"], "items": {"type": "string"}},
        })),
    })
}

fn answers() -> Value {
    let text = || json!({"type": "string"});
    let count = || json!({"type": "integer", "minimum": 0});
    let time = || json!({"type": "string", "format": "date-time"});
    let codes = [
        "invalid",
        "unauthenticated",
        "forbidden",
        "not_found",
        "conflict",
        "too_large",
        "sql",
        "limited",
        "cancelled",
        "internal",
        "corrupt",
        "fenced",
        "unavailable",
        "timeout",
        "not_yet_durable",
    ];
    let mut error = object(json!({
        "code": {"enum": codes},
        "message": text(),
        "hint": text(),
        "retryable": {"type": "boolean"},
        "outcome": {"enum": ["none", "committed", "unknown"]},
        "request_id": text(),
    }));
    error["properties"]["position"] = of("Position");
    error["properties"]["statement_index"] = count();
    error["properties"]["committed"] = count();
    let column = object(json!({
        "name": text(), "type": text(), "nullable": {"type": "boolean"}, "default": or_null("string"), "comment": or_null("string"),
    }));
    let table = object(json!({
        "name": text(), "kind": {"enum": ["table", "view"]}, "comment": or_null("string"), "rows": or_null("integer"),
        "bytes": or_null("integer"), "columns": list(column),
    }));
    json!({
        "Error": error,
        "Result": object(json!({
            "columns": list(object(json!({"name": text(), "type": text()}))),
            "rows": list(json!({"type": "array"})),
            "row_count": count(),
            "truncated": {"type": "boolean"},
        })),
        "Job": object(json!({
            "id": {"type": "string", "format": "uuid"},
            "state": {"enum": ["queued", "running", "done", "failed", "cancelled"]},
            "progress": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        })),
        "Statements": object(json!({"statements": list(object(json!({
            "kind": {"enum": ["read", "write", "ddl", "other"]}, "start": count(), "end": count(),
        })))})),
        "Session": object(json!({
            "session": {"type": "string", "format": "uuid"}, "idle_ms": count(), "idle_in_transaction_ms": count(),
        })),
        "Loaded": object(json!({"rows": count(), "created": {"type": "boolean"}})),
        "Catalog": object(json!({"schemas": list(object(json!({
            "name": text(), "comment": or_null("string"), "tables": list(table),
        })))})),
        "Persisted": object(json!({
            "rows": count(), "checksum": text(), "position": or_null("string"), "replayed": {"type": "boolean"},
        })),
        "SlowQueries": object(json!({"queries": list(object(json!({
            "query": text(), "sender": text(), "kind": text(), "outcome": text(), "began": time(), "seconds": {"type": "number"},
            "sql": text(), "plan": or_null("string"),
        })))})),
        "Durable": object(json!({"position": of("Position"), "durable": {"type": "boolean"}, "durable_position": or_null("string")})),
        "Snapshot": object(json!({"name": text(), "position": of("Position"), "time": time(), "created": time()})),
        "Snapshots": object(json!({"snapshots": list(of("Snapshot"))})),
        "Branch": object(json!({"name": of("Name"), "parent": of("Name"), "from": of("Position"), "position": of("Position")})),
        "Archives": object(json!({"archives": list(json!({"type": "object"}))})),
        "Vacuumed": object(json!({"bytes_before": count(), "bytes_after": count(), "tables": count(), "rows": count()})),
        "Tenant": object(json!({"name": of("Name"), "created": time(), "marts": count()})),
        "Tenants": object(json!({"tenants": list(of("Tenant"))})),
        "Mart": object(json!({"name": of("Name"), "created": time(), "profile": or_null("string")})),
        "Marts": object(json!({"marts": list(of("Mart"))})),
        "Token": object(json!({"id": text(), "role": {"enum": ["reader", "writer", "admin"]}, "created": time()})),
        "Tokens": object(json!({"tokens": list(of("Token"))})),
    })
}
