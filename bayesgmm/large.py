"""What the command does with a table that it does not read into memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bayesgmm.core.blocked import survey
from bayesgmm.persistence import hash_of_blocks
from bayesgmm.tables import BlockTable, open_blocks

if TYPE_CHECKING:
    import pandas as pd

    from bayesgmm.core.em import Callback

SHOWN_ROWS = 10_000
"""Rows of the figure."""


@dataclass(frozen=True, eq=False)
class LargeTable:
    """A table that is fitted in blocks.

    Attributes
    ----------
    blocks : BlockTable
    n_rows : int
    sample : DataFrame
        Rows for a figure.
    notes : tuple of str
        What the user should know.
    """

    blocks: BlockTable
    n_rows: int
    sample: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features."""
        return self.blocks.columns

    @property
    def source(self) -> str:
        """Where it is read."""
        return self.blocks.source

    def data_hash(self) -> str:
        """The hash that the rows would have in memory."""
        return hash_of_blocks(self.blocks, self.n_rows, self.blocks.n_features)


def look_at(source: str, columns: Sequence[str] | None = None) -> LargeTable:
    """Open a table, count its rows and draw some of them.

    Parameters
    ----------
    source : str
        A file, a folder or a pattern.
    columns : sequence of str, optional

    Returns
    -------
    LargeTable

    Raises
    ------
    DataError
        If it cannot be read, or has no finite number somewhere.
    """
    import pandas as pd

    blocks = open_blocks(source, columns=columns)
    seen = survey(blocks, 0, SHOWN_ROWS)
    sample = pd.DataFrame(seen.sample.rows, columns=list(blocks.columns))
    n_files = len(blocks.parts)
    notes = ["read in blocks, once for each iteration" + (f", from {n_files} files" if n_files > 1 else "")]
    if not blocks.named:
        notes.append(
            f"the columns have no names: they are called {', '.join(blocks.columns[:3])}"
            + ", …" * (len(blocks.columns) > 3)
        )
    return LargeTable(blocks, seen.moments.n_rows, sample, tuple(notes))


@contextmanager
def progress(shown: bool) -> Iterator[Callback | None]:
    """A callback of EM that keeps a line of the terminal up to date."""
    if not shown:
        yield None
        return

    def tell(iteration: int, parameters: Any, objective: float) -> None:
        sys.stderr.write(f"\rpass {iteration}: mean log-likelihood {objective:.6f}")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
