"""Tables of any length as blocks that can be read again and again: files, folders of them, arrays, or what yields blocks.

A fit reads the blocks once for each of its steps (``core/blocks.py``). Two blocks are read ahead of the one that is worked on, so that
reading costs no time of its own where it is the faster of the two, and no more than four blocks are ever in memory.
"""

from __future__ import annotations

import copy
import glob
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bayesgmm.core import threads
from bayesgmm.core.blocks import Task
from bayesgmm.core.parameters import FloatArray
from bayesgmm.exceptions import DataError
from bayesgmm.formats import SAMPLE_BYTES, damage_told, default_names, file_kind
from bayesgmm.io import Table, as_floats, quoted
from bayesgmm.sources import FAULTS, READING, TextSource, open_source

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LARGE_BYTES", "BlockTable", "Source", "bytes_on_disk", "is_several", "open_blocks", "read_all"]

AHEAD = 2
"""Blocks that are read while one is in use: with one, the reader would wait for its user to wake."""

TRIAL = 4
"""Blocks of a pass after which it is known what takes longer, to read them or to use them."""

BLOCK_BYTES = 1 << 23
MOST_ROWS, FEWEST_ROWS = 1 << 17, 1 << 12
SUFFIXES = {".parquet": "Parquet", ".pq": "Parquet", ".npy": ".npy", ".csv": "text", ".tsv": "text", ".txt": "text"}
"""Files of a folder that are tables."""

Source = str | os.PathLike[str] | Sequence[Any] | Iterable[Any] | Callable[[], Iterable[Any]]


