//! Parquet, CSV and NDJSON: the body is written into a file of the engine's own, and DuckDB's readers make rows of it.
//!
//! A new table gets the types that DuckDB finds in the whole file. For a table that is there the reader is told the types of its columns.

use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::{
    Code, Failure, Loaded, Loading, Media,
    target::{Column, Target, quoted},
};
use crate::{
    format::types::{Kind, Type},
    load::{depth::Depth, reader::BodyReader, spool::SpoolFile},
    open::literal,
};

/// What a CSV body is, behind `delim`: nothing of it is found out, since what DuckDB's sniffer can't make sense of it skips, and rows
/// would be lost.
const DIALECT: &str = "quote = '\"', escape = '\"', comment = '', skip = 0, null_padding = false, ignore_errors = false, \
    allow_quoted_nulls = false, compression = 'none'";
/// Columns that are tried at most, to name the one that does not fit.
const MOST_TRIED: usize = 50;
/// As long as that at most: each try reads the whole file, and only the looks between them end it.
const TRY_TIME: Duration = Duration::from_secs(2);

impl Loading<'_, '_> {
    pub(super) fn spooled(&mut self, mut body: BodyReader<'_>, media: Media) -> Result<Loaded, Failure> {
        let mut file = self.run.engine.spool.create(match media {
            Media::Parquet | Media::Arrow => ".parquet",
            Media::Csv { .. } => ".csv",
            Media::Ndjson => ".ndjson",
        })?;
        let mut depth = Depth::default();
        file.fill(&mut body, |bytes| if media == Media::Ndjson { depth.check(bytes) } else { Ok(()) })?;
        drop(body);
        self.begin()?;
        self.take_file(&file, media).map_err(|failure| named(failure, &file))
    }

    /// The column of a JSON body whose values do not fit, which DuckDB does not name. The transaction is of no more use.
    fn misfit(&self, path: &str, found: &[(String, Type)], columns: &[(String, Type)]) -> Option<String> {
        let connection = self.run.engine.mart.connect().ok()?;
        let started = Instant::now();
        let goes_on = || started.elapsed() < TRY_TIME && self.run.query.reason().is_none();
        let mut tried = known(found, columns).into_iter().take(MOST_TRIED).take_while(|_| goes_on());
        tried.find_map(|column| {
            let (name, ty) = column.clone();
            let read = ndjson(path, &with_types("columns", &[column], |ty| ty.to_string()));
            let tried = connection.column(&format!("SELECT count({})::VARCHAR FROM {read}", quoted(&name)));
            tried.is_err().then(|| format!("column `{name}` ({ty}): "))
        })
    }

    fn take_file(&mut self, file: &SpoolFile, media: Media) -> Result<Loaded, Failure> {
        let target = Target::find(self)?;
        if file.bytes() == 0 {
            return match media {
                // No line is no row; of the other formats something is there always.
                Media::Ndjson if !target.created => Ok(Loaded { rows: 0, created: false }),
                _ => Err(Failure::new(Code::Invalid, "the body is empty, and names no columns")),
            };
        }
        let path = literal(&file.path().to_string_lossy());
        let (found, read) = self.reader(media, &path, &target).map_err(|failure| match failure.code {
            // The file is the body: what DuckDB can't read of it is the client's.
            Code::Sql => Failure { code: Code::Invalid, ..failure },
            _ => failure,
        })?;
        let names = found.clone();
        let text = matches!(media, Media::Csv { .. } | Media::Ndjson) && !target.created;
        let body: Vec<Column> = found
            .into_iter()
            // Of a text it is only guessed what it is; in the table's type it is right or an error.
            .map(|(name, ty)| Column { name, ty: if text { Type::text() } else { ty }, was: None })
            .collect();
        let way = target.way(self, &body)?;
        let rows = self.execute(&way.insert(&read)).map_err(|failure| match media {
            Media::Ndjson if !target.created && failure.code == Code::Sql => {
                let column = self.misfit(&path, &names, &target.columns).unwrap_or_default();
                Failure { message: column + &failure.message, ..failure }
            }
            _ => failure,
        })?;
        way.finish(self)?;
        Ok(Loaded { rows, created: target.created })
    }

