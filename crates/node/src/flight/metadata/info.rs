//! `GetSqlInfo`: what the server can do, as it is true of DuckDB. Numbers and kinds of values as `FlightSql.proto` has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use arrow_array::RecordBatch;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetSqlInfo, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity, SqlSupportedTransaction,
    SqlSupportsConvert as Convert, SqlTransactionIsolationLevel,
};

use super::built;
use crate::error::ApiError;

/// SQL over this is refused by the engine.
const MAX_SQL_BYTES: i64 = 256 << 10;
/// As many as anybody asks for; more would be repetitions.
const MOST: usize = 1024;

/// DuckDB's keywords that are not SQL-92's and can't be names without quotes.
const KEYWORDS: &str = "ANALYSE ANALYZE ANTI ARRAY ASOF ASYMMETRIC COLUMNS CONCURRENTLY DO FREEZE GENERATED GLOB ILIKE ISNULL LAMBDA \
    LATERAL LIMIT MAP NOTNULL OFFSET PIVOT PIVOT_LONGER PIVOT_WIDER PLACING POSITIONAL QUALIFY RETURNING SEMI SHOW SIMILAR STRUCT \
    SUMMARIZE SYMMETRIC TABLESAMPLE TRY_CAST UNPACK UNPIVOT VARIADIC VERBOSE WINDOW";
const NUMERIC: &str = "abs acos asin atan atan2 bit_count cbrt ceil ceiling cos cot degrees even exp factorial floor gamma gcd lcm lgamma \
    ln log log10 log2 mod nextafter pi pow power radians random round sign sin sqrt tan trunc";
const STRING: &str = "ascii bar base64 bin chr concat concat_ws contains ends_with format from_base64 hex instr lcase left length \
    levenshtein lower lpad ltrim md5 ord position prefix regexp_extract regexp_extract_all regexp_full_match regexp_matches \
    regexp_replace regexp_split_to_array repeat replace reverse right rpad rtrim sha256 split split_part starts_with strip_accents \
    strlen strpos substr substring suffix translate trim ucase unicode upper";
const SYSTEM: &str = "coalesce current_database current_schema current_user ifnull nullif typeof version";
const DATETIME: &str = "age century current_date current_timestamp date_add date_diff date_part date_sub date_trunc datediff datepart \
    datesub datetrunc day dayname dayofmonth dayofweek dayofyear decade epoch epoch_ms epoch_us era extract hour isodow isoyear last_day \
    make_date make_time make_timestamp microsecond millennium millisecond minute month monthname now quarter second strftime strptime \
    time_bucket to_days to_hours to_timestamp today week weekday weekofyear year yearweek";

static ALL: LazyLock<Option<Arc<SqlInfoData>>> = LazyLock::new(|| builder().build().ok().map(Arc::new));

pub(super) fn all() -> Result<Arc<SqlInfoData>, ApiError> {
    ALL.clone().ok_or_else(|| ApiError::internal("what the server can do is a table", "it is not"))
}

/// What is asked for; without a question everything.
pub(super) fn answer(asked: CommandGetSqlInfo) -> Result<RecordBatch, ApiError> {
    let wanted: BTreeSet<u32> = asked.info.into_iter().collect();
    built(all()?.record_batch(wanted.into_iter().take(MOST)))
}