class Pace:
    """What reading and using the blocks of a pass take, and how many threads use them.

    One core is left to the reader, unless it has little to do: two threads that wait for each other's chunks on a core that is busy with
    reading take longer than one. What a pass shows is held to from its fifth block on, and from the next pass's first.
    """

    def __init__(self) -> None:
        self._reader_idles = False
        self._read_seconds: list[float] = []
        self._use_seconds: list[float] = []

    def begin(self) -> None:
        """Start a pass."""
        self._read_seconds, self._use_seconds = [], []

    def reading[T](self, pieces: Iterator[T]) -> T | None:
        """Read the next of the pieces, and time it; None behind the last."""
        begin = time.perf_counter()
        piece = next(pieces, None)
        if piece is not None and len(self._read_seconds) <= TRIAL:
            self._read_seconds.append(time.perf_counter() - begin)
        return piece

    @contextmanager
    def using(self, number: int) -> Iterator[None]:
        """Time the use of a block, and say on how many threads that may be."""
        if number == TRIAL:
            self.judge()
        cores = threads.available_threads()
        begin = time.perf_counter()
        with threads.at_most(self._threads(cores)):
            yield
        if number < TRIAL:
            self._use_seconds.append(time.perf_counter() - begin)

    def judge(self) -> None:
        """Whether the reader idles, from the blocks so far."""
        cores = threads.available_threads()
        # The least: the first block opens the file.
        used = min(self._use_seconds, default=0.0) * self._threads(cores) / max(1, cores - 1)
        self._reader_idles = min(self._read_seconds, default=0.0) < used / 3

    def _threads(self, cores: int) -> int:
        return cores if self._reader_idles else max(1, cores - 1)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some consecutive rows.

    Parameters
    ----------
    values : ndarray of shape (n, D)
        The chosen columns, float64 or float32, C-contiguous.
    first : int
        Number of the first row in its part, from 1.
    """

    values: FloatArray
    first: int


class Part(Protocol):
    """A file, an array, or all blocks that an iterable yields.

    Attributes
    ----------
    name : str
        What to call it in messages.
    names : tuple of str or None
        Of its columns; None where they have no names.
    n_columns : int
    """

    name: str
    names: tuple[str, ...] | None
    n_columns: int

    def rows(self, columns: Sequence[int], names: Sequence[str], n_rows: int) -> Iterator[Rows]:
        """The chosen columns, about ``n_rows`` rows at a time, from the start."""


class BlockTable:
    """A table of numbers that is read in blocks, as often as asked. Made by :func:`bayesgmm.open_blocks`.

    Iterating gives the blocks, arrays (n, D).

    Attributes
    ----------
    n_features : int
        D.
    columns : tuple of D str
        Names of the features: x1, x2, … where there are none.
    named : bool
        Whether they are the table's own.
    source : str
        What it was opened from.
    parts : tuple of Part
        Its files, one after another.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        columns: Sequence[str] | None = None,
        weights: str | None = None,
        source: str = "",
        n_rows: int | None = None,
    ) -> None:
        first = parts[0]
        self.named = first.names is not None
        known = tuple(default_names(first.n_columns) if first.names is None else first.names)
        self.columns = tuple(name for name in known if name != weights) if columns is None else tuple(columns)
        self.weights = weights
        self.source = source or first.name
        self.n_features = len(self.columns)
        wanted = (*self.columns, *(() if weights is None else (weights,)))
        if columns is not None and weights in self.columns:
            raise DataError(f"the column {weights!r} holds the weights, so it cannot be a feature")
        if len(set(wanted)) < len(wanted):
            raise DataError(f"a column is chosen twice: {quoted(wanted)}")
        if not self.columns:
            raise DataError(f"{self.source} has no column to fit")
        self._wanted = wanted
        self.parts = tuple(parts)
        self._places = [(part, _places(part, wanted, known, first.name, columns is None)) for part in parts]
        self._n_rows = n_rows or int(np.clip(BLOCK_BYTES // (8 * len(wanted)), FEWEST_ROWS, MOST_ROWS))
        self._pace = Pace()

    def split(self, n: int) -> list[BlockTable]:
        """Tables of one file each, or of a part of one where there are fewer than ``n`` files; in the order of the rows."""
        each = -(-n // len(self.parts))
        pieces = [piece for part in self.parts for piece in (part.split(each) if hasattr(part, "split") else [part])]
        return [BlockTable([piece], self.columns, self.weights, self.source, self._n_rows) for piece in pieces]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, columns={list(self.columns)})"

    def __iter__(self) -> Iterator[FloatArray]:
        """Blocks (n, D), in order."""
        for values, _ in self.weighted_blocks():
            yield values

    def total(self, task: Task) -> Any:
        """Sum of ``task(X, v, block)`` over all blocks, added in their order.

        Parameters
        ----------
        task : callable
            ``v`` is None without a column of weights.

        Raises
        ------
        DataError
            If a block cannot be read, or has no finite number somewhere: file, block and row are named.
        """
        result = None
        for part in self.each(task):
            result = part if result is None else result + part
        if result is None:
            raise DataError(f"{self.source} has no rows: there is nothing to fit")
        return result

    def each(self, task: Task, first: int = 0) -> Iterator[Any]:
        """What ``task(X, v, block)`` returns of every block, in their order, which are numbered from ``first``; see :meth:`total`."""
        pace, number = self._pace, 0
        pace.begin()
        for number, (values, v) in enumerate(self._blocks(pace)):
            with pace.using(number):
                part = task(values, v, first + number)
            yield part
        if number < TRIAL:
            pace.judge()

    def weighted_blocks(self) -> Iterator[tuple[FloatArray, FloatArray | None]]:
        """Blocks (n, D) with their weights (n,) or None, in order, read while those before them are in use."""
        return self._blocks(Pace())

    def _blocks(self, pace: Pace) -> Iterator[tuple[FloatArray, FloatArray | None]]:
        pieces = self._read()
        reader = ThreadPoolExecutor(1, thread_name_prefix="bayesgmm-reader")

        def read(core: int) -> tuple[Part, int, Rows] | None:
            threads.move_off(core)
            return pace.reading(pieces)

        try:
            coming = deque(reader.submit(read, threads.current_core()) for _ in range(AHEAD))
            while (piece := coming.popleft().result()) is not None:
                coming.append(reader.submit(read, threads.current_core()))
                yield self._checked(*piece)
        finally:
            reader.shutdown(cancel_futures=True)

    def _read(self) -> Iterator[tuple[Part, int, Rows]]:
        for part, places in self._places:
            for number, rows in enumerate(part.rows(places, self._wanted, self._n_rows), start=1):
                if len(rows.values):
                    yield part, number, rows

    def _checked(self, part: Part, number: int, rows: Rows) -> tuple[FloatArray, FloatArray | None]:
        """The rows, all finite, and their weights; by the thread that uses them, as the other has more to do."""
        values, D = rows.values, self.n_features
        # A sum is finite where every number is, but for overflow, which the second look forgives.
        with np.errstate(over="ignore", invalid="ignore"):
            total = values.sum()
        if not np.isfinite(total) and not np.isfinite(values).all():
            raise DataError(self._not_finite(part, number, rows))
        if self.weights is None:
            return values, None
        v = np.ascontiguousarray(values[:, D], dtype=np.float64)
        if v.min() < 0:
            row = int(np.argmax(v < 0))
            raise DataError(f"{part.name}: row {rows.first + row} has the weight {v[row]:g}; weights are not negative")
        return np.ascontiguousarray(values[:, :D]), v

    def _not_finite(self, part: Part, number: int, rows: Rows) -> str:
        bad = np.argwhere(~np.isfinite(rows.values))
        row, column = (int(i) for i in bad[0])
        what = "missing (NaN)" if np.isnan(rows.values[row, column]) else "infinite"
        more = f" (and {len(bad) - 1} more in this block)" if len(bad) > 1 else ""
        return (
            f"{part.name}: row {rows.first + row}, column {self._wanted[column]!r}, in block {number}: {what}{more}; "
            "drop or fill such rows first"
        )


def _places(part: Part, wanted: Sequence[str], known: Sequence[str], first: str, all_columns: bool) -> tuple[int, ...]:
    """Where the wanted columns stand in a part: by name, or in order where it has none."""
    if part.names is None:
        if part.n_columns != len(known):
            raise DataError(f"{part.name} has {part.n_columns} columns, and {first} has {len(known)}")
        missing = [name for name in wanted if name not in known]
        if missing:
            raise DataError(f"{part.name} has no column {quoted(missing)}; its columns are {quoted(known, 20)}")
        return tuple(known.index(name) for name in wanted)
    missing = [name for name in wanted if name not in part.names]
    if missing:
        raise DataError(f"{part.name} has no column {quoted(missing)}; its columns are {quoted(part.names, 20)}")
    surplus = [name for name in part.names if name not in known]
    if all_columns and surplus:
        raise DataError(
            f"{part.name} has the column{'s' * (len(surplus) > 1)} {quoted(surplus)}, which {first} has not: choose the columns to fit"
        )
    return tuple(part.names.index(name) for name in wanted)


def open_blocks(
    source: Source,
    *,
    columns: Sequence[str] | None = None,
    weights: str | None = None,
    block_rows: int | None = None,
) -> BlockTable:
    """Open a table of any length, to be fitted without ever standing in memory.

    Parameters
    ----------
    source : path, array-like of shape (N, D), list of these, or iterable
        A file (CSV, TSV, Parquet or ``.npy``; its content says which), a folder of such files, a pattern such as
        ``"data/*.parquet"``, a list of these; an array, a memory map included, or a DataFrame; or what yields blocks of rows, arrays
        or DataFrames, anew each time it is iterated: a list of them, an object with ``__iter__``, or a function without arguments that
        returns an iterator.
    columns : sequence of str, optional
        The columns to keep, in this order. Default: all. Files whose columns stand in another order are read by name; columns without
        names are called x1, x2, ….
    weights : str, optional
        A column of frequency weights, which is no feature.
    block_rows : int, optional
        Rows of a block. Default: about 8 MB of numbers.

    Returns
    -------
    BlockTable
        For ``fit``, ``score_samples`` and the like of :class:`bayesgmm.GaussianMixture`.

    Raises
    ------
    DataError
        Where there is nothing to read, files differ in their columns, a column is not there or not numeric, or ``source`` can be
        iterated only once.

    References
    ----------
    Chan, Golub & LeVeque (1983), Algorithms for computing the sample variance, The American Statistician 37, 242–247: moments of blocks
    add up without cancellation.

    Examples
    --------
    >>> import numpy as np
    >>> from bayesgmm import GaussianMixture, open_blocks
    >>> def simulated():
    ...     rng = np.random.default_rng(0)
    ...     for _ in range(3):
    ...         yield rng.standard_normal((1000, 2)) + 5 * rng.integers(2, size=(1000, 1))
    >>> table = open_blocks(simulated)
    >>> table.n_features
    2
    >>> GaussianMixture(2, random_state=0).fit(table).weights_.round(1)
    array([0.5, 0.5])
    """
    parts, name = _opened(source)
    if not parts:
        raise DataError(f"{name}: no table is there")
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows must be positive, not {block_rows}")
    return BlockTable(parts, columns, weights, name, block_rows)


LARGE_BYTES = 1 << 30
"""A table of more than this on disk is not read into memory unasked."""


def bytes_on_disk(source: str | os.PathLike[str]) -> int:
    """Size of the files that a path, a folder or a pattern stands for.

    Raises
    ------
    DataError
        Where there are none.
    """
    try:
        return sum(os.path.getsize(path) for path in _paths(source))
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error


def is_several(source: str) -> bool:
    """Whether a name stands for files rather than being one's own: a folder, or a pattern."""
    return os.path.isdir(source) or (not os.path.exists(source) and glob.has_magic(source))


def read_all(source: str, columns: Sequence[str] | None = None) -> Table:
    """Read the files of a folder or a pattern into memory, one below the other.

    Parameters
    ----------
    source : str
    columns : sequence of str, optional

    Returns
    -------
    Table

    Raises
    ------
    DataError
        Where a file cannot be read, has other columns than the first, or no finite number somewhere; where there are fewer than two
        rows.
    """
    table = open_blocks(source, columns=columns)
    values = np.concatenate([np.empty((0, table.n_features)), *table])
    if len(values) < 2:
        raise DataError(f"{source} has {len(values)} rows of data; a mixture needs at least two")
    notes = (f"read from {len(table.parts)} files",)
    return Table(values, table.columns, source, np.arange(1, len(values) + 1), notes)


def _opened(source: Source) -> tuple[list[Part], str]:
    if isinstance(source, str | os.PathLike):
        return [_file(path) for path in _paths(source)], os.fspath(source)
    if isinstance(source, np.ndarray):
        return [ArrayPart(source, "the array")], "an array"
    if isinstance(source, Iterator):
        raise DataError(
            f"a {type(source).__name__} gives its rows once, and a fit reads them many times: pass a function that makes it anew, or "
            "hand the blocks to partial_fit one by one"
        )
    if isinstance(source, Sequence) and source and all(isinstance(each, str | os.PathLike) for each in source):
        paths = [path for each in source for path in _paths(each)]
        return [_file(path) for path in paths], f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]
    if hasattr(source, "iloc"):
        return [IterablePart([source])], "a DataFrame"
    if callable(source) or isinstance(source, Iterable):
        return [IterablePart(source)], "blocks of rows"
    raise DataError(f"cannot read blocks of rows from a {type(source).__name__}")


def _paths(source: str | os.PathLike[str]) -> list[str]:
    """The files that a path, a folder or a pattern stands for, sorted."""
    name = os.fspath(source)
    if os.path.isdir(name):
        found = [
            path
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
            and path.suffix.lower() in SUFFIXES
            and not any(piece.startswith((".", "_")) for piece in path.relative_to(name).parts)
        ]
        kinds = {SUFFIXES[path.suffix.lower()] for path in found}
        if len(kinds) > 1:
            raise DataError(
                f"the folder {name} has tables of several kinds ({', '.join(sorted(kinds))}): name those to be read"
            )
        if not found:
            raise DataError(f"the folder {name} has no table ({', '.join(SUFFIXES)})")
        return [str(path) for path in found]
    if is_several(name):
        found_names = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if not found_names:
            raise DataError(f"no file is called {name}")
        return found_names
    return [name]


def _file(path: str) -> Part:
    try:
        with open(path, "rb") as stream:
            kind = file_kind(stream.read(SAMPLE_BYTES), path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    formats: dict[str, Callable[[str], Part]] = {"text": TextPart, "parquet": ParquetPart, "npy": NpyPart}
    return formats[kind](path)


class TextPart:
    """A file of delimited text."""

    def __init__(self, path: str) -> None:
        self.name = path
        with open_source(path) as source:
            self._candidates = source.candidates
            names = [source.names[j] for j in self._candidates]
            self.names = tuple(names) if source.named else None
            self.n_columns = len(names)
        self._piece: tuple[int, int, int, int] | None = None

    def split(self, n: int) -> list[TextPart]:
        """Parts of about the same number of bytes, n at most; one where the encoding does not allow it."""
        with open_source(self.name) as source:
            if n < 2 or not isinstance(source, TextSource) or not source.can_be_split:
                return [self]
            pieces = source.cuts(n)
        out = []
        for piece in pieces:
            part = copy.copy(self)
            part._piece = piece
            out.append(part)
        return out

    def rows(self, columns: Sequence[int], names: Sequence[str], n_rows: int) -> Iterator[Rows]:
        done = 0
        with open_source(self.name, block_bytes=max(1 << 20, min(24 * n_rows * len(columns), BLOCK_BYTES))) as source:
            source.choose([self._candidates[j] for j in columns])
            if self._piece is not None and isinstance(source, TextSource):
                start, stop, lines, done = self._piece
                source.go_to(start, stop, lines)
            for number, block in enumerate(source.blocks(), start=1):
                if block.faults.any():
                    raise DataError(self._fault(source, block, names, number))
                yield Rows(block.values, done + 1)
                done += len(block.values)

    def _fault(self, source: Any, block: Any, names: Sequence[str], number: int) -> str:
        mostly_text = 2 * np.count_nonzero(block.faults == 2, axis=0) > len(block.faults)
        text = [name for name, is_text in zip(names, mostly_text, strict=True) if is_text]
        if text:
            return _not_numeric(self.name, text, names, "text, not numbers")
        row, column = (int(i) for i in np.argwhere(block.faults)[0])
        fields = int(block.records.rows().n_fields[row])
        place = f"{self.name}: line {block.places[row]}"
        if fields < source.n_fields:
            last = row == len(block.faults) - 1 and source.progress == 1.0
            where = "the file ends in the middle of a row" if last else "the row is not complete"
            return f"{place}, in block {number}: {where}: {fields} of {source.n_fields} fields are there"
        fault = FAULTS[block.faults[row, column]]
        what = f"text {source.cell(block, row, column)[:20]!r}" if fault == "not a number" else fault
        return f"{place}, column {names[column]!r}, in block {number}: {what}; drop or fill such rows first"


class ParquetPart:
    """A Parquet file."""

    def __init__(self, path: str) -> None:
        self.name = path
        with self._opened() as file:
            self.names: tuple[str, ...] | None = tuple(file.schema_arrow.names)
            self._types = list(file.schema_arrow.types)
        self.n_columns = len(self._types)
        self._groups: list[int] | None = None
        self._before = 0

    def split(self, n: int) -> list[ParquetPart]:
        """Parts of about the same number of row groups, n at most."""
        with self._opened() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        out = []
        for groups in np.array_split(np.arange(len(sizes)), max(1, min(n, len(sizes)))):
            part = copy.copy(self)
            part._groups, part._before = groups.tolist(), sum(sizes[: groups[0]] if len(groups) else [])
            out.append(part)
        return out

    def _opened(self) -> Any:
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise DataError(
                f"cannot read {self.name}: Parquet needs pyarrow; install it with pip install 'bayesgmm[parquet]'"
            ) from error
        with damage_told(self.name):
            return pq.ParquetFile(self.name, **READING)

    def rows(self, columns: Sequence[int], names: Sequence[str], n_rows: int) -> Iterator[Rows]:
        import pyarrow as pa

        chosen = list(names)
        text = [name for name, j in zip(names, columns, strict=True) if not _is_number(self._types[j])]
        if text:
            raise DataError(_not_numeric(self.name, text, names, "no numbers"))
        dtype = np.float32 if all(self._types[j] == pa.float32() for j in columns) else np.float64
        done = self._before
        with self._opened() as file:
            # On one thread: the others compute meanwhile.
            batches = file.iter_batches(batch_size=n_rows, columns=chosen, row_groups=self._groups, use_threads=False)
            while True:
                with damage_told(f"{self.name} behind row {done}"):
                    batch = next(batches, None)
                if batch is None:
                    return
                values = np.empty((len(batch), len(chosen)), dtype)
                for j, name in enumerate(chosen):
                    column = batch.column(name)
                    values[:, j] = _numbers(column)
                yield Rows(values, done + 1)
                done += len(values)


def _not_numeric(source: str, columns: Sequence[str], names: Sequence[str], what: str) -> str:
    """What is said of columns that hold no numbers, and which ones do."""
    others = [name for name in names if name not in columns]
    choice = f": {quoted(others)}" if others else ""
    return f"{source}: {quoted(columns)} hold{'s' * (len(columns) == 1)} {what}; choose the numeric columns{choice}"


def _is_number(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _numbers(column: Any) -> NDArray[Any]:
    """An Arrow column as floats, NaN where there is none."""
    import pyarrow as pa

    if not pa.types.is_floating(column.type):
        column = column.cast(pa.float64(), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False))


class ArrayPart:
    """An array, in memory or mapped from a file."""

    def __init__(self, array: NDArray[Any], name: str) -> None:
        self.name = name
        self._array, self.names = _as_table(array, name)
        self.n_columns = len(self.names) if self.names is not None else self._array.shape[1]

    def rows(self, columns: Sequence[int], names: Sequence[str], n_rows: int) -> Iterator[Rows]:
        for start in range(0, len(self._array), n_rows):
            yield Rows(_chosen(self._array[start : start + n_rows], self.names, columns), start + 1)


class NpyPart:
    """A file of NumPy's, read and not mapped: pages of a map would count as memory of the process."""

    def __init__(self, path: str) -> None:
        self.name = path
        array, self.names = _as_table(self._mapped(), path)
        self.n_columns = len(self.names) if self.names is not None else array.shape[1]
        self._n_rows, self._dtype = len(array), array.dtype
        self._wanted = range(self._n_rows)
        self._fortran = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
        self._offset = int(array.offset)

    def split(self, n: int) -> list[NpyPart]:
        """Parts of about the same number of rows, n at most."""
        edges = np.linspace(0, self._n_rows, max(1, min(n, self._n_rows)) + 1).astype(int)
        out = []
        for start, stop in pairwise(edges.tolist()):
            part = copy.copy(self)
            part._wanted = range(start, stop)
            out.append(part)
        return out

    def _mapped(self) -> np.memmap[Any, Any]:
        with damage_told(self.name):
            array: np.memmap[Any, Any] = np.load(self.name, mmap_mode="r", allow_pickle=False)
        return array

    def rows(self, columns: Sequence[int], names: Sequence[str], n_rows: int) -> Iterator[Rows]:
        width = 1 if self.names is not None else self.n_columns
        with open(self.name, "rb") as stream:
            for start in range(self._wanted.start, self._wanted.stop, n_rows):
                n = min(n_rows, self._wanted.stop - start)
                if self._fortran:
                    block = np.stack([self._run(stream, j * self._n_rows + start, n) for j in range(width)], axis=1)
                else:
                    block = self._run(stream, start * width, n * width)
                    block = block if self.names is not None else block.reshape(n, width)
                yield Rows(_chosen(block, self.names, columns), start + 1)

    def _run(self, stream: Any, first: int, n: int) -> NDArray[Any]:
        stream.seek(self._offset + first * self._dtype.itemsize)
        found = np.fromfile(stream, self._dtype, n)
        if len(found) < n:
            raise DataError(f"cannot read {self.name}: it ends before its last row")
        return found


def _as_table(array: Any, name: str) -> tuple[Any, tuple[str, ...] | None]:
    """An array as a table (N, D), or (N,) with the names of its fields."""
    _refuse_masked(array, name)
    if array.dtype.names is not None and array.ndim == 1:
        return array, tuple(array.dtype.names)
    if array.ndim not in (1, 2):
        raise DataError(f"{name} holds an array of shape {array.shape}; expected observations × features")
    if array.dtype.kind not in "iufb":
        raise DataError(f"{name} holds values of type {array.dtype}, not numbers")
    return (array.reshape(-1, 1) if array.ndim == 1 else array), None


def _refuse_masked(array: Any, name: str) -> None:
    if np.ma.is_masked(array):
        raise DataError(
            f"{name} has {int(np.ma.count_masked(array))} masked values: drop these rows or fill them first"
        )


def _chosen(block: NDArray[Any], fields: tuple[str, ...] | None, columns: Sequence[int]) -> FloatArray:
    """Columns of a block as float64, or float32 where it is that already."""
    if fields is not None:
        return np.stack([block[fields[j]].astype(np.float64) for j in columns], axis=1)
    dtype = np.float32 if block.dtype == np.float32 else np.float64
    if list(columns) != list(range(block.shape[1])):
        block = block[:, list(columns)]
    return np.ascontiguousarray(block, dtype=dtype)


class IterablePart:
    """Blocks of rows, arrays or DataFrames, that an iterable yields each time anew."""

    def __init__(self, source: Any) -> None:
        self.name = "the blocks"
        self._source = source
        first = next(iter(self._blocks()), None)
        if first is None:
            raise DataError("there are no blocks of rows")
        self.n_columns, self.names = _width(first, 1)

    def _blocks(self) -> Iterable[Any]:
        return self._source() if callable(self._source) else self._source

    def rows(self, columns: Sequence[int], names: Sequence[str], n_rows: int) -> Iterator[Rows]:
        done, longest = 0, max(n_rows, FEWEST_ROWS)
        for number, block in enumerate(self._blocks(), start=1):
            n_columns, found = _width(block, number)
            if found is None or self.names is None:
                if n_columns != self.n_columns:
                    raise DataError(f"block {number} has {n_columns} columns, and block 1 has {self.n_columns}")
                places = columns
            else:
                missing = [name for name in names if name not in found]
                if missing:
                    raise DataError(
                        f"block {number} has no column {quoted(missing)}; its columns are {quoted(found, 20)}"
                    )
                if surplus := [name for name in found if name not in self.names]:
                    raise DataError(f"block {number} has the column {quoted(surplus)}, which block 1 has not")
                places = [found.index(name) for name in names]
            for start in range(0, len(block), longest):
                part = block[start : start + longest]
                values = _chosen(part, None, places) if found is None else _frame_numbers(part, places, number, start)
                yield Rows(values, done + start + 1)
            done += len(block)
        if not done:
            raise DataError(
                "the blocks were there once and are gone: what yields them must do so anew each time it is iterated"
            )


def _width(block: Any, number: int) -> tuple[int, tuple[str, ...] | None]:
    """Number of columns of a block, and their names."""
    if hasattr(block, "columns") and hasattr(block, "iloc"):
        return block.shape[1], tuple(map(str, block.columns))
    if not isinstance(block, np.ndarray):
        raise DataError(f"block {number} is a {type(block).__name__}; expected an array or a DataFrame")
    _refuse_masked(block, f"block {number}")
    if block.ndim != 2:
        raise DataError(f"block {number} has the shape {block.shape}; expected rows × features")
    if block.dtype.kind not in "iufb":
        raise DataError(f"block {number} holds values of type {block.dtype}, not numbers")
    return block.shape[1], None


def _frame_numbers(frame: pd.DataFrame, places: Sequence[int], number: int, above: int) -> FloatArray:
    """The chosen columns of a DataFrame."""
    values = np.empty((len(frame), len(places)))
    for j, place in enumerate(places):
        cells = frame.iloc[:, place]
        values[:, j], text = as_floats(cells)
        if text.any():
            row = int(np.argmax(text))
            raise DataError(
                f"block {number}: row {above + row + 1} of the block, column {str(frame.columns[place])!r}: "
                f"text {str(cells.iloc[row])[:20]!r}; choose the numeric columns"
            )
    return values
