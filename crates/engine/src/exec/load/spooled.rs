//! Parquet, CSV and NDJSON: the body is written into a file of the engine's own, and DuckDB's readers make rows of it.
//!
//! A new table gets the types that DuckDB finds in the whole file. For a table that is there the reader is told the types of its columns.

use super::{
    Code, Failure, Loaded, Loading, Media,
    target::{Column, Target},
};
use crate::{
    format::types::{Kind, Type},
    load::{depth::Depth, reader::BodyReader, spool::SpoolFile},
    open::literal,
};

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
        let found = self.columns_of(&format!("FROM {}", call(media, &path, &[])));
        let found = found.map_err(|failure| match failure.code {
            // The file is the body: what DuckDB can't read of it is the client's.
            Code::Sql => Failure { code: Code::Invalid, ..failure },
            _ => failure,
        })?;
        let known = known(&found, &target.columns);
        let text = matches!(media, Media::Csv { .. } | Media::Ndjson) && !target.created;
        let body: Vec<Column> = found
            .into_iter()
            // Of a text it is only guessed what it is; in the table's type it is right or an error.
            .map(|(name, ty)| Column { name, ty: if text { Type::text() } else { ty }, was: None })
            .collect();
        let way = target.way(self, &body)?;
        let rows = self.execute(&way.insert(&call(media, &path, &known)))?;
        way.finish(self)?;
        Ok(Loaded { rows, created: target.created })
    }
}

/// The columns of the file that the table has, with its types.
fn known(found: &[(String, Type)], columns: &[(String, Type)]) -> Vec<(String, Type)> {
    let same = |name: &str| columns.iter().find(|(column, _)| column.to_lowercase() == name.to_lowercase());
    found.iter().filter_map(|(name, _)| same(name).map(|(_, ty)| (name.clone(), ty.clone()))).collect()
}

/// The call that reads the file, with the types of columns that are `known`.
fn call(media: Media, path: &str, known: &[(String, Type)]) -> String {
    match media {
        Media::Arrow | Media::Parquet => format!("read_parquet({path}, hive_partitioning = false)"),
        Media::Csv { header } => {
            // What its reader can't make itself, the INSERT casts.
            let plain = |ty: &Type| match ty.kind {
                Kind::Enum { .. } | Kind::Variant => "VARCHAR".to_owned(),
                _ if ty.is_nested() || ty.alias.is_some() => "VARCHAR".to_owned(),
                _ => ty.to_string(),
            };
            let types = with_types("types", known, plain);
            format!(
                "read_csv({path}, header = {header}, sample_size = -1, compression = 'none', allow_quoted_nulls = false, \
                 hive_partitioning = false{types})"
            )
        }
        Media::Ndjson => {
            let types = with_types("columns", known, |ty| ty.to_string());
            format!(
                "read_json({path}, format = 'newline_delimited', records = true, sample_size = -1, \
                 compression = 'uncompressed', hive_partitioning = false{types})"
            )
        }
    }
}

fn with_types(option: &str, known: &[(String, Type)], text: impl Fn(&Type) -> String) -> String {
    if known.is_empty() {
        return String::new();
    }
    let fields: Vec<String> =
        known.iter().map(|(name, ty)| format!("{}: {}", literal(name), literal(&text(ty)))).collect();
    format!(", {option} = {{{}}}", fields.join(", "))
}

/// The file has a name that is nobody's business.
fn named(mut failure: Failure, file: &SpoolFile) -> Failure {
    if let Some(name) = file.path().file_name().and_then(|name| name.to_str()) {
        let words = failure.message.split(' ').map(|word| match word.contains(name) {
            true => "the body",
            false => word,
        });
        failure.message = words.collect::<Vec<_>>().join(" ");
    }
    failure
}