/// A bit for each of an enum's numbers.
fn bits(numbers: &[i32]) -> i32 {
    numbers.iter().map(|number| 1 << number).sum()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn builder() -> SqlInfoDataBuilder {
    let mut all = SqlInfoDataBuilder::new();
    server(&mut all);
    grammar(&mut all);
    limits(&mut all);
    transactions(&mut all);
    all
}

fn server(all: &mut SqlInfoDataBuilder) {
    all.append(SqlInfo::FlightSqlServerName, "Tarn");
    all.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    all.append(SqlInfo::FlightSqlServerArrowVersion, "58.4.1");
    all.append(SqlInfo::FlightSqlServerReadOnly, false);
    all.append(SqlInfo::FlightSqlServerSql, true);
    all.append(SqlInfo::FlightSqlServerSubstrait, false);
    all.append(SqlInfo::FlightSqlServerSubstraitMinVersion, "");
    all.append(SqlInfo::FlightSqlServerSubstraitMaxVersion, "");
    all.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::Transaction as i32);
    all.append(SqlInfo::FlightSqlServerCancel, true);
    all.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    all.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, true);
    // Milliseconds; 0 is none of its own. A statement's is the call's; a transaction ends after a minute of nothing.
    all.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    all.append(SqlInfo::FlightSqlServerTransactionTimeout, 60_000_i32);
}

fn grammar(all: &mut SqlInfoDataBuilder) {
    // Names keep their case and are compared without it, quoted or not.
    let insensitive = SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32;
    all.append(SqlInfo::SqlDdlCatalog, false);
    all.append(SqlInfo::SqlDdlSchema, true);
    all.append(SqlInfo::SqlDdlTable, true);
    all.append(SqlInfo::SqlIdentifierCase, insensitive);
    all.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    all.append(SqlInfo::SqlQuotedIdentifierCase, insensitive);
    all.append(SqlInfo::SqlAllTablesAreSelectable, true);
    all.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedAtEnd as i32);
    all.append(SqlInfo::SqlKeywords, words(KEYWORDS));
    all.append(SqlInfo::SqlNumericFunctions, words(NUMERIC));
    all.append(SqlInfo::SqlStringFunctions, words(STRING));
    all.append(SqlInfo::SqlSystemFunctions, words(SYSTEM));
    all.append(SqlInfo::SqlDatetimeFunctions, words(DATETIME));
    all.append(SqlInfo::SqlSearchStringEscape, "\\");
    all.append(SqlInfo::SqlExtraNameCharacters, "");
    all.append(SqlInfo::SqlSupportsColumnAliasing, true);
    all.append(SqlInfo::SqlNullPlusNullIsNull, true);
    all.append(SqlInfo::SqlSupportsConvert, conversions());
    all.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    all.append(SqlInfo::SqlSupportsDifferentTableCorrelationNames, false);
    all.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    all.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    // Unrelated, beyond select.
    all.append(SqlInfo::SqlSupportedGroupBy, bits(&[0, 1]));
    all.append(SqlInfo::SqlSupportsLikeEscapeClause, true);
    all.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    // Minimum, core.
    all.append(SqlInfo::SqlSupportedGrammar, bits(&[0, 1]));
    // Entry.
    all.append(SqlInfo::SqlAnsi92SupportedLevel, bits(&[0]));
    all.append(SqlInfo::SqlSupportsIntegrityEnhancementFacility, true);
    // Limited, full.
    all.append(SqlInfo::SqlOuterJoinsSupportLevel, bits(&[1, 2]));
    all.append(SqlInfo::SqlSchemaTerm, "schema");
    all.append(SqlInfo::SqlProcedureTerm, "macro");
    all.append(SqlInfo::SqlCatalogTerm, "mart");
    all.append(SqlInfo::SqlCatalogAtStart, true);
    // In definitions of indexes.
    all.append(SqlInfo::SqlSchemasSupportedActions, bits(&[1]));
    all.append(SqlInfo::SqlCatalogsSupportedActions, bits(&[1]));
    all.append(SqlInfo::SqlSupportedPositionedCommands, 0_i32);
    all.append(SqlInfo::SqlSelectForUpdateSupported, false);
    all.append(SqlInfo::SqlStoredProceduresSupported, false);
    // In comparisons, EXISTS, IN, quantified.
    all.append(SqlInfo::SqlSupportedSubqueries, bits(&[0, 1, 2, 3]));
    all.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    // UNION, UNION ALL.
    all.append(SqlInfo::SqlSupportedUnions, bits(&[0, 1]));
    all.append(SqlInfo::SqlNamedParametersSupported, false);
    all.append(SqlInfo::SqlLocatorsUpdateCopy, false);
    all.append(SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported, false);
}

