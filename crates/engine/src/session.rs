//! A connection that is kept between requests, and the transaction on it.
//!
//! A worker thread keeps one for requests that stand alone; a client's session (`sessions`) has one of its own. A request that stands
//! alone and could leave traces on its connection (temporary objects) marks it as used up, and the next one gets a new connection.
//!
//! **Invariants:** no transaction outlives its request but in a client's session; whoever has a transaction open has a pass of the
//! writers' gate.

use crate::{
    duck::{Connection, DuckError, Prepared},
    hidden::HiddenWrites,
    open::Mart,
    wal::Names,
    writers::WriterPass,
};

/// What a worker thread, or a client's session, keeps.
#[derive(Default)]
pub struct Session {
    kept: Option<Kept>,
}

/// A connection with what every write needs, prepared.
pub struct Kept {
    /// The connection.
    pub connection: Connection,
    begin: Prepared,
    commit: Prepared,
    rollback: Prepared,
    /// The transaction on it.
    pub transaction: Transaction,
    /// The connection is not to be used by another request.
    pub used_up: bool,
}

/// Where a connection is between BEGIN and COMMIT.
#[derive(Default)]
pub enum Transaction {
    /// Each statement is one of its own.
    #[default]
    None,
    /// A session said BEGIN, in these words; nothing is held before its first statement.
    Begun(String),
    /// Under way.
    Open(Open),
    /// The server rolled it back because it was idle; the session does not know yet.
    Lost,
}

/// A transaction that is under way.
pub struct Open {
    /// Holds off checkpoints.
    pub pass: WriterPass,
    /// Statements that ran in it.
    pub statements: usize,
    /// It changes the catalog; so many statements may hide a write in it.
    pub ddl: Option<usize>,
    /// What it made and dropped so far.
    pub names: Names,
    /// A statement failed in it, and whether another time it may not: DuckDB may have given the transaction up.
    pub failed: Option<bool>,
}

impl Session {
    /// The connection, made if there is none.
    pub fn connection(&mut self, mart: &Mart) -> Result<&mut Kept, DuckError> {
        if self.kept.is_none() {
            self.kept = Some(Kept::new(mart.connect()?)?);
        }
        Ok(self.kept.as_mut().expect("made just now"))
    }

    /// Rolls back what is open, and lets go of the connection.
    pub fn end(&mut self, hidden: &HiddenWrites) {
        if let Some(mut kept) = self.kept.take()
            && kept.in_transaction()
        {
            // A connection that can't roll back does so when it is closed.
            let _ = kept.rollback();
            kept.close(hidden);
        }
    }

    /// The connection, if there is one.
    pub fn kept(&mut self) -> Option<&mut Kept> {
        self.kept.as_mut()
    }

    /// Makes ready for the next request, which has nothing to do with the last one.
    pub fn reset(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        if kept.in_transaction() && kept.rollback().is_err() || kept.used_up || kept.settle().is_err() {
            self.kept = None;
        }
    }
}

impl Kept {
    fn new(connection: Connection) -> Result<Self, DuckError> {
        let prepare = |sql: &str| match connection.extract(sql)?.next() {
            Some(mut parsed) => parsed.prepare(),
            None => Err(DuckError::new("INTERNAL Error: nothing to prepare")),
        };
        let (begin, commit, rollback) = (prepare("BEGIN TRANSACTION")?, prepare("COMMIT")?, prepare("ROLLBACK")?);
        Ok(Self { connection, begin, commit, rollback, transaction: Transaction::None, used_up: false })
    }

    /// Is a transaction under way?
    pub fn in_transaction(&self) -> bool {
        matches!(self.transaction, Transaction::Open(_))
    }

    /// The transaction that is under way.
    pub fn open(&mut self) -> Option<&mut Open> {
        match &mut self.transaction {
            Transaction::Open(open) => Some(open),
            _ => None,
        }
    }

    /// Ends the transaction of a stream that was dropped before its end: it would stand in the way of every checkpoint.
    pub fn settle(&mut self) -> Result<(), DuckError> {
        if self.connection.take_abandoned() && !self.in_transaction() {
            self.begin.run()?;
            self.rollback.run()?;
        }
        Ok(())
    }

    /// BEGIN, in a client's words if there are any (they may say READ ONLY).
    pub fn begin(&mut self, pass: WriterPass, words: Option<&str>) -> Result<(), DuckError> {
        match words {
            Some(words) => self.connection.execute(words)?,
            None => drop(self.begin.run()?),
        }
        self.transaction =
            Transaction::Open(Open { pass, statements: 0, ddl: None, names: Names::default(), failed: None });
        Ok(())
    }

    /// COMMIT alone: the caller ends the transaction with [`Self::close`], also if this fails.
    pub fn commit(&mut self) -> Result<(), DuckError> {
        self.commit.run().map(drop)
    }

    /// Ends the transaction for us; gives how many statements it had.
    pub fn close(&mut self, hidden: &HiddenWrites) -> usize {
        let Transaction::Open(open) = std::mem::take(&mut self.transaction) else { return 0 };
        if let Some(counted) = open.ddl {
            hidden.after_ddl(&self.connection, counted);
        }
        drop(open.pass);
        open.statements
    }

    /// ROLLBACK; a connection that can't is used up.
    pub fn rollback(&mut self) -> Result<(), DuckError> {
        let done = self.rollback.run().map(drop);
        self.used_up |= done.is_err();
        done
    }
}
