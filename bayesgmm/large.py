"""What the command does with a table that it does not read into memory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core.blocked import survey
from bayesgmm.core.blocks import Gathered
from bayesgmm.core.parameters import FloatArray
from bayesgmm.distributed import DaskBlocks, memory_of, workers_of
from bayesgmm.persistence import hash_of_blocks
from bayesgmm.tables import BlockTable, bytes_on_disk, open_blocks

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

    from bayesgmm.core.em import Callback

SHOWN_ROWS = 10_000
"""Rows of the figure."""

PARTITIONS_PER_THREAD = 2
"""Of a cluster, where the table has so many parts: a worker that is slower gets fewer."""

EXPANSION = 4
"""Bytes of memory that are reckoned for each byte on disk: compressed numbers, and room to work."""


@dataclass(frozen=True, eq=False)
class LargeTable:
    """A table that is fitted in blocks.

    Attributes
    ----------
    blocks : BlockTable or DaskBlocks
    n_rows : int
    sample : DataFrame
        Rows for a figure.
    notes : tuple of str
        What the user should know.
    """

    blocks: BlockTable | DaskBlocks
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
        """The hash that the rows would have in memory; on a cluster one of the hashes of the partitions."""
        if isinstance(self.blocks, DaskBlocks):
            return "partitions:" + hashlib.sha256(self.blocks.total(_hash_of_block).values).hexdigest()
        return hash_of_blocks(self.blocks, self.n_rows, self.blocks.n_features)


def _hash_of_block(X: FloatArray, v: FloatArray | None, block: int) -> Gathered:
    """Task: hash of the rows of a block."""
    digest = hashlib.sha256(np.ascontiguousarray(X, dtype=np.float64).data).digest()
    return Gathered(((block, np.frombuffer(digest, dtype=np.uint8)),))


def look_at(source: str, columns: Sequence[str] | None = None, client: Client | None = None) -> LargeTable:
    """Open a table, count its rows and draw some of them.

    Parameters
    ----------
    source : str
        A file, a folder or a pattern.
    columns : sequence of str, optional
    client : distributed.Client, optional
        Of a cluster whose workers read it.

    Returns
    -------
    LargeTable

    Raises
    ------
    DataError
        If it cannot be read, or has no finite number somewhere.
    ClusterError
        If the cluster cannot do it.
    """
    import pandas as pd

    table = open_blocks(source, columns=columns)
    n_files = len(table.parts)
    blocks: BlockTable | DaskBlocks = table
    if client is None:
        notes = ["read in blocks, once for each iteration" + (f", from {n_files} files" if n_files > 1 else "")]
    else:
        blocks, notes = _on_cluster(table, bytes_on_disk(source), client)
    seen = survey(blocks, 0, SHOWN_ROWS)
    sample = pd.DataFrame(seen.sample.rows, columns=list(blocks.columns))
    if not blocks.named:
        notes.append(
            f"the columns have no names: they are called {', '.join(blocks.columns[:3])}"
            + ", …" * (len(blocks.columns) > 3)
        )
    return LargeTable(blocks, seen.moments.n_rows, sample, tuple(notes))


def _on_cluster(table: BlockTable, n_bytes: int, client: Client) -> tuple[DaskBlocks, list[str]]:
    """A table in partitions, in the workers' memory where they have room for it; and what to say of it."""
    workers = workers_of(client)
    n_threads, held = sum(workers), EXPANSION * n_bytes < memory_of(client)
    pieces = table.split(PARTITIONS_PER_THREAD * n_threads)
    many = f"{len(workers)} worker{'s' * (len(workers) > 1)}"
    notes = [
        f"{len(pieces)} partition{'s' * (len(pieces) > 1)} on {many}, "
        + ("held in their memory" if held else "read in blocks, once for each iteration")
    ]
    if len(pieces) < len(workers):
        notes.append(
            f"some workers have nothing to do: split the table into {n_threads} files or Parquet row groups, or more; text in UTF-16 is "
            "not split, other text and .npy files are"
        )
    return DaskBlocks.from_tables(pieces, held=held), notes


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
