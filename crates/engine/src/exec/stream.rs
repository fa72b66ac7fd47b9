//! The last statement of a request, streamed while it runs.
//!
//! A small answer is sent whole, with its length. A larger or slower one goes out in pieces as they come; then a failure breaks the
//! body, or, where the format has a place for it, is told in the trailers. If a view or macro may hide a `nextval`, the read runs in a
//! transaction and its commit goes into the trailers. In a session a stream that is not read gives way to the session's next request:
//! it runs to its end at once, and what is left of it is kept.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    buffer::{self, Buffer},
    duck::{DuckError, ErrorKind},
    failure::Failure,
    format::{Columns, Encoder, Format},
    params::Set,
    pipe::{PipeWriter, pipe},
    queries::{Query, Reason},
    sql::Statement,
    wire::header,
};

use super::{
    Answer, Done, Head, Reply,
    script::{Run, sets, takes_parameters},
};

/// Answers up to this size go out whole.
const WHOLE_BYTES: usize = 256 << 10;
/// A query that takes longer gets its answer piece by piece.
const WHOLE_TIME: Duration = Duration::from_millis(50);
/// How often a read is run again for the reason of its failure.
const TRIES: u32 = 3;
/// Rows that wait for more are sent after this.
const LINGER: Duration = Duration::from_millis(200);

/// Where the pieces are.
enum Sink {
    /// Held back: nothing was sent yet.
    Held(Vec<Bytes>, usize),
    /// On their way.
    Open(PipeWriter),
    /// Behind those that are on their way, until the session's next request has its turn.
    Behind(PipeWriter, Buffer),
}

/// The end of an answer that was kept to let the next request have its turn.
pub struct Rest {
    writer: PipeWriter,
    kept: buffer::Kept,
    trailers: Option<HeaderMap>,
}

impl<'a> Run<'a> {
    /// Runs and answers `statement`.
    pub(super) fn stream(&mut self, statement: &Statement<'_>, reply: &mut Option<Reply>) -> Result<Done, Failure> {
        let alone = self.enter_transaction()?;
        let hidden = alone && self.engine.hidden.possible();
        if hidden {
            self.begin()?;
        }
        // An interrupt would spoil a session's transaction; an answer that nobody reads any more is just left.
        self.query.be_gentle(!alone);
        let mut sink = Sink::Held(Vec::new(), 0);
        let before = self.progress.commit;
        let pumped = self.pump(statement, hidden, &mut sink, reply).and_then(|()| {
            if hidden {
                self.statement_ran();
                self.commit()?;
            }
            Ok(())
        });
        if let Err(failure) = pumped {
            if hidden && self.kept.in_transaction() {
                let _ = self.kept.rollback();
                self.kept.close(&self.engine.hidden);
            }
            return Err(self.broken(failure, sink));
        }
        let wrote = self.progress.commit.filter(|commit| Some(*commit) != before);
        let trailers = wrote.map(|commit| trailer(header::COMMIT, &commit.to_string()));
        match sink {
            Sink::Held(pieces, _) => Ok(Done::Whole(self.outcome(buffer::Kept::Memory(pieces)))),
            Sink::Open(writer) => {
                writer.finish(trailers);
                Ok(Done::Streamed)
            }
            Sink::Behind(writer, kept) => Ok(Done::Rest(Rest { writer, kept: kept.finish()?, trailers })),
        }
    }

