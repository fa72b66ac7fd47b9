//! A connection that is kept between requests, and a transaction on it.
//!
//! A request that could leave traces on its connection (temporary objects) marks it as used up, and the next one gets a new
//! connection. **Invariant:** no transaction outlives its request.

use crate::{
    duck::{Connection, DuckError, Prepared},
    open::Mart,
};

/// What a worker thread keeps.
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
    in_transaction: bool,
    /// The connection is not to be used by another request.
    pub used_up: bool,
}

impl Session {
    /// The connection, made if there is none.
    pub fn connection(&mut self, mart: &Mart) -> Result<&mut Kept, DuckError> {
        if self.kept.is_none() {
            self.kept = Some(Kept::new(mart.connect()?)?);
        }
        Ok(self.kept.as_mut().expect("made just now"))
    }

    /// Makes ready for the next request.
    pub fn reset(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        if kept.in_transaction && kept.rollback().is_err() || kept.used_up || kept.settle().is_err() {
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
        Ok(Self { connection, begin, commit, rollback, in_transaction: false, used_up: false })
    }

    /// Is a transaction open?
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Ends the transaction of a stream that was dropped before its end: it would stand in the way of every checkpoint.
    fn settle(&mut self) -> Result<(), DuckError> {
        if self.connection.take_abandoned() {
            self.begin.run()?;
            self.rollback.run()?;
        }
        Ok(())
    }

    /// BEGIN.
    pub fn begin(&mut self) -> Result<(), DuckError> {
        self.begin.run()?;
        self.in_transaction = true;
        Ok(())
    }

    /// A BEGIN as the client wrote it (it may say READ ONLY).
    pub fn begin_by(&mut self, text: &str) -> Result<(), DuckError> {
        self.connection.execute(text)?;
        self.in_transaction = true;
        Ok(())
    }

    /// COMMIT; the transaction is over also if that fails.
    pub fn commit(&mut self) -> Result<(), DuckError> {
        self.in_transaction = false;
        self.commit.run().map(drop)
    }

    /// ROLLBACK; a connection that can't is used up.
    pub fn rollback(&mut self) -> Result<(), DuckError> {
        self.in_transaction = false;
        let done = self.rollback.run().map(drop);
        self.used_up |= done.is_err();
        done
    }
}
