//! The table that rows go to: found or made, and what of the body goes where.

use super::{
    Code, Failure, Loading, fit, types,
    upsert::{self, Upsert},
};
use crate::{
    exec::describe,
    format::types::{Kind, Type},
    open::MART,
    wire::{IfExists, IfMissing},
};

const FIND: &str = "
    SELECT 'table' FROM duckdb_tables() WHERE database_name = $1 AND lower(schema_name) = lower($2) AND lower(table_name) = lower($3)
    UNION ALL
    SELECT 'view' FROM duckdb_views() WHERE database_name = $1 AND lower(schema_name) = lower($2) AND lower(view_name) = lower($3)";

/// A column of the body.
pub(super) struct Column {
    pub name: String,
    pub ty: Type,
    /// The type it had before it became Arrow, as its metadata says.
    pub was: Option<String>,
}

/// Where rows go.
pub(super) struct Target {
    /// The table was made for them.
    pub created: bool,
    /// Its name in SQL.
    pub name: String,
    /// Its name as people write it.
    pub shown: String,
    /// Its columns, if it was there already.
    pub columns: Vec<(String, Type)>,
}

/// How rows get there.
pub(super) struct Way {
    into: String,
    columns: Vec<String>,
    values: Vec<String>,
    upsert: Option<Upsert>,
}

impl Target {
    /// Looks for the table; refuses what the request says to refuse. Inside the transaction.
    pub fn find(loading: &Loading<'_, '_>) -> Result<Self, Failure> {
        let request = loading.request;
        let database = if request.temporary { "temp" } else { MART };
        let schema = request.schema.as_deref().unwrap_or("main");
        let name = format!("{database}.{}.{}", quoted(schema), quoted(&request.table));
        let shown = format!("{schema}.{}", request.table);
        let found = loading.ask(FIND, &[database, schema, &request.table])?;
        let created = match (found.first().map(String::as_str), request.if_exists, request.if_missing) {
            (Some("view"), ..) => {
                return Err(Failure::new(Code::Invalid, format!("`{shown}` is a view")).hint("load into a table"));
            }
            (Some(_), IfExists::Fail, _) => {
                return Err(Failure::new(Code::Conflict, format!("table `{shown}` exists already"))
                    .hint("append to it, replace it or upsert into it"));
            }
            (Some(_), IfExists::Replace, _) | (None, _, IfMissing::Create) => true,
            (Some(_), ..) => false,
            (None, ..) => {
                return Err(Failure::new(Code::NotFound, format!("table `{shown}` does not exist"))
                    .hint("create it first, or load with mode `create`"));
            }
        };
        let mut target = Self { created, name, shown, columns: Vec::new() };
        if !created {
            target.columns = loading.columns_of(&format!("FROM {}", target.name))?;
        }
        Ok(target)
    }

    /// Makes the table if need be, and decides where the body's columns go.
    pub fn way(&self, loading: &mut Loading<'_, '_>, body: &[Column]) -> Result<Way, Failure> {
        let pairs: Vec<(String, Type)> = body.iter().map(|column| (column.name.clone(), column.ty.clone())).collect();
        fit::check_names(&pairs)?;
        let values = body.iter().map(|column| quoted(&column.name)).collect();
        let upserts = loading.request.if_exists == IfExists::Upsert;
        let mut way = Way { into: self.name.clone(), columns: Vec::new(), values, upsert: None };
        if self.created {
            if upserts && loading.request.key.is_empty() {
                return Err(upsert::no_key(&self.shown));
            }
            loading.run.own_ddl(&self.definition(loading, body))?;
            way.columns = body.iter().map(|column| column.name.clone()).collect();
        } else {
            let places = fit::fit(&self.shown, &pairs, &self.columns)?;
            way.columns = places.iter().map(|at| self.columns[*at].0.clone()).collect();
            fit::check_names(&places.iter().map(|at| self.columns[*at].clone()).collect::<Vec<_>>())?;
        }
        if upserts {
            let upsert = Upsert::begin(loading, self, &way.columns)?;
            way.into.clone_from(&upsert.stage);
            way.upsert = Some(upsert);
        }
        Ok(way)
    }

    fn definition(&self, loading: &Loading<'_, '_>, body: &[Column]) -> String {
        let columns: Vec<String> = body
            .iter()
            .map(|column| {
                let was = column.was.as_deref().and_then(|text| types::wanted(text, &column.ty));
                // A column that holds nothing but NULL has to have some type.
                let plain = || if column.ty.kind == Kind::Null { "INTEGER".to_owned() } else { column.ty.to_string() };
                format!("{} {}", quoted(&column.name), was.unwrap_or_else(plain))
            })
            .collect();
        let or_replace = if loading.request.if_exists == IfExists::Replace { "OR REPLACE " } else { "" };
        let temporary = if loading.request.temporary { "TEMPORARY " } else { "" };
        format!("CREATE {or_replace}{temporary}TABLE {} ({})", self.name, columns.join(", "))
    }
}

impl Way {
    /// The statement that takes rows from `call`.
    pub fn insert(&self, call: &str) -> String {
        let columns = list(self.columns.iter().map(String::as_str));
        format!("INSERT INTO {} ({columns}) SELECT {} FROM {call}", self.into, self.values.join(", "))
    }

    /// What is left to do when all rows are there.
    pub fn finish(&self, loading: &mut Loading<'_, '_>) -> Result<(), Failure> {
        match &self.upsert {
            Some(upsert) => upsert.merge(loading),
            None => Ok(()),
        }
    }
}

impl Loading<'_, '_> {
    /// Names and types of what a query of the engine's own gives.
    pub(super) fn columns_of(&self, sql: &str) -> Result<Vec<(String, Type)>, Failure> {
        let describe = || {
            let mut parsed = self.run.kept.connection.extract(sql)?;
            let mut first = parsed.next().ok_or_else(|| crate::duck::DuckError::new("INTERNAL Error: no statement"))?;
            Ok(describe::columns(&first.prepare()?).0.into_pairs())
        };
        describe().map_err(|error| self.run.duck(&error))
    }
}

/// A name in double quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names in double quotes, with commas.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}
