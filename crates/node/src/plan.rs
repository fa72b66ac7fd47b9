//! Execution plans: what DuckDB is asked for one, and a drawing of it that needs no other program.
//!
//! A drawing is made of DuckDB's JSON plan; the other formats are DuckDB's own words.

mod svg;

use engine::sql::{self, Kind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ApiError, Code};

/// How a plan is written down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// DOT, the language of Graphviz.
    Graphviz,
    /// A drawing.
    Svg,
    /// DuckDB's tree of operators.
    Json,
    /// Boxes for a terminal.
    #[default]
    Text,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Graphviz => "text/vnd.graphviz; charset=utf-8",
            Self::Svg => "image/svg+xml",
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
        }
    }

    /// DuckDB's name of what this one is made of.
    fn source(self) -> &'static str {
        match self {
            Self::Graphviz => "graphviz",
            Self::Svg | Self::Json => "json",
            Self::Text => "text",
        }
    }

    /// From what DuckDB answered.
    pub(crate) fn write(self, plan: String) -> Result<String, ApiError> {
        if self != Self::Svg {
            return Ok(plan);
        }
        let parsed: Value =
            serde_json::from_str(&plan).map_err(|error| ApiError::internal("a plan is not JSON", error))?;
        Ok(svg::draw(&operators(&parsed)))
    }
}

/// The statement that tells the plan of `text`, which must be one statement that has a plan.
pub(crate) fn explain(text: &str, analyze: bool, format: Format) -> Result<String, ApiError> {
    let invalid = |what: &'static str| ApiError::new(Code::Invalid, what);
    let statements = sql::split(text).map_err(|error| ApiError::new(Code::Sql, error.to_string()))?;
    let [statement] = statements.as_slice() else {
        return Err(invalid("a plan is of one statement").hint("send the statements of a script one by one"));
    };
    match statement.kind {
        Kind::Explain { .. } => Err(invalid("the statement says EXPLAIN already").hint("send it without")),
        Kind::Read | Kind::Write | Kind::Ddl => {
            let analyze = if analyze { "ANALYZE, " } else { "" };
            Ok(format!("EXPLAIN ({analyze}FORMAT {}) {}", format.source(), statement.text))
        }
        _ => Err(invalid("only queries, writes and DDL have a plan")),
    }
}

/// One operator with those that feed it.
#[derive(Debug, PartialEq)]
struct Operator {
    name: String,
    details: Vec<String>,
    inputs: Vec<Operator>,
}

/// The operators of a plan as EXPLAIN gives it, a list of roots, or as EXPLAIN ANALYZE does, an object around them.
fn operators(plan: &Value) -> Vec<Operator> {
    match plan {
        Value::Array(roots) => roots.iter().map(operator).collect(),
        other => children(other)
            .iter()
            .flat_map(|node| match name(node) {
                "EXPLAIN_ANALYZE" => children(node).iter().map(operator).collect(),
                _ => vec![operator(node)],
            })
            .collect(),
    }
}

fn children(node: &Value) -> &[Value] {
    node["children"].as_array().map_or(&[], Vec::as_slice)
}

fn name(node: &Value) -> &str {
    [&node["name"], &node["operator_name"], &node["operator_type"]]
        .into_iter()
        .find_map(Value::as_str)
        .unwrap_or("?")
        .trim()
}

fn operator(node: &Value) -> Operator {
    let mut details = Vec::new();
    for (key, value) in node["extra_info"].as_object().into_iter().flatten() {
        match value {
            Value::Array(items) => {
                details.push(format!("{key}:"));
                details.extend(items.iter().map(|item| format!("  {}", plain(item))));
            }
            value => details.extend(plain(value).lines().enumerate().map(|(line, text)| match line {
                0 => format!("{key}: {text}"),
                _ => format!("  {text}"),
            })),
        }
    }
    if let Some(rows) = node["operator_cardinality"].as_u64() {
        details.push(format!("{rows} rows"));
    }
    if let Some(seconds) = node["operator_timing"].as_f64() {
        details.push(format!("{:.3} ms", seconds * 1000.0));
    }
    Operator { name: name(node).to_owned(), details, inputs: children(node).iter().map(operator).collect() }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_statement_with_a_plan_is_explained() {
        let explained = explain(" from t; -- all\n", true, Format::Svg).expect("it has a plan");
        assert_eq!(explained, "EXPLAIN (ANALYZE, FORMAT json) from t");
        for sql in ["", "from t; from u", "explain from t", "begin", "copy t to 's3://b/x'", "set threads=1", "'"] {
            assert!(explain(sql, false, Format::Text).is_err(), "{sql}");
        }
    }

    #[test]
    fn both_of_duckdb_s_forms_give_the_same_tree() {
        let leaf =
            json!({"name": "SEQ_SCAN ", "children": [], "extra_info": {"Table": "t", "Projections": ["a", "b"]}});
        let plain = operators(&json!([{"name": "LIMIT", "extra_info": {}, "children": [leaf]}]));
        assert_eq!(plain[0].inputs[0].name, "SEQ_SCAN");
        assert_eq!(plain[0].inputs[0].details, ["Projections:", "  a", "  b", "Table: t"]);
        let leaf = json!({"operator_name": "SEQ_SCAN", "operator_cardinality": 3, "operator_timing": 0.0015, "extra_info": {"Table": "t"}});
        let top =
            json!({"operator_name": "EXPLAIN_ANALYZE", "children": [{"operator_name": "LIMIT", "children": [leaf]}]});
        let ran = operators(&json!({"query_name": "from t", "children": [top]}));
        assert_eq!((ran[0].name.as_str(), ran.len()), ("LIMIT", 1));
        assert_eq!(ran[0].inputs[0].details, ["Table: t", "3 rows", "1.500 ms"]);
    }
}
