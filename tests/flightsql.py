"""Flight SQL by hand for `pyarrow.flight`, which speaks Flight but has no classes for its SQL messages.

Only what tests and bench send and read: protobuf's variable-length integers and length-delimited fields, and the commands as `Any`.
A field is given by its number, as in `FlightSql.proto` of Arrow.
"""

import pyarrow as pa
from pyarrow import flight

PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."
INT64 = 1 << 64


def varint(number):
    """Base 128, low groups first; negative numbers as two's complement of 64 bits."""
    number %= INT64
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def encode(fields):
    """A message of `{number: value}`: str, bytes, int, bool, dict (a message), or a list of these (repeated); None is left out."""
    message = b""
    for number, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if isinstance(item, int):
                message += varint(number << 3) + varint(item)
                continue
            payload = item.encode() if isinstance(item, str) else encode(item) if isinstance(item, dict) else bytes(item)
            message += varint(number << 3 | 2) + varint(len(payload)) + payload
    return message


def decode(message):
    """The fields of a message, each a list in order; a nested message stays bytes."""
    fields, at = {}, 0
    while at < len(message):
        key, at = read_varint(message, at)
        if key & 7 == 0:
            value, at = read_varint(message, at)
        elif key & 7 == 2:
            size, at = read_varint(message, at)
            value, at = bytes(message[at : at + size]), at + size
        else:
            raise ValueError(f"wire type {key & 7} is not read here")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def read_varint(message, at):
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def packed(name, fields):
    """`Any` with a message of the Flight SQL package."""
    return encode({1: PREFIX + name, 2: encode(fields)})


def unpacked(message):
    """Name and fields of an `Any`."""
    outer = decode(message)
    return outer[1][0].decode().removeprefix(PREFIX), decode(outer.get(2, [b""])[0])


def command(name, fields=None):
    return flight.FlightDescriptor.for_command(packed(name, fields or {}))


def query(sql, transaction=None):
    return command("CommandStatementQuery", {1: sql, 2: transaction})


def update(sql, transaction=None):
    return command("CommandStatementUpdate", {1: sql, 2: transaction})


MISSING = {"unspecified": 0, "create": 1, "fail": 2}
EXISTING = {"unspecified": 0, "fail": 1, "append": 2, "replace": 3}


def ingest(table, if_missing="create", if_exists="fail", schema=None, temporary=False, transaction=None):
    options = {1: MISSING[if_missing], 2: EXISTING[if_exists]}
    return command(
        "CommandStatementIngest", {1: options, 2: table, 3: schema, 5: 1 if temporary else None, 6: transaction}
    )


def changed(writer, reader):
    """The count that answers a DoPut of an update or of an ingest (two's complement, so that -1 is -1)."""
    answer = reader.read()
    if answer is None:
        writer.close()  # raises what went wrong
        raise AssertionError("neither a count nor an error")
    count = decode(answer.to_pybytes()).get(1, [0])[0]
    return count - INT64 if count >= INT64 >> 1 else count


class Client:
    """One `pyarrow.flight` connection to a mart, with the headers that a driver would send."""

    def __init__(self, address, token, mart="default/dev", headers=()):
        # Nothing that a test sends should be stopped by the client's own limits.
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.flight = flight.FlightClient(f"grpc+tcp://{address}", generic_options=options)
        pairs = {"authorization": f"Bearer {token}", "tarn-mart": mart, **dict(headers)}
        self.headers = [(name.encode(), value.encode()) for name, value in pairs.items() if value is not None]

    def options(self, timeout=60):
        return flight.FlightCallOptions(timeout=timeout, headers=self.headers)

    def info(self, descriptor):
        return self.flight.get_flight_info(descriptor, self.options())

    def schema(self, descriptor):
        return self.flight.get_schema(descriptor, self.options()).schema

    def get(self, ticket, timeout=600):
        return self.flight.do_get(ticket, self.options(timeout))

    def table(self, descriptor):
        """All rows of a command's only endpoint."""
        return self.get(self.info(descriptor).endpoints[0].ticket).read_all()

    def read(self, sql, transaction=None):
        return self.table(query(sql, transaction))

    def rows(self, sql, transaction=None):
        return [tuple(row.values()) for row in self.read(sql, transaction).to_pylist()]

    def put(self, descriptor, batches, schema, timeout=600):
        """Streams batches into a command; the count it answers with."""
        writer, reader = self.flight.do_put(descriptor, schema, self.options(timeout))
        with writer:
            for batch in batches:
                writer.write_batch(batch)
            writer.done_writing()
            return changed(writer, reader)

    def execute(self, sql, transaction=None):
        """An update; the number of changed rows."""
        return self.put(update(sql, transaction), [], pa.schema([]))

    def action(self, kind, body=b""):
        return [result.body.to_pybytes() for result in self.flight.do_action(flight.Action(kind, body), self.options())]

    def begin(self):
        (result,) = self.action("BeginTransaction", packed("ActionBeginTransactionRequest", {}))
        return unpacked(result)[1][1][0]

    def end(self, transaction, commit=True):
        self.action("EndTransaction", packed("ActionEndTransactionRequest", {1: transaction, 2: 1 if commit else 2}))

    def close(self):
        self.flight.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