    fn pump(
        &mut self,
        statement: &Statement<'_>,
        hidden: bool,
        sink: &mut Sink,
        reply: &mut Option<Reply>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        let mut flushed = started;
        let mut encoder: Option<Encoder> = None;
        let rows = self.rows()?;
        'all: for set in sets(self.request, rows.as_ref(), takes_parameters(statement)) {
            let mut prepared = self.prepare(statement.text, set)?;
            let mut result = match prepared.stream() {
                Ok(result) => result,
                Err(error) => return Err(self.reason_of(error, statement, set)),
            };
            let encoder = match &mut encoder {
                Some(encoder) => encoder,
                empty => {
                    // SAFETY: the result is valid and stays ours.
                    let columns = unsafe { Columns::of_result(result.raw()) };
                    empty.insert(Encoder::new(self.request.format, columns, self.options())?)
                }
            };
            loop {
                let chunk = match result.next_chunk() {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => break,
                    Err(error) => {
                        drop((result, prepared));
                        return Err(self.reason_of(error, statement, set));
                    }
                };
                // SAFETY: the chunk is of the result that the columns are of, or of one of the same statement.
                unsafe { encoder.push(chunk.raw()) }?;
                drop(chunk);
                let held = matches!(sink, Sink::Held(..));
                if !held && flushed.elapsed() > LINGER || held && started.elapsed() > WHOLE_TIME {
                    encoder.flush();
                    flushed = Instant::now();
                    self.open(sink, hidden, reply)?;
                }
                self.put(sink, encoder.take_ready())?;
                if matches!(sink, Sink::Held(_, bytes) if *bytes > WHOLE_BYTES) {
                    self.open(sink, hidden, reply)?;
                }
                if encoder.is_full() {
                    break 'all;
                }
            }
        }
        let encoder = encoder.ok_or_else(no_sets)?;
        self.put(sink, encoder.finish())
    }

    /// What an error of a read means. One thread's failure stops the others, and DuckDB sometimes tells only that this one was stopped:
    /// then the read is run again, to hear why.
    fn reason_of(&mut self, mut error: DuckError, statement: &Statement<'_>, set: Option<Set<'_>>) -> Failure {
        for _ in 0..TRIES {
            // In a transaction the failure has ended it, and nothing more can be asked.
            if error.kind != ErrorKind::Interrupt || self.query.is_cancelled() || self.kept.in_transaction() {
                break;
            }
            let mut prepared = match self.prepare(statement.text, set) {
                Ok(prepared) => prepared,
                Err(failure) => return failure,
            };
            let drained = prepared.stream().and_then(|mut result| {
                while result.next_chunk()?.is_some() {}
                Ok(())
            });
            match drained {
                Ok(()) => break,
                Err(again) => error = again,
            }
        }
        self.duck(&error)
    }

    /// Sends the head and what was held back.
    fn open(&mut self, sink: &mut Sink, hidden: bool, reply: &mut Option<Reply>) -> Result<(), Failure> {
        let Sink::Held(pieces, _) = sink else { return Ok(()) };
        let pieces = std::mem::take(pieces);
        let (writer, body) = pipe();
        let mut head = self.engine.head(self.request, self.progress.commit);
        head.trailers.extend(hidden.then_some(header::COMMIT));
        head.trailers.extend((self.request.format == Format::Flight).then_some(header::ERROR));
        super::send(reply, Ok(Answer::Stream(head, body)));
        *sink = Sink::Open(writer);
        self.put(sink, pieces)
    }

    fn put(&self, sink: &mut Sink, pieces: Vec<Bytes>) -> Result<(), Failure> {
        for piece in pieces {
            match sink {
                Sink::Held(held, bytes) => {
                    *bytes += piece.len();
                    held.push(piece);
                }
                Sink::Behind(_, kept) => kept.push(vec![piece])?,
                Sink::Open(writer) => {
                    let gives_way = || self.session.is_some_and(|others| others.wait());
                    match give(writer, piece.clone(), self.query, gives_way) {
                        Given::Taken => {}
                        Given::Stopped(reason) => return Err(reason.into()),
                        Given::GivesWay => self.fall_behind(sink, piece)?,
                    }
                }
            }
        }
        Ok(())
    }

    fn fall_behind(&self, sink: &mut Sink, piece: Bytes) -> Result<(), Failure> {
        if let Sink::Open(writer) = std::mem::replace(sink, Sink::Held(Vec::new(), 0)) {
            let mut kept = Buffer::new(self.engine.spool.clone());
            kept.push(vec![piece])?;
            *sink = Sink::Behind(writer, kept);
        }
        Ok(())
    }

    /// A failure of an answer whose first byte is sent breaks the body; Flight's has trailers that say why.
    fn broken(&self, failure: Failure, sink: Sink) -> Failure {
        if let (Sink::Open(writer) | Sink::Behind(writer, _), Format::Flight) = (sink, self.request.format) {
            let body = failure.body(self.progress.committed, self.progress.commit.is_some());
            let text = serde_json::to_string(&body).expect("a plain struct has a JSON form");
            writer.finish(Some(trailer(header::ERROR, &utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string())));
        }
        failure
    }
}

enum Given {
    Taken,
    GivesWay,
    Stopped(Reason),
}

/// Hands a piece over; waits for its reader as long as nothing else is to be done.
fn give(writer: &PipeWriter, piece: Bytes, query: &Query, gives_way: impl Fn() -> bool) -> Given {
    let stalled = || {
        query.stalls();
        query.is_cancelled() || gives_way()
    };
    let sent = writer.send(piece, stalled);
    query.flows();
    match sent {
        Ok(()) => Given::Taken,
        Err(_) => match query.reason() {
            Some(reason) => Given::Stopped(reason),
            None if writer.is_gone() => Given::Stopped(Reason::Gone),
            None => Given::GivesWay,
        },
    }
}

impl Rest {
    /// A whole answer that was kept in a file, as the rest of one of which nothing was sent.
    pub(super) fn new(writer: PipeWriter, kept: buffer::Kept) -> Self {
        Self { writer, kept, trailers: None }
    }

    /// Sends it. What breaks on the way breaks the body.
    pub fn send(self, query: &Query) {
        let give = |piece| matches!(give(&self.writer, piece, query, || false), Given::Taken);
        let sent = match self.kept {
            buffer::Kept::Memory(pieces) => pieces.into_iter().all(give),
            buffer::Kept::File(mut file, _room) => loop {
                match buffer::next_piece(&mut file) {
                    Ok(None) => break true,
                    Ok(Some(piece)) => {
                        if !give(piece) {
                            break false;
                        }
                    }
                    Err(_) => break false,
                }
            },
        };
        if sent {
            self.writer.finish(self.trailers);
        }
    }
}

pub(super) fn no_sets() -> Failure {
    Failure::new(crate::wire::Code::Invalid, "there is no set of parameters to run the statement with")
}

fn trailer(name: &'static str, value: &str) -> HeaderMap {
    let value = HeaderValue::from_str(value).expect("digits, dots and percent-encoded text are visible ASCII");
    HeaderMap::from_iter([(HeaderName::from_static(name), value)])
}

impl Head {
    /// The names of its trailers as a header's value.
    pub fn trailer_names(&self) -> Option<String> {
        (!self.trailers.is_empty()).then(|| self.trailers.join(", "))
    }
}
