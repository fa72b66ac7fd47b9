//! Everything that reads bytes of a client's making, in one place, for the tests that damage them and for `fuzz/`.
//!
//! None of it may panic or ask for memory that the bytes don't account for.

use arrow_flight::{Action, CancelFlightInfoRequest, FlightData, FlightDescriptor, Ticket};
use prost::Message;

use super::frames::{ipc_pieces, only_message};
use super::get::handle_of;
use super::options::Options;
use super::paper::Seal;
use super::put::parse_command;
use super::run::{needs_session, only_reads};
use arrow_flight::sql::Command;

/// Reads them as each of the things that a client may send; whether any of it was whole.
pub fn read(bytes: &[u8]) -> bool {
    let ticket = only_message::<Ticket>(bytes).or_else(|_| Ticket::decode(bytes));
    let handle = ticket.ok().and_then(|ticket| handle_of(&ticket).ok());
    let seal = Seal::for_tests();
    let signed = seal.opens(bytes) | handle.as_ref().is_some_and(|handle| seal.opens(handle));
    let command =
        FlightDescriptor::decode(bytes).map_or_else(|_| parse_command(bytes), |found| parse_command(&found.cmd));
    if let Ok(Command::CommandStatementQuery(query)) = &command {
        let _ = (only_reads(&query.query), needs_session(&query.query));
    }
    let action = Action::decode(bytes).is_ok_and(|action| super::actions::is_whole(&action));
    let info = CancelFlightInfoRequest::decode(bytes).is_ok();
    let pieces = FlightData::decode(bytes).is_ok_and(|data| ipc_pieces(data).is_ok());
    signed | command.is_ok() | action | info | pieces | Options::decode(bytes).is_ok()
}

/// A ticket that [`read`] takes for genuine, to be damaged.
pub fn sample() -> Vec<u8> {
    let handle = Seal::for_tests().sample();
    super::frames::framed(&super::get::ticket_of(handle)).to_vec()
}
