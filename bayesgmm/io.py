"""Tables in, files out: the one table reader and the one place that writes files."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bayesgmm.exceptions import DataError
from bayesgmm.formats import RawTable, read_raw

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Labels",
    "OutputFolder",
    "Table",
    "as_floats",
    "atomic_path",
    "quoted",
    "read_table",
    "reserve",
    "sole_writer",
    "write_csv",
    "write_text",
]

_NAMED_CELLS = 5

FORMULA = ("=", "+", "-", "−", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet reads as a formula."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Classes of some rows of a table.

    Attributes
    ----------
    column : str
        Where they were read.
    values : ndarray of shape (N,) of object
        Numbers or text; None is unknown.
    classes : tuple
        The distinct labels, sorted.
    """

    column: str
    values: NDArray[np.object_]
    classes: tuple[object, ...]

    @property
    def n_known(self) -> int:
        """Rows with a known label."""
        return sum(value is not None for value in self.values)


@dataclass(frozen=True, eq=False)
class Table:
    """A table of finite numbers.

    Attributes
    ----------
    values : ndarray of shape (N, D), float64, C-contiguous
        Observations by features.
    columns : tuple of D str
        Names of the features.
    source : str
        Where it was read: a path, or ``standard input``.
    rows : ndarray of shape (N,), int64
        Row numbers as the user sees them: 1 for the first row of numbers (the header is not counted).
    notes : tuple of str
        What the reader decided and the user should know, such as that there was no header.
    labels : Labels or None
        Of the column that was named for them.
    """

    values: NDArray[np.float64]
    columns: tuple[str, ...]
    source: str
    rows: NDArray[np.int64]
    notes: tuple[str, ...] = ()
    labels: Labels | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return the numbers as a DataFrame with the feature names as columns."""
        import pandas as pd

        return pd.DataFrame(self.values, columns=list(self.columns))


def read_table(
    source: str | os.PathLike[str], columns: Sequence[str] | None = None, labels: str | None = None
) -> Table:
    """Read a table of numbers from CSV, TSV, Parquet or NumPy's ``.npy``.

    Text may be separated by commas, tabs, semicolons or blanks, and may have a header or none. A first column without a
    name is taken for row names and left out. Integers and booleans become floats. The content of a file, not its name,
    decides how it is read.

    Parameters
    ----------
    source : str or path
        The file; ``"-"`` reads standard input.
    columns : sequence of str or None, default=None
        The columns to keep, in this order. None keeps all (but that of the labels), and all must be numeric. Columns without
        names are called ``x1``, ``x2``, …
    labels : str or None, default=None
        A column of classes, numbers or text, that is no feature. Empty, NA and −1 are unknown.

    Returns
    -------
    Table
        With N >= 2 rows, D >= 1 columns, and finite numbers only.

    Raises
    ------
    DataError
        Where the file cannot be read, or holds text, missing or infinite values, no rows, or one row; where a column is not
        there, or the labels have no known one, a single class, or fewer than two rows a class.
    """
    name = "standard input" if str(source) == "-" else os.fspath(source)
    try:
        if str(source) == "-":
            raw = read_raw(sys.stdin.buffer, name)
        else:
            with open(source, "rb") as stream:
                raw = read_raw(stream, name)
    except IsADirectoryError as error:
        raise DataError(f"cannot read {name}: it is a folder, not a table") from error
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
    frame = raw.frame
    frame.columns = [str(column) for column in frame.columns]
    classes = None
    if labels is not None:
        classes = _labels(frame, labels, columns, name)
        frame = frame.drop(columns=labels)
    if columns is not None:
        frame = _choose(frame, columns, name)
    if frame.shape[1] == 0:
        raise DataError(f"{name} has no column beside that of the labels, {labels!r}: there is nothing to fit")
    values = _numbers(frame, raw, name)
    if len(values) < 2:
        what = "no rows of data" if len(values) == 0 else "one row of data"
        raise DataError(f"{name} has {what}; a mixture needs at least two")
    return Table(values, tuple(frame.columns), name, np.arange(1, len(values) + 1), tuple(raw.notes), classes)


def _labels(frame: pd.DataFrame, column: str, columns: Sequence[str] | None, name: str) -> Labels:
    """The labels of a column, looked at before anything is fitted."""
    import pandas as pd

    if column not in frame.columns:
        raise DataError(f"{name} has no column {column!r} for the labels; its columns are {quoted(frame.columns, 20)}")
    if columns is not None and column in columns:
        raise DataError(f"the column {column!r} holds the labels, so it cannot be a feature: leave it out of --columns")
    # whole numbers with gaps are read as floats: 1.0 becomes 1 again
    cells = frame[column].convert_dtypes().astype(object)
    values = np.array([None if _is_unknown(cell) else cell for cell in cells.where(cells.notna(), None)], dtype=object)
    known = [value for value in values if value is not None]
    what = f"{name}: the column {column!r} has"
    if not known:
        raise DataError(f"{what} no known label (empty, NA and -1 are unknown): label some rows, or leave --labels out")
    classes = tuple(pd.unique(pd.Series(known, dtype=object)))
    if len(classes) < 2:
        raise DataError(f"{what} a single class, {str(classes[0])!r}: at least two are needed")
    if len(classes) > len(known) // 2:
        raise DataError(
            f"{what} {len(classes)} different labels in {len(known)} labelled rows: labels are classes, and cross-validation needs two "
            "rows of each or more"
        )
    return Labels(column, values, tuple(sorted(classes)))


def _is_unknown(cell: object) -> bool:
    return cell is None or cell == -1 or (isinstance(cell, str) and cell.strip() in ("", "-1"))


def _choose(frame: pd.DataFrame, columns: Sequence[str], name: str) -> pd.DataFrame:
    if not columns:
        raise DataError("no column is chosen")
    unknown = [column for column in columns if column not in frame.columns]
    if unknown:
        raise DataError(f"{name} has no column {quoted(unknown)}; its columns are {quoted(frame.columns, limit=20)}")
    if len(set(columns)) < len(columns):
        raise DataError(f"a column is chosen twice: {quoted(columns)}")
    return frame[list(columns)]


def _numbers(frame: pd.DataFrame, raw: RawTable, name: str) -> NDArray[np.float64]:
    values = np.empty(frame.shape, dtype=np.float64)
    text: list[str] = []
    cells: list[tuple[int, str, str]] = []
    for j, column in enumerate(frame.columns):
        series = frame.iloc[:, j]
        numbers, is_text = as_floats(series)
        if len(series) and 2 * is_text.sum() > series.notna().sum():
            text.append(column)
            continue
        values[:, j] = numbers
        for i in np.flatnonzero(~np.isfinite(numbers)):
            cells.append((int(i), column, _what(numbers[i], series.iloc[i], bool(is_text[i]))))
    if text:
        numeric = [column for column in frame.columns if column not in text]
        if not numeric:
            raise DataError(f"{name} has no numeric column: {quoted(text)} hold text")
        plural = "columns" if len(text) > 1 else "column"
        chosen = ",".join(f'"{column}"' if "," in column else column for column in numeric)
        raise DataError(
            f"{name}: {plural} {quoted(text)} {'hold' if len(text) > 1 else 'holds'} text, not numbers; "
            f"choose the numeric columns with --columns {chosen}"
        )
    if cells:
        raise DataError(_cells_message(sorted(cells, key=lambda cell: cell[0]), raw, name))
    return values


def as_floats(series: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Read cells as numbers: an array (N,) with NaN where there is none, and a mask (N,) of the cells that hold something else."""
    import pandas as pd
    from pandas.api import types

    if types.is_bool_dtype(series.dtype) or (
        types.is_numeric_dtype(series.dtype) and not types.is_complex_dtype(series.dtype)
    ):
        return series.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(series), dtype=bool)
    if types.is_object_dtype(series.dtype) or types.is_string_dtype(series.dtype):
        truths = series.map({True: 1.0, False: 0.0, "True": 1.0, "False": 0.0})
        converted = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        numbers = np.where(np.isnan(converted), truths.to_numpy(dtype=np.float64, na_value=np.nan), converted)
        return numbers, np.isnan(numbers) & series.notna().to_numpy()
    return np.full(len(series), np.nan), series.notna().to_numpy()


