"""What a report is made of: a verdict, and sections of paragraphs, lists, tables, figures and code. Numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Said:
    """A number with the text that stands for it, in a table and in a sentence alike.

    Parameters
    ----------
    value : float
        What a table is sorted by.
    text : str
    """

    value: float
    text: str

    def __str__(self) -> str:
        return self.text


def number(value: Any) -> str:
    """Four significant digits, without an exponent where the number can be read without one; empty for NaN."""
    value = float(value)
    if not math.isfinite(value):
        return "" if math.isnan(value) else str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3e}"
    digits = 3 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def rounded(value: float, error: float) -> Said:
    """A number with as many decimals as two digits of its error take: more would say nothing."""
    value, error = float(value), float(error)
    if not (math.isfinite(error) and error > 0 and math.isfinite(value)):
        return Said(value, spelled(value))
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6 or abs(value) >= 1e7:
        return Said(value, spelled(value))
    text = f"{value:,.{decimals}f}"
    return Said(value, (text if text.strip("-0.,") else text.removeprefix("-")).replace("-", "−"))


def percent(share: float) -> Said:
    """A share in per cent with one decimal; what only rounds to none or all is said as "< 0.1 %" or "> 99.9 %"."""
    share = float(share)
    if 0 < share < 0.0005:
        return Said(share, "< 0.1 %")
    if 0.9995 <= share < 1:
        return Said(share, "> 99.9 %")
    return Said(share, f"{100 * share:.1f} %")


def spelled(value: Any) -> str:
    """A cell of a table as text: typographic minus signs, thousands apart, a dash where there is nothing."""
    if value is None:
        return "–"
    if isinstance(value, Said | str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace("-", "−")
    text = number(value)
    return text.replace("-", "−") if text else "–"


def sort_value(value: Any) -> str | None:
    """What a cell is sorted by, as text; None where it is sorted by its own text or has nothing."""
    if isinstance(value, Said):
        value = value.value
    if value is None or isinstance(value, str):
        return None
    value = float(value)
    return None if math.isnan(value) else repr(value)


@dataclass(frozen=True)
class Paragraph:
    """A sentence or a few; ``tone`` "caution" sets it apart."""

    kind: ClassVar[str] = "paragraph"
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text to be copied."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of values under titles.

    Parameters
    ----------
    title : str
        Caption.
    columns : sequence of str
    rows : sequence of sequence
        Text, numbers, :class:`Said`, or None.
    note : str
        Below the table.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def is_numeric(self, j: int) -> bool:
        """Whether a column is one of numbers, set flush right."""
        return any(sort_value(row[j]) is not None for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """A figure as a data URI.

    Parameters
    ----------
    name : str
        Of the function in :mod:`bayesgmm.plots` that draws it.
    source : str
        Data URI.
    alt : str
        What is to be seen, for readers who do not see it.
    caption : str
    width, height : int
        CSS pixels at full size.
    """

    kind: ClassVar[str] = "figure"
    name: str
    source: str
    alt: str
    caption: str
    width: int
    height: int


Block = Paragraph | Bullets | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    anchor: str
    title: str
    blocks: Sequence[Block]


LEVELS = ("good", "plain", "caution", "bad")


@dataclass(frozen=True)
class Verdict:
    """The answer, in sentences.

    Parameters
    ----------
    level : {"good", "plain", "caution", "bad"}
        Draws that can be trusted; nothing to be trusted or not (EM alone); trusted with a reservation; not to be relied on.
    headline : str
    sentences : sequence of str
    """

    level: str
    headline: str
    sentences: Sequence[str] = field(default_factory=tuple)

    def __str__(self) -> str:
        return " ".join((self.headline + ".", *self.sentences))


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    verdict: Verdict
    sections: Sequence[Section]


def sentence(text: str) -> str:
    """Text with a capital at its start and a full stop at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")