/// 0 is no limit, or none that is known.
fn limits(all: &mut SqlInfoDataBuilder) {
    for unlimited in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInGroupBy,
        SqlInfo::SqlMaxColumnsInIndex,
        SqlInfo::SqlMaxColumnsInOrderBy,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxConnections,
        SqlInfo::SqlMaxCursorNameLength,
        SqlInfo::SqlMaxIndexLength,
        SqlInfo::SqlDbSchemaNameLength,
        SqlInfo::SqlMaxProcedureNameLength,
        SqlInfo::SqlMaxCatalogNameLength,
        SqlInfo::SqlMaxRowSize,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxTablesInSelect,
        SqlInfo::SqlMaxUsernameLength,
    ] {
        all.append(unlimited, 0_i64);
    }
    all.append(SqlInfo::SqlMaxStatementLength, MAX_SQL_BYTES);
    all.append(SqlInfo::SqlMaxRowSizeIncludesBlobs, true);
}

fn transactions(all: &mut SqlInfoDataBuilder) {
    // A snapshot for each transaction.
    let level = SqlTransactionIsolationLevel::SqlTransactionRepeatableRead as i32;
    all.append(SqlInfo::SqlDefaultTransactionIsolation, level);
    all.append(SqlInfo::SqlTransactionsSupported, true);
    all.append(SqlInfo::SqlSupportedTransactionsIsolationLevels, bits(&[level]));
    all.append(SqlInfo::SqlDataDefinitionCausesTransactionCommit, false);
    all.append(SqlInfo::SqlDataDefinitionsInTransactionsIgnored, false);
    // Forward only, read only.
    all.append(SqlInfo::SqlSupportedResultSetTypes, bits(&[1]));
    all.append(SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified, 0_i32);
    all.append(SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, bits(&[1]));
    all.append(SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0_i32);
    all.append(SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0_i32);
    all.append(SqlInfo::SqlBatchUpdatesSupported, true);
    all.append(SqlInfo::SqlSavepointsSupported, false);
}

/// What CAST takes to what.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    let numbers = [
        Convert::SqlConvertTinyint,
        Convert::SqlConvertSmallint,
        Convert::SqlConvertInteger,
        Convert::SqlConvertBigint,
        Convert::SqlConvertDecimal,
        Convert::SqlConvertNumeric,
        Convert::SqlConvertFloat,
        Convert::SqlConvertReal,
        Convert::SqlConvertBit,
    ];
    let moments = [Convert::SqlConvertDate, Convert::SqlConvertTimestamp];
    let texts = [Convert::SqlConvertChar, Convert::SqlConvertVarchar];
    let others = [Convert::SqlConvertTime, Convert::SqlConvertIntervalDayTime, Convert::SqlConvertVarbinary];
    let list = |groups: &[&[Convert]]| groups.concat().into_iter().map(|to| to as i32).collect::<Vec<_>>();
    let mut all = BTreeMap::new();
    for from in numbers {
        all.insert(from as i32, list(&[&numbers, &texts]));
    }
    for from in moments {
        all.insert(from as i32, list(&[&moments, &texts]));
    }
    for from in texts {
        all.insert(from as i32, list(&[&numbers, &moments, &texts, &others]));
    }
    for from in others {
        all.insert(from as i32, list(&[&[from], &texts]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_the_specification_asks_for_is_missing() {
        let known = (0..=11).chain([100, 101]).chain(500..=576);
        for number in known.filter(|number| SqlInfo::try_from(*number).is_ok()) {
            let asked = CommandGetSqlInfo { info: vec![number.unsigned_abs()] };
            let rows = answer(asked).expect("an answer").num_rows();
            assert_eq!(rows, 1, "{number} has no answer");
        }
        assert_eq!(answer(CommandGetSqlInfo { info: vec![9999] }).expect("an answer").num_rows(), 0);
    }
}
