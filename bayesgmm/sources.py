"""Tables of any length, a block of rows at a time: the numbers of the chosen columns beside the rows as they stood."""

from __future__ import annotations

import codecs
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bayesgmm.delimited import MORE_FIELDS, OPEN_QUOTE, UNREAD, Records, parse_numbers, split_records
from bayesgmm.exceptions import DataError
from bayesgmm.formats import SAMPLE_BYTES, damage_told, default_names, fields, file_kind, text_layout
from bayesgmm.io import as_floats

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FAULTS", "Block", "FrameSource", "TextSource", "open_source"]

FAULTS = ("ok", "missing", "not a number", "infinite")
"""What may be wrong with a row, by the number that stands for it."""

BLOCK_BYTES = 1 << 22
BLOCK_ROWS = 1 << 16
READING = {"pre_buffer": False, "buffer_size": 1 << 16}
"""Of Parquet: neither the file, which pyarrow would fetch ahead, nor a row group is ever in memory as a whole."""

_LONGEST_RECORD = 1 << 26
_MOST_FIELDS = 1 << 16
_NOT_THERE = {
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null",
}  # fmt: skip
"""What pandas takes for a missing value."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive rows of a table.

    Attributes
    ----------
    values : ndarray of shape (n, D), float64
        The chosen columns; NaN where there is no finite number.
    faults : ndarray of shape (n, D), int8
        Places in ``FAULTS``.
    places : ndarray of shape (n,), int64
        Lines of a text file, rows of another, from 1.
    records : Records or None
        The text of the rows, blank lines included, where they were read from text.
    frame : DataFrame or None
        The rows where they were not.
    batch : pyarrow.RecordBatch or None
        The rows where they were read from Parquet.
    """

    values: NDArray[np.float64]
    faults: NDArray[np.int8]
    places: NDArray[np.int64]
    records: Records | None = None
    frame: pd.DataFrame | None = None
    batch: Any = None


