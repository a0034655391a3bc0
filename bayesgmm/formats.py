"""File formats: what a table file holds, before anything in it is known to be a number."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from bayesgmm.exceptions import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SAMPLE_BYTES",
    "RawTable",
    "TextLayout",
    "damage_told",
    "default_names",
    "fields",
    "file_kind",
    "read_raw",
    "text_layout",
]

SAMPLE_BYTES = 1 << 16
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a"}


@dataclass
class RawTable:
    """A table as its file holds it.

    Attributes
    ----------
    frame : DataFrame
        The cells; nothing is known of their types.
    notes : list of str
        What was decided while reading and the user should know.
    lines_above : int or None
        Lines of the file above row 1, where every row is one line; else None.
    """

    frame: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    lines_above: int | None = None


def read_raw(stream: BinaryIO, name: str) -> RawTable:
    """Read a table whose content says what it is: ``.npy``, Parquet, or text.

    Parameters
    ----------
    stream : binary file
        Open for reading, at its start; it need not be seekable.
    name : str
        What to call it in messages.

    Returns
    -------
    RawTable

    Raises
    ------
    DataError
        Where it is empty, damaged, or none of these formats.
    """
    if not stream.seekable():
        stream = BytesIO(stream.read())
    head = stream.read(SAMPLE_BYTES)
    stream.seek(0)
    kind = file_kind(head, name)
    if kind == "npy":
        return _read_npy(stream, name)
    if kind == "parquet":
        return _read_parquet(stream, name)
    return _read_text(stream, head, name)


def file_kind(head: bytes, name: str) -> str:
    """Say what a table file is by its first bytes.

    Parameters
    ----------
    head : bytes
        The first ``SAMPLE_BYTES`` of the file, or all of it where it is shorter.
    name : str
        What to call it in messages; its suffix must not belie its content.

    Returns
    -------
    {"text", "parquet", "npy"}

    Raises
    ------
    DataError
        Where it is empty, or none of these formats.
    """
    suffix = Path(name).suffix.lower()
    if not head.strip():
        raise DataError(f"{name} is empty")
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PAR1"):
        return "parquet"
    if suffix in {".npy", ".parquet", ".pq"}:
        raise DataError(f"{name} is not a {suffix} file: its first bytes are not those of the format")
    if head.startswith(_UTF16_MARKS):
        return "text"
    if b"\0" in head or head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise DataError(f"{name} is neither text nor Parquet nor .npy; save the table as CSV (and decompress it) first")
    return "text"


@dataclass(frozen=True)
class TextLayout:
    """How a text file sets down its table.

    Attributes
    ----------
    encoding : str
        ``utf-8-sig``, ``utf-16`` or ``latin-1``.
    delimiter : str
        Tab, semicolon or comma; a blank stands for any number of blanks and tabs.
    decimal : str
        The decimal mark.
    has_header : bool
        Whether the first record holds names.
    surplus : int
        Fields that the first row has more than the header; 1 where rows have names and their column none.
    unnamed_first : bool
        Whether the header's first field is empty.
    """

    encoding: str
    delimiter: str
    decimal: str
    has_header: bool
    surplus: int
    unnamed_first: bool

    @property
    def notes(self) -> list[str]:
        """What was decided and the user should know."""
        return ["read the commas as decimal marks"] if self.decimal == "," else []


def text_layout(head: bytes, name: str) -> TextLayout:
    """Find out the layout of a text table from its first ``SAMPLE_BYTES``.

    Raises
    ------
    DataError
        Where these are blank lines.
    """
    encoding = _encoding(head)
    text = head.decode(encoding, errors="replace")
    # Ends of lines as text readers know them: str.splitlines knows more, such as form feeds.
    sample = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip(" \t\ufeff")][:50]
    if not sample:
        raise DataError(f"{name} is empty")
    delimiter = _delimiter(sample)
    decimal = _decimal_mark(sample, delimiter)
    first = fields(sample[0], delimiter)
    has_header = not _are_numbers(first, decimal) or (len(first) > 1 and first == [str(i) for i in range(len(first))])
    surplus = len(fields(sample[1], delimiter)) - len(first) if has_header and len(sample) > 1 else 0
    return TextLayout(encoding, delimiter, decimal, has_header, surplus, has_header and not first[0].strip())


def _encoding(head: bytes) -> str:
    if head.startswith(_UTF16_MARKS):
        return "utf-16"
    try:
        # a character may be cut at the end of the sample: up to three bytes
        head.decode("utf-8-sig", errors="strict")
    except UnicodeDecodeError as error:
        return "utf-8-sig" if error.start > len(head) - 4 and len(head) == SAMPLE_BYTES else "latin-1"
    return "utf-8-sig"


@contextmanager
def damage_told(name: str) -> Iterator[None]:
    """Tell whatever a library's reader breaks with, on a damaged file, as one error of ours.

    Raises
    ------
    DataError
    """
    try:
        yield
    except (DataError, ImportError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot read {name}: {reason}") from error


def _read_npy(stream: BinaryIO, name: str) -> RawTable:
    import pandas as pd

    with damage_told(name):
        array = np.load(stream, allow_pickle=False)
    if array.dtype.names is not None and array.ndim == 1:
        return RawTable(pd.DataFrame(array))
    if array.ndim not in (1, 2):
        raise DataError(f"{name} holds an array of shape {array.shape}; expected observations × features")
    array = array[:, None] if array.ndim == 1 else array
    return RawTable(pd.DataFrame(array, columns=default_names(array.shape[1])))


def _read_parquet(stream: BinaryIO, name: str) -> RawTable:
    import pandas as pd

    try:
        with damage_told(name):
            return RawTable(pd.read_parquet(stream, engine="pyarrow"))
    except ImportError as error:
        raise DataError(
            f"cannot read {name}: Parquet needs pyarrow; install it with pip install 'bayesgmm[parquet]'"
        ) from error


def _read_text(stream: BinaryIO, head: bytes, name: str) -> RawTable:
    import pandas as pd

    layout = text_layout(head, name)
    delimiter, decimal, has_header = layout.delimiter, layout.decimal, layout.has_header
    with damage_told(name):
        try:
            frame = pd.read_csv(
                stream,
                sep=r"\s+" if delimiter == " " else delimiter,
                header=0 if has_header else None,
                decimal=decimal,
                encoding=layout.encoding,
                encoding_errors="replace",
                **_exact_numbers(),
                low_memory=False,
                skipinitialspace=True,
            )
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            reason = str(error).strip().splitlines()[0].removeprefix("Error tokenizing data. C error: ")
            raise DataError(f"cannot read {name}: {reason}") from error
    raw = RawTable(frame, layout.notes)
    if has_header:
        _leave_out_row_names(raw, layout.surplus, unnamed_first=layout.unnamed_first, name=name)
    else:
        frame.columns = default_names(frame.shape[1])
        names = list(frame.columns)
        called = names if len(names) <= 3 else [names[0], "…", names[-1]]
        raw.notes.append(f"no header: the columns are called {', '.join(called)}")
    stream.seek(0)
    n_lines = sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))
    if n_lines - len(frame) - has_header in (0, -1):
        raw.lines_above = int(has_header)
    return raw


def _exact_numbers() -> dict[str, str]:
    """Make pandas read decimal text to the nearest number, which it does unasked (and deprecates asking) from 3.1."""
    import pandas as pd

    release = tuple(int(part) for part in pd.__version__.split(".")[:2])
    return {} if release >= (3, 1) else {"float_precision": "round_trip"}


def default_names(n_columns: int) -> list[str]:
    """Names of columns that have none: x1, x2, …."""
    return [f"x{i}" for i in range(1, n_columns + 1)]


def fields(line: str, delimiter: str) -> list[str]:
    """Fields of one record of text."""
    if delimiter == " ":
        return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^ \t]+)', line)]
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))


def _delimiter(sample: list[str]) -> str:
    """Tab, semicolon or comma: the first that splits two lines alike (row names may add a field); else blanks."""
    for delimiter in "\t;,":
        counts = [len(fields(line, delimiter)) for line in sample[:2]]
        if counts[0] > 1 and counts[-1] - counts[0] in (0, 1):
            return delimiter
    if len(fields(sample[0], " ")) > 1 and _are_numbers(fields(sample[-1], " ")[1:], "."):
        return " "
    return next((delimiter for delimiter in "\t;," if delimiter in sample[0]), ",")


def _decimal_mark(sample: list[str], delimiter: str) -> str:
    if delimiter == ",":
        return "."
    body = "\n".join(sample[1:] or sample)
    return "," if re.search(r"\d,\d", body) and not re.search(r"\d\.\d", body) else "."


def _are_numbers(fields: list[str], decimal: str) -> bool:
    """Whether every field is a number or missing, and one at least a number."""

    def is_number(field: str) -> bool:
        try:
            float(field.strip().replace(decimal, "."))
        except ValueError:
            return False
        return True

    present = [field for field in fields if field.strip().lower() not in _MISSING]
    return bool(present) and all(map(is_number, present))


def _leave_out_row_names(raw: RawTable, surplus: int, unnamed_first: bool, name: str) -> None:
    """Drop what is no feature: row names, and the empty column that a trailing delimiter makes."""
    frame = raw.frame
    if surplus > 0:
        # pandas has made an index of the surplus fields in front; a trailing delimiter shows as an empty last column
        if surplus > 1 or frame.shape[1] == 1 or frame.iloc[:, -1].isna().all():
            raise DataError(f"cannot read {name}: the rows have more fields than the header")
        frame = frame.reset_index(drop=True)
        raw.notes.append("the rows have one field more than the header: the first is taken for row names and left out")
    elif unnamed_first and frame.shape[1] > 1:
        frame = frame.iloc[:, 1:]
        raw.notes.append("the first column has no name: it is taken for row names and left out")
    last = str(frame.columns[-1])
    if frame.shape[1] > 1 and last.startswith("Unnamed: ") and frame.iloc[:, -1].isna().all():
        frame = frame.iloc[:, :-1]
    raw.frame = frame
