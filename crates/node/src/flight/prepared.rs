//! Prepared statements: text, parameters and transaction behind a handle. Nothing is prepared in an engine: each run is a query of its
//! own, so a handle outlives the engine, its checkpoints and changes of the tables.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow_flight::sql::{ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult};
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::frames::schema_message;
use super::paper::{Matter, garbled};
use super::sessions::{check_present, no_transaction};
use super::statements::{Statement, check_moment, dataset_schema, decoded};
use crate::error::{ApiError, Code};
use crate::visit;

/// A statement that nobody has used for so long is forgotten.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// Of one principal at once; beyond it the one that was not used for longest goes.
const MOST: usize = 1024;
/// Bound parameters of one principal.
const MAX_BOUND_BYTES: usize = 64 << 20;

/// The prepared statements of a node.
#[derive(Default)]
pub(super) struct Statements(Mutex<HashMap<Uuid, Prepared>>);

struct Prepared {
    principal: String,
    sql: Arc<str>,
    /// The transaction it was prepared in.
    transaction: Option<Uuid>,
    /// Its client has ended that transaction; one that was taken away has not ended for it.
    ended: bool,
    params_arrow: Option<Arc<str>>,
    used: Instant,
}

impl Statements {
    fn all(&self) -> MutexGuard<'_, HashMap<Uuid, Prepared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, prepared: Prepared) -> Uuid {
        let id = Uuid::new_v4();
        let mut all = self.all();
        let own = all.iter().filter(|(_, other)| other.principal == prepared.principal);
        let (count, oldest) = own.fold((0, None::<(Instant, Uuid)>), |(count, oldest), (id, other)| {
            let this = (other.used, *id);
            (count + 1, Some(oldest.map_or(this, |oldest| oldest.min(this))))
        });
        if let (true, Some((_, oldest))) = (count >= MOST, oldest) {
            all.remove(&oldest);
        }
        all.insert(id, prepared);
        id
    }

    /// Does something with one that is the caller's and still there.
    fn with<T>(&self, call: &Call, id: Uuid, act: impl FnOnce(&mut Prepared) -> T) -> Result<T, ApiError> {
        let mut all = self.all();
        let found = all.get_mut(&id).filter(|found| found.principal == call.principal.id);
        let found = found.filter(|found| found.used.elapsed() < IDLE).ok_or_else(|| {
            ApiError::new(Code::NotFound, "no such prepared statement")
                .hint("it was closed, was not used for 15 minutes, or another node prepared it: prepare it again")
        })?;
        found.used = Instant::now();
        Ok(act(found))
    }

    /// A client has ended its transaction.
    pub(super) fn ended(&self, transaction: Uuid) {
        for prepared in self.all().values_mut().filter(|prepared| prepared.transaction == Some(transaction)) {
            prepared.ended = true;
        }
    }

    /// Forgets what those have prepared.
    pub(super) fn forget(&self, gone: &HashSet<String>) {
        self.all().retain(|_, prepared| !gone.contains(&prepared.principal));
    }

    /// Forgets what is idle.
    pub(super) fn expire(&self) {
        self.all().retain(|_, prepared| prepared.used.elapsed() < IDLE);
    }
}

impl Flight {
    /// Describes a statement and gives it a handle.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        mut call: Call,
        request: ActionCreatePreparedStatementRequest,
    ) -> Result<ActionCreatePreparedStatementResult, ApiError> {
        let transaction = self.transaction(&mut call, request.transaction_id.as_ref()).await?;
        visit::says(&request.query);
        check_moment(&call, &request.query)?;
        let statement = Statement { sql: request.query, params_arrow: None, transaction };
        let described = self.describe(&call, &statement).await?;
        let dataset_schema = dataset_schema(&described)?;
        let parameter_schema =
            decoded(described.parameters)?.unwrap_or_else(|| schema_message(&arrow_schema::Schema::empty()));
        let id = self.statements.add(Prepared {
            principal: call.principal.id.clone(),
            sql: statement.sql.into(),
            transaction,
            ended: false,
            params_arrow: None,
            used: Instant::now(),
        });
        let prepared_statement_handle = self.seal().await?.handle(&call, Matter::Prepared(id))?;
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle, dataset_schema, parameter_schema })
    }

    /// The statement behind a handle, to be run now, and the call as one about its mart.
    pub(super) async fn prepared(&self, call: Call, handle: &[u8]) -> Result<(Call, Statement), ApiError> {
        let (call, id) = self.prepared_id(call, handle).await?;
        let (sql, prepared_in, ended, params) = self.statements.with(&call, id, |found| {
            (found.sql.to_string(), found.transaction, found.ended, found.params_arrow.as_deref().map(str::to_owned))
        })?;
        // Drivers go on using a statement after the transaction in which they prepared it has ended.
        let transaction = match prepared_in {
            Some(id) if self.is_open(&call, id) => Some(id),
            Some(_) if ended => self.current_transaction(&call),
            // It would commit by itself what was to be part of something.
            Some(_) => return Err(no_transaction()),
            None => None,
        };
        if transaction.is_some() {
            check_present(&call)?;
        }
        visit::says(&sql);
        check_moment(&call, &sql)?;
        Ok((call, Statement { sql, params_arrow: params, transaction }))
    }

    /// Binds parameters, in place of earlier ones.
    pub(super) async fn bind(&self, call: Call, handle: &[u8], params_arrow: String) -> Result<(), ApiError> {
        let (call, id) = self.prepared_id(call, handle).await?;
        let bound: usize = {
            let all = self.statements.all();
            let own = all.iter().filter(|(other, found)| **other != id && found.principal == call.principal.id);
            own.filter_map(|(_, found)| found.params_arrow.as_deref()).map(str::len).sum()
        };
        if bound + params_arrow.len() > MAX_BOUND_BYTES {
            return Err(ApiError::new(Code::Limited, "too many parameters are bound to prepared statements")
                .hint("close statements that are not used any more"));
        }
        self.statements.with(&call, id, |found| found.params_arrow = Some(params_arrow.into()))
    }

    /// Closes a statement. One that is gone is closed.
    pub(super) async fn close_prepared(&self, call: Call, handle: &[u8]) -> Result<(), ApiError> {
        let (call, id) = self.prepared_id(call, handle).await?;
        let mut all = self.statements.all();
        if all.get(&id).is_some_and(|found| found.principal == call.principal.id) {
            all.remove(&id);
        }
        Ok(())
    }

    async fn prepared_id(&self, call: Call, handle: &[u8]) -> Result<(Call, Uuid), ApiError> {
        match self.seal().await?.read(call, handle)? {
            (call, Matter::Prepared(id)) => Ok((call, id)),
            _ => Err(garbled()),
        }
    }
}