def _what(number: float, cell: object, is_text: bool) -> str:
    if is_text:
        return f"text {str(cell)[:20]!r}"
    return "missing" if np.isnan(number) else "infinite"


def _cells_message(cells: list[tuple[int, str, str]], raw: RawTable, name: str) -> str:
    def place(i: int) -> str:
        row = f"row {i + 1}"
        return row if raw.lines_above is None else f"{row} (line {i + 1 + raw.lines_above})"

    named = "; ".join(f"{place(i)}, column {column!r}: {what}" for i, column, what in cells[:_NAMED_CELLS])
    more = f"; and {len(cells) - _NAMED_CELLS} more" if len(cells) > _NAMED_CELLS else ""
    values = "value is" if len(cells) == 1 else "values are"
    return f"{name}: {len(cells)} {values} not a finite number: {named}{more}; remove or fill them first"


def quoted(names: Collection[str], limit: int = 10) -> str:
    """Names in quotes, parted by commas; the first ``limit`` of them."""
    shown = [repr(str(name)) for name in list(names)[:limit]]
    return ", ".join(shown) + (f", … ({len(names)} in all)" if len(names) > limit else "")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path``; what is written there takes its place whole, or not at all.

    Parameters
    ----------
    path : str or path
        The file to write. Its folder must exist.

    Yields
    ------
    pathlib.Path
        The name to write under, in the same folder and with the same suffix. When the block ends without an error, the
        file is flushed to disk and renamed to ``path``; after an error it is removed, and ``path`` is as it was.
    """
    # a link stays a link: the file that it points at is replaced
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}.partial{target.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # A write that fails does not say to which file.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def reserve(path: str | os.PathLike[str], size: int) -> None:
    """Find out whether there is room for a file before a library writes it that cannot do with less: HDF5 brings down the process.

    Parameters
    ----------
    path : str or path
        The file, which is made or emptied.
    size : int
        Bytes.

    Raises
    ------
    OSError
        If the disk, a quota or a limit does not leave so many.
    """
    with open(path, "wb") as stream:
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            # A file system that cannot say is left to the library.
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from None
        stream.truncate(0)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text (UTF-8) to a file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: str | os.PathLike[str], frame: pd.DataFrame, index: bool = False) -> None:
    """Write a table as CSV (numbers as their shortest exact text), whole or not at all.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    frame = frame.rename(columns=_no_formula)
    texts = [at for at, kind in enumerate(frame.dtypes) if not _is_number(kind)]
    for at in texts:
        frame.isetitem(at, frame.iloc[:, at].map(_no_formula))
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=index, lineterminator="\n")


