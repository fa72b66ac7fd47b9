//! What a client wants loaded, and what is refused whatever the body is.

use crate::{
    exec::Engine,
    failure::Failure,
    load::{body::BodyReceiver, reader::Coding},
    sql::gate::OWN_SCHEMA,
    view,
    wire::{Code, IfExists, LoadRequest, Role},
};

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
    /// Lines of values; the first one has the names unless `header` is false.
    Csv {
        /// Has it such a line?
        header: bool,
        /// What stands between values.
        delimiter: char,
    },
    /// An object per line.
    Ndjson,
}

/// What may stand between the values of a line, as `delimiter=` names it.
const DELIMITERS: [(&str, char); 4] = [("comma", ','), ("semicolon", ';'), ("tab", '\t'), ("pipe", '|')];

impl Media {
    /// From `Content-Type`.
    pub fn from_header(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
        let media = parts.next()?;
        let said: Vec<String> = parts.collect();
        match media.as_str() {
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "application/vnd.apache.parquet" | "application/x-parquet" => Some(Self::Parquet),
            "text/csv" => {
                let header = !said.iter().any(|part| part == "header=absent");
                let delimiter = match said.iter().find_map(|part| part.strip_prefix("delimiter=")) {
                    None => ',',
                    Some(word) => DELIMITERS.iter().find(|(name, _)| *name == word)?.1,
                };
                Some(Self::Csv { header, delimiter })
            }
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Ndjson),
            _ => None,
        }
    }

    /// The media type.
    pub fn content_type(self) -> String {
        match self {
            Self::Arrow => "application/vnd.apache.arrow.stream".into(),
            Self::Parquet => "application/vnd.apache.parquet".into(),
            Self::Csv { header, delimiter } => {
                let header = if header { "" } else { "; header=absent" };
                let delimiter = DELIMITERS.iter().find(|(_, known)| *known == delimiter).map_or("", |(name, _)| name);
                format!("text/csv; delimiter={delimiter}{header}")
            }
            Self::Ndjson => "application/x-ndjson".into(),
        }
    }
}

/// What a client wants loaded.
pub struct Load {
    /// Into which table, and how.
    pub request: LoadRequest,
    /// What the body is.
    pub media: Media,
    /// How it is compressed.
    pub coding: Coding,
    /// The body.
    pub body: BodyReceiver,
    /// What the caller may do.
    pub role: Role,
    /// Runs at most once under this key.
    pub key: Option<String>,
}

/// Longest name.
const MAX_NAME_BYTES: usize = 1024;

impl Load {
    /// Refuses what can't be loaded into any table.
    pub(super) fn check(&self, engine: &Engine) -> Result<(), Failure> {
        let invalid = |message: &str, hint: &str| Err(Failure::new(Code::Invalid, message).hint(hint));
        let request = &self.request;
        if engine.view.is_some() {
            return Err(view::only_reads());
        }
        if self.role == Role::Reader {
            let failure = Failure::new(Code::Forbidden, "a reader may not load data");
            return Err(failure.hint("ask for a token with the role `writer`"));
        }
        for name in request.schema.iter().chain([&request.table]).chain(&request.key) {
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
                return invalid("a name is empty, too long or holds a NUL character", "");
            }
            if name.eq_ignore_ascii_case(OWN_SCHEMA) {
                let message = format!("the name `{OWN_SCHEMA}` belongs to the server");
                return Err(Failure::new(Code::Forbidden, message).hint("choose another name"));
            }
        }
        if request.temporary && request.session.is_none() {
            return invalid("a temporary table needs a session", "open one and give its id");
        }
        if request.temporary && request.schema.is_some() {
            return invalid("a temporary table is in no schema", "leave out `schema`");
        }
        if !request.key.is_empty() && request.if_exists != IfExists::Upsert {
            return invalid("`key` goes with an upsert only", "leave it out, or load with mode `upsert`");
        }
        Ok(())
    }
}