class TextSource:
    """A table of delimited text, read once from its start to its end.

    Parameters
    ----------
    stream : binary file
        Behind ``head``.
    head : bytes
        What was read already.
    name : str
        What to call it in messages.
    size : int or None
        Bytes in all, where known.
    block_bytes : int, default 4 MiB

    Attributes
    ----------
    layout : TextLayout
    names : list of str
        Of the columns; x1, x2, … without a header.
    named : bool
        Whether they are the file's own.
    row_names : int
        1 where the first field of a row is its name, else 0.
    header : bytes
        All that stands before the end of the header's line, a byte order mark included; empty without a header.
    before_rows : bytes
        All that stands before the first row where there is no header.
    newline : bytes
        The end of the first line.
    codec : str
        Of ``header`` and of the records: ``utf-8`` or ``latin-1``.
    byte_order_mark : bytes
        Of a file in UTF-16, which is read and is to be written through UTF-8.
    n_fields : int
        Of a row.
    place : str
        ``"line"``.
    """

    place = "line"

    def __init__(
        self, stream: BinaryIO, head: bytes, name: str, size: int | None = None, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self.name, self.layout = name, text_layout(head, name)
        self._stream, self._size, self._block_bytes = stream, size, block_bytes
        self._read_bytes = len(head)
        self._decoder = codecs.getincrementaldecoder("utf-16")() if self.layout.encoding == "utf-16" else None
        self.byte_order_mark = head[:2] if self._decoder else b""
        self._buffer, self._at_end, self._lines = self._recoded(head), False, 0
        self._left: int | None = None
        self.codec = "latin-1" if self.layout.encoding == "latin-1" else "utf-8"
        mark = codecs.BOM_UTF8 if self._buffer.startswith(codecs.BOM_UTF8) else b""
        self._buffer = self._buffer[len(mark) :]
        first, before = self._first_record()
        cells = fields(
            first.data[first.starts[0] : first.stops[0]].tobytes().decode(self.codec, "replace"), self.layout.delimiter
        )
        self.newline = first.data[first.stops[0] : first.ends[0]].tobytes() or b"\n"
        self.named = self.layout.has_header
        self.header, self.before_rows, self.row_names = b"", b"", 0
        if self.named:
            if self.layout.surplus > 1:
                raise DataError(f"cannot read {name}: the rows have more fields than the header")
            self.row_names = max(0, self.layout.surplus)
            self.header = mark + before + self._buffer[: first.stops[0]]
            self._lines += int(first.lines[0]) + self._buffer[: first.ends[0]].count(b"\n", int(first.starts[0]))
            self._lines += self.newline == b"\r"
            self._buffer = self._buffer[first.ends[0] :]
            self.names = cells
        else:
            self.names = default_names(len(cells))
            self.before_rows = mark + before
        self.n_fields = len(self.names) + self.row_names
        self._wanted = np.empty(0, dtype=np.int64)

    @property
    def progress(self) -> float | None:
        """Share that has been read, where the size is known."""
        return min(1.0, self._read_bytes / self._size) if self._size else None

    @property
    def candidates(self) -> list[int]:
        """Columns that may be features when they are told by position: all but row names without a name."""
        unnamed = self.layout.unnamed_first and len(self.names) > 1 and not self.row_names
        return list(range(int(unnamed), len(self.names)))

    def choose(self, columns: Sequence[int]) -> None:
        """Say which columns, by their place in ``names``, are to be read as numbers."""
        self._wanted = np.array(columns, dtype=np.int64) + self.row_names

    def blocks(self) -> Iterator[Block]:
        """Yield the rows, as many at a time as stand in about ``block_bytes``.

        Raises
        ------
        DataError
            Where a row has more fields than the header (or the first row), or a quoted field does not end; with its line.
        """
        for records in self._pieces(np.arange(self.n_fields, dtype=np.int64)):
            yield self._block(records)

    @property
    def can_be_split(self) -> bool:
        """Whether a record begins at some byte of the file: not so of a file in UTF-16, which is read through UTF-8."""
        return self._decoder is None

    def cuts(self, n: int) -> list[tuple[int, int, int, int]]:
        """Where to cut the rows into at most n parts of about the same size, no record being parted: the file is read to its end.

        Quotes are looked at as in reading, so that a newline within them ends no record.

        Returns
        -------
        list of (start, stop, lines, rows)
            Bytes where a part begins and ends; lines and rows above it.
        """
        begin = self._read_bytes - len(self._buffer)
        each = max(1, -(-((self._size or 0) - begin) // n))
        found = [(begin, self._lines, 0)]
        above, rows = begin, 0
        for records in self._pieces(np.full(self.n_fields, -1, dtype=np.int64)):
            while (at := int(np.searchsorted(records.starts, found[-1][0] + each - above))) < len(records):
                before = rows + int(np.count_nonzero(records.n_fields[:at]))
                found.append((above + int(records.starts[at]), self._lines + int(records.lines[at]), before))
            above += int(records.ends[-1])
            rows += int(np.count_nonzero(records.n_fields))
        stops = [start for start, _, _ in found[1:]] + [above]
        return [(start, stop, lines, before) for (start, lines, before), stop in zip(found, stops, strict=True)]

    def go_to(self, start: int, stop: int, lines: int) -> None:
        """Read the rows between two bytes, as :meth:`cuts` says them, and no others."""
        self._stream.seek(start)
        self._buffer, self._at_end, self._lines = b"", False, lines
        self._read_bytes, self._left = start, stop - start

    def _pieces(self, slots: NDArray[np.int64]) -> Iterator[Records]:
        """Records, as many at a time as stand in about ``block_bytes``; ``slots`` as for ``split_records``."""
        while True:
            if not self._at_end and len(self._buffer) < self._block_bytes:
                self._fill(self._block_bytes)
            records, consumed, n_lines, outcome = split_records(
                np.frombuffer(self._buffer, dtype=np.uint8), ord(self.layout.delimiter), slots, self._at_end
            )
            if outcome == MORE_FIELDS and not len(records):
                raise DataError(
                    f"cannot read {self.name}: line {self._lines + 1} has more fields than the {self._heading()}, "
                    f"which has {self.n_fields}"
                )
            self._check_complete(records, outcome)
            if len(records):
                yield records
            elif self._at_end:
                return
            else:
                self._fill(len(self._buffer) + self._block_bytes)
            self._buffer = self._buffer[consumed:]
            self._lines += n_lines

    def _heading(self) -> str:
        return "header" if self.named else "first row"

    def _check_complete(self, records: Records, outcome: int) -> None:
        if len(records):
            return
        if outcome == OPEN_QUOTE:
            raise DataError(
                f"cannot read {self.name}: a quoted field that begins in line {self._lines + 1} does not end"
            )
        if len(self._buffer) > _LONGEST_RECORD:
            raise DataError(
                f"cannot read {self.name}: the row at line {self._lines + 1} is longer than {_LONGEST_RECORD >> 20} MiB; "
                "is a quote not closed?"
            )

    def _first_record(self) -> tuple[Records, bytes]:
        """The first record that is no blank line; the buffer begins there. And what stood before it."""
        slots, before = np.full(_MOST_FIELDS, -1, dtype=np.int64), b""
        while True:
            records, consumed, n_lines, outcome = split_records(
                np.frombuffer(self._buffer, dtype=np.uint8), ord(self.layout.delimiter), slots, self._at_end, limit=1
            )
            if outcome == MORE_FIELDS:
                raise DataError(f"cannot read {self.name}: its first line has more than {_MOST_FIELDS} fields")
            self._check_complete(records, outcome)
            if len(records) and records.n_fields[0] > 0:
                return records, before
            if len(records):
                before += self._buffer[:consumed]
                self._buffer, self._lines = self._buffer[consumed:], self._lines + n_lines
            elif self._at_end:
                raise DataError(f"{self.name} is empty")
            else:
                self._fill(len(self._buffer) + self._block_bytes)

    def _fill(self, size: int) -> None:
        parts, held = [self._buffer], len(self._buffer)
        while held < size and not self._at_end:
            try:
                raw = self._stream.read(size - held if self._left is None else min(size - held, self._left))
            except OSError as error:
                raise DataError(f"cannot read {self.name}: {error.strerror or error}") from error
            self._at_end = not raw
            self._read_bytes += len(raw)
            if self._left is not None:
                self._left -= len(raw)
            parts.append(self._recoded(raw, final=self._at_end))
            held += len(parts[-1])
        self._buffer = b"".join(parts)

    def _recoded(self, raw: bytes, final: bool = False) -> bytes:
        if self._decoder is None:
            return raw
        try:
            return self._decoder.decode(raw, final).encode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"cannot read {self.name}: it is not UTF-16 throughout ({error.reason})") from error

    def _block(self, records: Records) -> Block:
        rows = records.rows()
        chosen = Records(
            rows.data, rows.starts, rows.stops, rows.ends, rows.n_fields, rows.lines, rows.bounds[:, self._wanted]
        )
        values, states = parse_numbers(chosen, ord(self.layout.decimal))
        faults = (states > 0).astype(np.int8)
        for n, j in np.argwhere(states == UNREAD):
            begin, end = chosen.bounds[n, j]
            values[n, j], faults[n, j] = _look_at(self._buffer[begin:end], self.codec, self.layout.decimal)
        return Block(values, faults, rows.lines + self._lines + 1, records)

    def cell(self, block: Block, row: int, column: int) -> str:
        """The text of a cell of the chosen columns."""
        records = block.records
        assert records is not None
        begin, end = records.rows().bounds[row, self._wanted[column]]
        return records.data[begin:end].tobytes().decode(self.codec, "replace")


@lru_cache(maxsize=4096)
def _look_at(raw: bytes, codec: str, decimal: str) -> tuple[float, int]:
    """A cell that is no plain number: its value and its fault."""
    text = raw.decode(codec, "replace").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if text in _NOT_THERE:
        return np.nan, 1
    if text in ("True", "False"):
        return float(text == "True"), 0
    if "_" in text or (decimal != "." and "." in text):
        return np.nan, 2
    try:
        value = float(text.replace(decimal, "."))
    except ValueError:
        return np.nan, 2
    return (value, 0) if math.isfinite(value) else (np.nan, 3)


class FrameSource:
    """A table that comes as frames: of a Parquet file, or of an array.

    Parameters
    ----------
    name : str
        What to call it in messages.
    frames : iterator of (DataFrame, pyarrow.RecordBatch or None)
    names : sequence of str
    named : bool
        Whether the names are the file's own.
    n_rows : int
        In all.
    schema : pyarrow.Schema or None
    """

    place = "row"

    def __init__(
        self,
        name: str,
        frames: Iterator[tuple[pd.DataFrame, Any]],
        names: Sequence[str],
        named: bool,
        n_rows: int,
        schema: Any = None,
    ) -> None:
        self.name, self._frames, self.names, self.named = name, frames, list(names), named
        self.schema = schema
        self._n_rows, self._done = n_rows, 0
        self._chosen: list[int] = []

    @property
    def progress(self) -> float | None:
        """Share that has been read."""
        return self._done / self._n_rows if self._n_rows else None

    @property
    def candidates(self) -> list[int]:
        """Columns that may be features when they are told by position."""
        return list(range(len(self.names)))

    def choose(self, columns: Sequence[int]) -> None:
        """Say which columns, by their place in ``names``, are to be read as numbers."""
        self._chosen = list(columns)

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in blocks."""
        for frame, batch in self._frames:
            values = np.empty((len(frame), len(self._chosen)))
            faults = np.zeros(values.shape, dtype=np.int8)
            for place, j in enumerate(self._chosen):
                numbers, is_text = as_floats(frame.iloc[:, j])
                infinite = np.isinf(numbers)
                faults[:, place] = np.select([is_text, infinite, np.isnan(numbers)], [2, 3, 1], 0)
                values[:, place] = np.where(infinite, np.nan, numbers)
            places = np.arange(self._done + 1, self._done + len(frame) + 1)
            self._done += len(frame)
            yield Block(values, faults, places, frame=frame, batch=batch)

    def cell(self, block: Block, row: int, column: int) -> str:
        """The text of a cell of the chosen columns."""
        assert block.frame is not None
        return str(block.frame.iloc[row, self._chosen[column]])


@contextmanager
def open_source(
    source: str | os.PathLike[str], *, block_bytes: int = BLOCK_BYTES, block_rows: int = BLOCK_ROWS
) -> Iterator[TextSource | FrameSource]:
    """Open a table to be read in blocks: text, Parquet or ``.npy``, whatever its content says.

    Parameters
    ----------
    source : str or path
        ``"-"`` is standard input.
    block_bytes : int, default 4 MiB
        Of text.
    block_rows : int, default 65536
        Of a table that is no text.

    Yields
    ------
    TextSource or FrameSource

    Raises
    ------
    DataError
        Where it cannot be read, is empty, or is none of these formats.
    """
    standard = str(source) == "-"
    name = "standard input" if standard else os.fspath(source)
    with ExitStack() as stack:
        try:
            stream = sys.stdin.buffer if standard else stack.enter_context(open(source, "rb"))
            head = stream.read(SAMPLE_BYTES)
        except IsADirectoryError as error:
            raise DataError(f"cannot read {name}: it is a folder, not a table") from error
        except OSError as error:
            raise DataError(f"cannot read {name}: {error.strerror or error}") from error
        kind = file_kind(head, name)
        if kind == "text":
            size = None if standard else os.fstat(stream.fileno()).st_size
            yield TextSource(stream, head, name, size, block_bytes)
            return
        path = os.fspath(source)
        if standard or not stream.seekable():
            # these formats are not read from start to end
            spool = stack.enter_context(tempfile.NamedTemporaryFile(prefix="bayesgmm-", suffix=f".{kind}"))
            spool.write(head)
            shutil.copyfileobj(stream, spool)
            spool.flush()
            path = spool.name
        yield (_parquet if kind == "parquet" else _array)(path, name, block_rows)


def _parquet(path: str, name: str, block_rows: int) -> FrameSource:
    import pandas as pd

    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"cannot read {name}: Parquet needs pyarrow; install it with pip install 'bayesgmm[parquet]'"
        ) from error
    with damage_told(name):
        file = pq.ParquetFile(path, **READING)

    def frames() -> Iterator[tuple[pd.DataFrame, Any]]:
        with damage_told(name):
            for batch in file.iter_batches(batch_size=block_rows):
                # Arrow's own types: integers with gaps stay integers
                yield batch.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True), batch

    schema = file.schema_arrow
    return FrameSource(name, frames(), schema.names, True, file.metadata.num_rows, schema)


def _array(path: str, name: str, block_rows: int) -> FrameSource:
    import pandas as pd

    with damage_told(name):
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    structured = array.dtype.names is not None and array.ndim == 1
    if not structured:
        if array.ndim not in (1, 2):
            raise DataError(f"{name} holds an array of shape {array.shape}; expected observations × features")
        array = array[:, None] if array.ndim == 1 else array
    names = list(array.dtype.names or ()) if structured else default_names(array.shape[1])

    def frames() -> Iterator[tuple[pd.DataFrame, Any]]:
        for start in range(0, len(array), block_rows):
            part = np.array(array[start : start + block_rows])
            yield (pd.DataFrame(part) if structured else pd.DataFrame(part, columns=names)), None

    return FrameSource(name, frames(), names, structured, len(array))