def _is_number(kind: object) -> bool:
    from pandas.api import types

    return bool(types.is_numeric_dtype(kind) or types.is_bool_dtype(kind))


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


@contextmanager
def sole_writer(folder: str | os.PathLike[str], wait: float = 10.0) -> Iterator[None]:
    """Keep others that ask the same from writing to a folder until the block ends.

    The lock is the folder's own (``flock``): it leaves no file, and goes with the process that holds it. Where the system or the
    file system knows no such lock, there is none.

    Parameters
    ----------
    folder : str or path
        Must exist.
    wait : float, default 10.0
        Seconds to wait for another to finish.

    Raises
    ------
    BlockingIOError
        If another still writes to it then.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    message = f"another process is writing to {folder}: wait for it, or name another folder"
                    raise BlockingIOError(errno.EWOULDBLOCK, message) from None
                time.sleep(0.02)
            except OSError:
                break
        yield
    finally:
        os.close(handle)


class OutputFolder:
    """A folder of results that appears when all of them are written, and not before.

    As a context manager it gives an empty folder to write into, on the same disk. When the block ends without an error,
    the files move to ``path``; after an error they are removed, and ``path`` is as it was.

    Parameters
    ----------
    path : str or path
        The folder. It and its parents are made where they do not exist.
    force : bool, default=False
        Whether to write into an existing folder that is not empty.
    outputs : collection of str, default=()
        Every file name that such a run may write. Those of them that stand in ``path`` and are not written this time
        are removed, so that results of two runs never mix. Other files are left alone.
    reuse : bool, default=False
        Whether a folder that holds nothing but ``outputs`` may be written into without ``force``.
    guard : callable, optional
        Called with the folder, it gives a context in which its files are replaced.
    last : str, optional
        The file that is replaced last.

    Raises
    ------
    FileExistsError
        Where ``path`` is a file, or a folder with something in it and ``force`` is not set.
    BlockingIOError
        Where another process writes to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        force: bool = False,
        outputs: Collection[str] = (),
        reuse: bool = False,
        guard: Callable[[Path], AbstractContextManager[None]] | None = None,
        last: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.outputs = frozenset(outputs)
        self._force, self._reuse, self._guard, self._last = force, reuse, guard, last
        self._staging: Path | None = None
        self._check()

    def _check(self) -> None:
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise FileExistsError(f"cannot write to {self.path}: it exists and is not a folder")
        if self.path.is_dir() and not self._force:
            ours = None if self._staging is None else self._staging.name
            present = {entry.name for entry in self.path.iterdir() if entry.name != ours}
            if present and not (self._reuse and present <= self.outputs):
                raise FileExistsError(f"{self.path} exists and is not empty; name another folder or add --force")

    def __enter__(self) -> Path:
        base = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            staging = self._staging = Path(tempfile.mkdtemp(prefix=".bayesgmm-", suffix=".partial", dir=base))
        except OSError as error:
            raise OSError(error.errno, f"cannot write to {self.path}: {error.strerror}") from error
        return staging

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._staging is not None:
                self._publish(self._staging)
        finally:
            if self._staging is not None:
                shutil.rmtree(self._staging, ignore_errors=True)

    def _publish(self, staging: Path) -> None:
        written = {entry.name for entry in staging.iterdir()}
        self.path.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.path):
            # Another may have written there since this began.
            self._check()
            with nullcontext() if self._guard is None else self._guard(self.path):
                for name in sorted(written, key=lambda name: (name == self._last, name)):
                    os.replace(staging / name, self.path / name)
            for name in self.outputs - written:
                (self.path / name).unlink(missing_ok=True)