    /// The file's columns, and the call that reads them. What is found out of a text is found once.
    fn reader(&self, media: Media, path: &str, target: &Target) -> Result<(Vec<(String, Type)>, String), Failure> {
        let describe = |read: &str| self.columns_of(&format!("FROM {read}"));
        match media {
            Media::Csv { header, delimiter } if target.created => {
                let read = self.sniffed(header, delimiter, path)?;
                Ok((describe(&read)?, read))
            }
            Media::Csv { header, delimiter } => {
                let csv = |types: &str| csv(header, delimiter, path, types);
                let found = describe(&csv("")).map_err(not_csv)?;
                // What its reader can't make itself, the INSERT casts.
                let plain = |ty: &Type| match ty.kind {
                    Kind::Enum { .. } | Kind::Variant => "VARCHAR".to_owned(),
                    _ if ty.is_nested() || ty.alias.is_some() => "VARCHAR".to_owned(),
                    _ => ty.to_string(),
                };
                let read = csv(&with_types("types", &known(&found, &target.columns), plain));
                Ok((found, read))
            }
            Media::Ndjson => {
                let found = describe(&ndjson(path, ""))?;
                let known = if target.created { found.clone() } else { known(&found, &target.columns) };
                Ok((found, ndjson(path, &with_types("columns", &known, |ty| ty.to_string()))))
            }
            Media::Arrow | Media::Parquet => {
                let read = format!("read_parquet({path}, hive_partitioning = false)");
                Ok((describe(&read)?, read))
            }
        }
    }

    /// A call that reads a CSV file as DuckDB finds it to be when it looks at all of it.
    fn sniffed(&self, header: bool, delimiter: char, path: &str) -> Result<String, Failure> {
        let sniff = format!(
            "SELECT to_json({{new_line: NewLineDelimiter, columns: Columns, dateformat: DateFormat,
                timestampformat: TimestampFormat}})::VARCHAR
             FROM sniff_csv({path}, header = {header}, sample_size = -1, delim = '{delimiter}', {DIALECT})"
        );
        let sniffed = self.ask(&sniff, &[]).map_err(not_csv)?;
        let found: Json = serde_json::from_str(&sniffed.concat()).unwrap_or_default();
        let text = |value: &Json| literal(value.as_str().unwrap_or_default());
        let mut options = String::new();
        for name in ["new_line", "dateformat", "timestampformat"] {
            if found[name].as_str().is_some_and(|said| !["", "(empty)"].contains(&said)) {
                options += &format!(", {name} = {}", text(&found[name]));
            }
        }
        let columns = found["columns"].as_array().map(Vec::as_slice).unwrap_or_default();
        let columns: Vec<String> =
            columns.iter().map(|column| format!("{}: {}", text(&column["name"]), text(&column["type"]))).collect();
        Ok(format!(
            "read_csv({path}, auto_detect = false, header = {header}, delim = '{delimiter}', {DIALECT}, \
             hive_partitioning = false{options}, columns = {{{}}})",
            columns.join(", ")
        ))
    }
}

/// What DuckDB says of a dialect that it was told, in our words.
fn not_csv(failure: Failure) -> Failure {
    if !failure.message.contains("CSV parsing dialect") {
        return failure;
    }
    let text = "the body is not the CSV it should be: each line has the columns of the first, with commas between them";
    let hint = "`text/csv; delimiter=semicolon` (or `tab`, `pipe`) names another mark; a field that holds the mark, a quote or a line \
                break stands in double quotes (RFC 4180)";
    Failure::new(Code::Invalid, text).hint(hint)
}

fn csv(header: bool, delimiter: char, path: &str, types: &str) -> String {
    format!("read_csv({path}, header = {header}, delim = '{delimiter}', {DIALECT}, hive_partitioning = false{types})")
}

fn ndjson(path: &str, types: &str) -> String {
    // Which fields there are is known at the end only.
    let sample = if types.is_empty() { ", sample_size = -1" } else { "" };
    format!(
        "read_json({path}, format = 'newline_delimited', records = true, compression = 'uncompressed', \
         hive_partitioning = false{sample}{types})"
    )
}

/// The columns of the file that the table has, with its types.
fn known(found: &[(String, Type)], columns: &[(String, Type)]) -> Vec<(String, Type)> {
    let same = |name: &str| columns.iter().find(|(column, _)| column.to_lowercase() == name.to_lowercase());
    found.iter().filter_map(|(name, _)| same(name).map(|(_, ty)| (name.clone(), ty.clone()))).collect()
}

fn with_types(option: &str, known: &[(String, Type)], text: impl Fn(&Type) -> String) -> String {
    if known.is_empty() {
        return String::new();
    }
    let fields: Vec<String> =
        known.iter().map(|(name, ty)| format!("{}: {}", literal(name), literal(&text(ty)))).collect();
    format!(", {option} = {{{}}}", fields.join(", "))
}

/// The file has a name that is nobody's business, and DuckDB's advice is about options that a body has not.
fn named(mut failure: Failure, file: &SpoolFile) -> Failure {
    let text = &mut failure.message;
    for advice in ["\nPossible", "\nTry setting", "\n\nLINE "] {
        text.truncate(text.find(advice).unwrap_or(text.len()));
    }
    let Some(name) = file.path().file_name().and_then(|name| name.to_str()) else { return failure };
    while let Some(at) = text.find(name) {
        let dir = text[..at].rfind(['"', '\'', '\n']).map_or(0, |quote| quote + 1);
        text.replace_range(dir..at + name.len(), "the body");
    }
    failure
}
