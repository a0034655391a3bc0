"""Delimited text in bytes: where its records and fields lie, their numbers, and columns appended to each record.

A table reader gives back cells; here the text itself must come out again as it stood, so records are found in the bytes and stay there.
Quotes, blank lines and numbers mean what they mean to :func:`pandas.read_csv`, which ``bayesgmm fit`` reads with.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

__all__ = ["Records", "append_columns", "parse_numbers", "split_records"]

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

PARSED, MISSING, UNREAD = 0, 1, 2
"""What :func:`parse_numbers` says of a cell: a number; nothing there; to be looked at as text."""

FLOAT, INTEGER, CODE = 0, 1, 2
"""Kinds of an appended column."""

COMPLETE, MORE_FIELDS, OPEN_QUOTE = 0, 1, 2
"""How :func:`split_records` ended."""

DIGITS = 7
"""Significant digits of an appended number."""

_NEWLINE, _RETURN, _QUOTE, _BLANK, _TAB = 10, 13, 34, 32, 9
_LARGEST_POWER = 270
_LONGEST_NUMBER = 24

_options: dict[str, Any] = {"cache": True, "nogil": True}


def _powers_of_ten() -> tuple[Floats, Floats]:
    """10^q for |q| ≤ 270, each as the nearest number and what is left over."""
    high, low = [], []
    for q in range(-_LARGEST_POWER, _LARGEST_POWER + 1):
        exact = Fraction(10) ** q
        high.append(float(exact))
        low.append(float(exact - Fraction(high[-1])))
    return np.array(high), np.array(low)


_POWER, _POWER_REST = _powers_of_ten()


@dataclass(frozen=True, eq=False)
class Records:
    """Records of a piece of text.

    Attributes
    ----------
    data : ndarray of uint8
        The text.
    starts, stops, ends : ndarray of shape (n,), int64
        Where each begins, where its content ends, and where the next begins.
    n_fields : ndarray of shape (n,), int64
        0 for a blank line.
    lines : ndarray of shape (n,), int64
        Lines of the text above each.
    bounds : ndarray of shape (n, W, 2), int64
        Begin and end of the wanted fields, quotes included; both −1 where the record is too short.
    """

    data: Bytes
    starts: Integers
    stops: Integers
    ends: Integers
    n_fields: Integers
    lines: Integers
    bounds: Integers

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self) -> Records:
        """Those that are no blank lines."""
        keep = self.n_fields > 0
        if keep.all():
            return self
        parts = (self.starts, self.stops, self.ends, self.n_fields, self.lines, self.bounds)
        return Records(self.data, *(part[keep] for part in parts))


def split_records(
    data: Bytes, delimiter: int, slots: Integers, final: bool, limit: int = -1
) -> tuple[Records, int, int, int]:
    """Find the complete records of a piece of text.

    Parameters
    ----------
    data : ndarray of uint8
        Begins where a record begins.
    delimiter : int
        A byte; a blank stands for any number of blanks and tabs.
    slots : ndarray of shape (F,), int64
        F is the largest number of fields of a record; entry j says at which place of ``bounds`` field j goes, or −1.
    final : bool
        Whether the text ends here, so that the last record needs no end of line.
    limit : int, default -1
        Largest number of records; all of them if negative.

    Returns
    -------
    Records
    consumed : int
        Bytes of these records.
    n_lines : int
        Lines that end in them.
    outcome : {COMPLETE, MORE_FIELDS, OPEN_QUOTE}
        The record at ``consumed`` has more than F fields; or the text ends inside its quotes.
    """
    n_most = int(np.count_nonzero((data == _NEWLINE) | (data == _RETURN))) + 1
    if limit >= 0:
        n_most = min(n_most, limit)
    n_wanted = int(slots.max(initial=-1)) + 1
    parts = [np.empty(n_most, dtype=np.int64) for _ in range(5)]
    bounds = np.full((n_most, n_wanted, 2), -1, dtype=np.int64)
    n, consumed, n_lines, outcome = _split(data, delimiter, slots, final, n_most, *parts, bounds)
    starts, stops, ends, n_fields, lines = (part[:n] for part in parts)
    return Records(data, starts, stops, ends, n_fields, lines, bounds[:n]), consumed, n_lines, outcome


@nb.njit(**_options)
def _split(data, delimiter, slots, final, n_most, starts, stops, ends, n_fields, lines, bounds):
    size, F = len(data), len(slots)
    blanks = delimiter == _BLANK
    n = i = line = 0
    while n < n_most and i < size:
        start, first_line, fields, only_blanks = i, line, 0, True
        while True:
            while i < size and (data[i] == _BLANK or (blanks and data[i] == _TAB)):
                i += 1
            begin = i
            if i < size and data[i] == _QUOTE:
                only_blanks = False
                i += 1
                while True:
                    while i < size and data[i] != _QUOTE:
                        # a return before a newline is counted with it
                        line += data[i] == _NEWLINE or (data[i] == _RETURN and i + 1 < size and data[i + 1] != _NEWLINE)
                        i += 1
                    if i == size:
                        return n, start, first_line, OPEN_QUOTE if final else COMPLETE
                    i += 1
                    if i == size or data[i] != _QUOTE:
                        break
                    i += 1
            while i < size and data[i] != delimiter and data[i] != _NEWLINE and data[i] != _RETURN:
                if blanks and data[i] == _TAB:
                    break
                only_blanks = only_blanks and (data[i] == _BLANK or data[i] == _TAB)
                i += 1
            at_end = i == size or data[i] == _NEWLINE or data[i] == _RETURN
            # a delimiter of blanks before the end of a line parts nothing
            if not (blanks and at_end and begin == i):
                if fields == F and not (at_end and only_blanks and fields == 0):
                    return n, start, first_line, MORE_FIELDS
                if fields < F and slots[fields] >= 0:
                    bounds[n, slots[fields], 0] = begin
                    bounds[n, slots[fields], 1] = i
                fields += 1
            if at_end:
                break
            only_blanks = only_blanks and blanks
            i += 1
        if not final and (i == size or (data[i] == _RETURN and i + 1 == size)):
            return n, start, first_line, COMPLETE
        starts[n], stops[n], lines[n] = start, i, first_line
        n_fields[n] = 0 if only_blanks else fields
        if i < size:
            line += 1
            i += 2 if data[i] == _RETURN and i + 1 < size and data[i + 1] == _NEWLINE else 1
        ends[n] = i
        n += 1
    return n, i, line, COMPLETE


def parse_numbers(records: Records, decimal: int) -> tuple[Floats, NDArray[np.int8]]:
    """Read the wanted fields as numbers, each to the nearest float64.

    Parameters
    ----------
    records : Records
    decimal : int
        The decimal mark, a byte.

    Returns
    -------
    values : ndarray of shape (n, W)
        NaN where there is none.
    states : ndarray of shape (n, W), int8
        PARSED, MISSING (an empty field, or none), or UNREAD: not a plain decimal number, or one that needs more care.
    """
    values = np.full(records.bounds.shape[:2], np.nan)
    states = np.empty(records.bounds.shape[:2], dtype=np.int8)
    _parse(records.data, records.bounds, decimal, _POWER, _POWER_REST, values, states)
    return values, states


@nb.njit(**_options)
def _parse(data, bounds, decimal, power, rest, values, states):
    for n in range(bounds.shape[0]):
        for w in range(bounds.shape[1]):
            i, stop = bounds[n, w, 0], bounds[n, w, 1]
            if i >= 0 and stop - i >= 2 and data[i] == _QUOTE and data[stop - 1] == _QUOTE:
                i, stop = i + 1, stop - 1
            while i < stop and (data[i] == _BLANK or data[i] == _TAB):
                i += 1
            while stop > i and (data[stop - 1] == _BLANK or data[stop - 1] == _TAB):
                stop -= 1
            if i < 0 or i == stop:
                states[n, w] = MISSING
                continue
            value, states[n, w] = _number(data, i, stop, decimal, power, rest)
            if states[n, w] == PARSED:
                values[n, w] = value


@nb.njit(**_options)
def _number(data, i, stop, decimal, power, rest):
    """Decimal text as the nearest number: mantissa times a power of ten, both in two parts (Dekker 1971), and the rounding checked."""
    negative = data[i] == 45
    if data[i] == 45 or data[i] == 43:
        i += 1
    mantissa = np.int64(0)
    digits, seen, exponent, fraction = 0, 0, 0, False
    while i < stop:
        digit = np.int64(data[i]) - 48
        if 0 <= digit <= 9:
            if digits == 18:
                return np.nan, UNREAD
            mantissa = mantissa * 10 + digit
            digits += 1 if mantissa > 0 else 0
            exponent -= fraction
            seen += 1
        elif data[i] == decimal and not fraction:
            fraction = True
        else:
            break
        i += 1
    if seen == 0:
        return np.nan, UNREAD
    if i < stop:
        if data[i] != 101 and data[i] != 69:
            return np.nan, UNREAD
        i += 1
        sign = 1
        if i < stop and (data[i] == 45 or data[i] == 43):
            sign = -1 if data[i] == 45 else 1
            i += 1
        if i == stop or stop - i > 4:
            return np.nan, UNREAD
        size = 0
        while i < stop:
            if not 48 <= data[i] <= 57:
                return np.nan, UNREAD
            size = size * 10 + int(data[i]) - 48
            i += 1
        exponent += sign * size
    if mantissa == 0:
        return (-0.0 if negative else 0.0), PARSED
    value = float(mantissa)
    if exponent != 0:
        if abs(exponent) > _LARGEST_POWER:
            return np.nan, UNREAD
        left = float(mantissa - np.int64(value))
        high, low = power[exponent + _LARGEST_POWER], rest[exponent + _LARGEST_POWER]
        product = value * high
        a, b = _halves(value)
        c, d = _halves(high)
        error = ((a * c - product) + a * d + b * c) + b * d
        error += value * low + left * high
        slack = abs(product) * 2.0**-98
        value = product + (error - slack)
        if value != product + (error + slack):
            return np.nan, UNREAD
    return (-value if negative else value), PARSED


@nb.njit(**_options)
def _halves(x):
    scaled = 134217729.0 * x
    high = scaled - (scaled - x)
    return high, x - high


def append_columns(
    records: Records,
    values: Floats,
    kinds: Integers,
    words: list[bytes],
    *,
    delimiter: int,
    decimal: int,
    n_fields: int,
    missing: bytes,
    rows: Integers,
) -> bytes:
    """Write records with columns appended to each; blank lines as they are.

    Parameters
    ----------
    records : Records
        One after another in their text.
    values : ndarray of shape (N, C)
        The columns. Numbers are written with seven significant digits, NaN as ``missing``.
    kinds : ndarray of shape (C,), int64
        FLOAT, INTEGER or CODE, whose numbers are places in ``words``.
    words : list of bytes
    delimiter, decimal : int
        Bytes.
    n_fields : int
        Shorter records are filled up with ``missing`` to this number of fields.
    missing : bytes
    rows : ndarray of shape (n,), int64
        The row of ``values`` of each record; −1 for a blank line.

    Returns
    -------
    bytes
    """
    vocabulary = [*words, missing]
    edges = np.concatenate([[0], np.cumsum([len(word) for word in vocabulary])]).astype(np.int64)
    joined = np.frombuffer(b"".join(vocabulary) or b" ", dtype=np.uint8)
    widest = max(_LONGEST_NUMBER, *map(len, vocabulary)) + 1
    short = int(np.maximum(n_fields - records.n_fields, 0).sum())
    out = np.empty(len(records.data) + len(values) * values.shape[1] * widest + short * (len(missing) + 1), np.uint8)
    parts = (records.data, records.starts, records.stops, records.ends, records.n_fields)
    size = _append(*parts, values, kinds, joined, edges, delimiter, decimal, n_fields, rows, _POWER, _POWER_REST, out)
    return out[:size].tobytes()


@nb.njit(**_options)
def _append(
    data,
    starts,
    stops,
    ends,
    counts,
    values,
    kinds,
    joined,
    edges,
    delimiter,
    decimal,
    n_fields,
    rows,
    power,
    rest,
    out,
):
    at, missing = 0, len(edges) - 2
    for n in range(len(starts)):
        for i in range(starts[n], stops[n]):
            out[at] = data[i]
            at += 1
        if rows[n] >= 0:
            for _ in range(n_fields - counts[n]):
                out[at] = delimiter
                at = _put_word(out, at + 1, joined, edges, missing)
            for c in range(len(kinds)):
                value = values[rows[n], c]
                out[at] = delimiter
                at += 1
                if np.isnan(value):
                    at = _put_word(out, at, joined, edges, missing)
                elif kinds[c] == CODE:
                    at = _put_word(out, at, joined, edges, int(value))
                elif kinds[c] == INTEGER:
                    at = _put_integer(out, at, int(value))
                else:
                    at = _put_number(out, at, value, decimal, power, rest)
        for i in range(stops[n], ends[n]):
            out[at] = data[i]
            at += 1
    return at


@nb.njit(**_options)
def _put_word(out, at, joined, edges, code):
    for i in range(edges[code], edges[code + 1]):
        out[at] = joined[i]
        at += 1
    return at


@nb.njit(**_options)
def _put_integer(out, at, value):
    if value < 0:
        out[at] = 45
        at += 1
        value = -value
    n = 1
    while n < 19 and value >= 10**n:
        n += 1
    for i in range(n - 1, -1, -1):
        out[at + i] = 48 + value % 10
        value //= 10
    return at + n


@nb.njit(**_options)
def _put_number(out, at, value, decimal, power, rest):
    """Write as C's ``%.7g`` does."""
    if value < 0 or (value == 0 and np.signbit(value)):
        out[at] = 45
        at += 1
        value = -value
    if np.isinf(value):
        for letter in (105, 110, 102):
            out[at] = letter
            at += 1
        return at
    if value == 0:
        out[at] = 48
        return at + 1
    shift = 0
    if value < 1e-200:
        value, shift = value * 1e200, -200
    elif value > 1e200:
        value, shift = value * 1e-200, 200
    e = int(np.floor(np.log10(value)))
    digits = _scaled(value, DIGITS - 1 - e, power, rest)
    if digits < 10 ** (DIGITS - 1):
        e -= 1
        digits = _scaled(value, DIGITS - 1 - e, power, rest)
    elif digits >= 10**DIGITS:
        e += 1
        digits = _scaled(value, DIGITS - 1 - e, power, rest)
        digits = max(digits, 10 ** (DIGITS - 1))
    e += shift
    n = DIGITS
    while n > 1 and digits % 10 == 0:
        digits //= 10
        n -= 1
    if e < -4 or e >= DIGITS:
        return _put_scientific(out, at, digits, n, e, decimal)
    if e < 0:
        out[at] = 48
        out[at + 1] = decimal
        at += 2
        for _ in range(-e - 1):
            out[at] = 48
            at += 1
        for i in range(n - 1, -1, -1):
            out[at + i] = 48 + digits % 10
            digits //= 10
        return at + n
    for _ in range(e + 1 - n):
        digits *= 10
        n += 1
    point = n - 1 - e
    width = n + (1 if point > 0 else 0)
    for i in range(width - 1, -1, -1):
        if point > 0 and width - 1 - i == point:
            out[at + i] = decimal
        else:
            out[at + i] = 48 + digits % 10
            digits //= 10
    return at + width


@nb.njit(**_options)
def _scaled(value, exponent, power, rest):
    """Value times a power of ten, to the nearest integer."""
    high = power[exponent + _LARGEST_POWER]
    product = value * high
    a, b = _halves(value)
    c, d = _halves(high)
    error = ((a * c - product) + a * d + b * c) + b * d + value * rest[exponent + _LARGEST_POWER]
    whole = np.floor(product)
    left = (product - whole) + error
    n = int(whole)
    if left > 0.5 or (left == 0.5 and n % 2 == 1):
        return n + 1
    return n if left >= -0.5 else n - 1


@nb.njit(**_options)
def _put_scientific(out, at, digits, n, e, decimal):
    width = n + (1 if n > 1 else 0)
    for i in range(width - 1, -1, -1):
        if n > 1 and i == 1:
            out[at + i] = decimal
        else:
            out[at + i] = 48 + digits % 10
            digits //= 10
    at += width
    out[at] = 101
    out[at + 1] = 45 if e < 0 else 43
    at += 2
    e = abs(e)
    if e < 10:
        out[at] = 48
        at += 1
    return _put_integer(out, at, e)
