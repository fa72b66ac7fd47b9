//! The last statement of a request, streamed while it runs.
//!
//! A small answer is sent whole, with its length. A larger or slower one goes out in pieces as they come; then a failure breaks the
//! body. If a view or macro may hide a `nextval`, the read runs in a transaction and its commit goes into the trailer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::{
    failure::Failure,
    format::{Columns, Encoder, Options},
    pipe::{PipeWriter, pipe},
    queries::Reason,
    sql::Statement,
    wire::header,
};

use super::{
    Answer, Head, Reply,
    script::{Outcome, Run},
};

/// Answers up to this size go out whole.
const WHOLE_BYTES: usize = 256 << 10;
/// A query that takes longer gets its answer piece by piece.
const WHOLE_TIME: Duration = Duration::from_millis(50);
/// Rows that wait for more are sent after this.
const LINGER: Duration = Duration::from_millis(200);

/// Where the pieces are.
enum Sink {
    /// Held back: nothing was sent yet.
    Held(Vec<Bytes>, usize),
    /// On their way.
    Open(PipeWriter),
}

impl Run<'_> {
    /// Runs and answers `statement`.
    pub(super) fn stream(
        &mut self,
        statement: &Statement<'_>,
        reply: &mut Option<Reply>,
    ) -> Result<Option<Outcome>, Failure> {
        let hidden = self.engine.hidden.possible();
        if hidden {
            self.begin()?;
        }
        let started = Instant::now();
        let takes = super::script::takes_parameters(statement);
        let mut prepared = self.prepare(statement.text, takes)?;
        let mut result = prepared.stream().map_err(|error| self.duck(&error))?;
        // SAFETY: the result is valid and stays ours.
        let columns = unsafe { Columns::of_result(result.raw()) };
        let mut encoder = Encoder::new(self.request.format, columns, Options { max_rows: self.request.max_rows })?;
        let mut sink = Sink::Held(Vec::new(), 0);
        let mut flushed = started;
        while let Some(chunk) = result.next_chunk().map_err(|error| self.duck(&error))? {
            // SAFETY: the chunk is of the result that the columns are of.
            unsafe { encoder.push(chunk.raw()) }?;
            drop(chunk);
            if matches!(sink, Sink::Open(_)) && flushed.elapsed() > LINGER
                || matches!(sink, Sink::Held(..)) && started.elapsed() > WHOLE_TIME
            {
                encoder.flush();
                flushed = Instant::now();
                sink = self.open(sink, hidden, reply)?;
            }
            self.put(&mut sink, encoder.take_ready())?;
            if matches!(&sink, Sink::Held(_, bytes) if *bytes > WHOLE_BYTES) {
                sink = self.open(sink, hidden, reply)?;
            }
            if encoder.is_full() {
                break;
            }
        }
        drop((result, prepared));
        let rest = encoder.finish();
        if matches!(sink, Sink::Open(_)) {
            self.put(&mut sink, rest)?;
            let before = self.progress.commit;
            if hidden {
                self.open += 1;
                self.commit()?;
            }
            if let Sink::Open(writer) = sink {
                let wrote = self.progress.commit.filter(|commit| Some(*commit) != before);
                writer.finish(wrote.map(|commit| {
                    let value = HeaderValue::from_str(&commit.to_string()).expect("digits and a dot");
                    HeaderMap::from_iter([(http::HeaderName::from_static(header::COMMIT), value)])
                }));
            }
            return Ok(None);
        }
        self.put(&mut sink, rest)?;
        if hidden {
            self.open += 1;
            self.commit()?;
        }
        match sink {
            Sink::Held(pieces, _) => Ok(Some(self.outcome(crate::buffer::Kept::Memory(pieces)))),
            Sink::Open(_) => unreachable!("answered above"),
        }
    }

    /// Sends the head and what was held back.
    fn open(&mut self, sink: Sink, hidden: bool, reply: &mut Option<Reply>) -> Result<Sink, Failure> {
        let Sink::Held(pieces, _) = sink else { return Ok(sink) };
        let (writer, body) = pipe();
        let head = Head { trailer: hidden, ..self.engine.head(self.request, self.progress.commit) };
        super::send(reply, Ok(Answer::Stream(head, body)));
        let mut sink = Sink::Open(writer);
        self.put(&mut sink, pieces)?;
        Ok(sink)
    }

    fn put(&self, sink: &mut Sink, pieces: Vec<Bytes>) -> Result<(), Failure> {
        match sink {
            Sink::Held(held, bytes) => {
                *bytes += pieces.iter().map(Bytes::len).sum::<usize>();
                held.extend(pieces);
            }
            Sink::Open(writer) => {
                for piece in pieces {
                    let stalled = || {
                        self.query.stalls();
                        self.query.is_cancelled()
                    };
                    let sent = writer.send(piece, stalled);
                    self.query.flows();
                    if sent.is_err() {
                        return Err(self.query.reason().unwrap_or(Reason::Gone).into());
                    }
                }
            }
        }
        Ok(())
    }
}
