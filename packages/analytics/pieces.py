"""A stream of Arrow in batches that fit into messages of Flight, whatever the batches are that it comes in."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

# The server refuses messages of 64 MB. Smaller ones keep both sides busy, and few bytes in flight.
PIECE_BYTES = 8 << 20


def pieces(reader: pa.RecordBatchReader, limit_bytes: int = PIECE_BYTES) -> Iterator[pa.RecordBatch]:
    """The reader's rows in their order, in batches of at most `limit_bytes`, or of one row.

    A stream without rows gives one empty batch: the driver sends nothing at all for a stream without batches.
    """
    empty = True
    for batch in reader:
        if batch.num_rows:
            empty = False
            yield from _split(batch, limit_bytes)
    if empty:
        yield pa.RecordBatch.from_pylist([], schema=reader.schema)


def _split(batch: pa.RecordBatch, limit_bytes: int) -> Iterator[pa.RecordBatch]:
    # A stack, since rows may be of very different sizes and each half has to be looked at anew.
    waiting = [batch]
    while waiting:
        piece = waiting.pop()
        if piece.num_rows == 1 or _bytes(piece) <= limit_bytes:
            yield piece
            continue
        half = piece.num_rows // 2
        waiting += [piece.slice(half), piece.slice(0, half)]


def _bytes(batch: pa.RecordBatch) -> int:
    """What its rows take. Dictionaries don't count: each part of a batch has to carry them whole."""
    return sum(column.indices.nbytes if pa.types.is_dictionary(column.type) else column.nbytes for column in batch.columns)
