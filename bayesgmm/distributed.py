"""Dask: rows on the workers of a cluster, or in partitions on this machine, as the blocks that a fit sums over.

Parameters travel to the workers and sums of statistics come back; rows stay where they are. Partitions are summed by a tree whose
shape depends on their number alone, and each by the kernel, whose sums do not depend on threads: which worker does what, and whether
one is lost on the way, does not show in the result.
"""

from __future__ import annotations

import logging
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from bayesgmm.core.blocks import Task
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.threads import at_most, available_threads
from bayesgmm.exceptions import ClusterError, DataError

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

FAN_IN = 8
"""Sums that one task of the tree adds."""

CONNECT_SECONDS = 5.0
"""How long a scheduler is waited for."""

PATIENCE_SECONDS = 30.0
"""How long a cluster without a worker is waited for: one that was lost may be on its way back."""

POLL_SECONDS = 2.0

ATTEMPTS = 4
"""How often work is sent out whose common part was lost with all workers that had it."""

_SMALLER = "make the partitions smaller (X.rechunk, or repartition of a DataFrame), or give the workers more memory"


def is_dask(X: Any) -> bool:
    """Whether something is a Dask collection; Dask is not imported to find out."""
    return type(X).__module__.partition(".")[0] == "dask"


class DaskBlocks:
    """A Dask array or DataFrame as blocks of rows: a :class:`bayesgmm.core.blocks.RowBlocks`.

    Parameters
    ----------
    X : dask.array.Array of shape (N, D) or dask.dataframe.DataFrame
        Partitions of any size, empty or of unknown size too; persisted, or computed anew in every pass. Chunks along the features are
        put together.
    sample_weight : dask.array.Array of shape (N,), dask.dataframe.Series or ndarray, optional
        Frequency weights, partitioned like the rows. An ndarray needs partitions of known sizes.

    Attributes
    ----------
    n_features : int
        D.
    columns : tuple of D str
        Names of the features: x0, x1, … of an array.
    named : bool
        Whether they are a DataFrame's.
    n_blocks : int
        Partitions.

    Raises
    ------
    DataError
        If X is no table of numbers of known width, or the weights are not partitioned like the rows.

    Notes
    -----
    A pass over P partitions is P tasks and about P / 7 sums. It runs on the client that holds the rows where they are persisted, else
    on the client of this process, else on Dask's scheduler of this process (threads, by default).
    """

    def __init__(self, X: Any, sample_weight: Any = None) -> None:
        rows, names = as_array(X)
        self.n_features, self.n_blocks, self.named = int(rows.shape[1]), int(rows.numblocks[0]), names is not None
        self.columns = _columns(names, rows)
        self.source = "the Dask collection"
        weights = None if sample_weight is None else _aligned(sample_weight, rows)
        self._rows, self._graph = rows, _optimised(rows)
        row_keys = [key for (key,) in rows.__dask_keys__()]
        weight_keys: list[Any] = [None] * self.n_blocks
        if weights is not None:
            self._graph |= _optimised(weights)
            weight_keys = weights.__dask_keys__()
        self._keys = list(zip(row_keys, weight_keys, strict=True))

    @classmethod
    def from_tables(cls, tables: Sequence[Any], *, held: bool) -> DaskBlocks:
        """Tables in blocks as the partitions of one, each read by the worker that has it.

        Parameters
        ----------
        tables : sequence of bayesgmm.tables.BlockTable
            Alike in their features. Their files stand where every worker finds them.
        held : bool
            Read once, into the workers' memory; otherwise anew in each pass, a block at a time.

        Returns
        -------
        DaskBlocks
        """
        import cloudpickle
        import dask.array as da
        from dask import delayed

        first = tables[0]
        parts = [
            delayed(pickle.loads)(cloudpickle.dumps(table), dask_key_name=f"bayesgmm-table-{uuid4().hex}")
            for table in tables
        ]
        if held:
            whole = delayed(_read, pure=False)
            arrays = [
                da.from_delayed(
                    whole(part, dask_key_name=f"bayesgmm-read-{uuid4().hex}"),
                    (np.nan, first.n_features),
                    meta=np.empty((0, 0)),
                )
                for part in parts
            ]
            out = cls(da.concatenate(arrays).persist())
        else:
            out = cls.__new__(cls)
            out.n_features, out.n_blocks, out._rows = first.n_features, len(parts), parts[0]
            out._graph = {key: node for part in parts for key, node in dict(part.__dask_graph__()).items()}
            out._keys = [(part.key, None) for part in parts]
        out.columns, out.named, out.source = first.columns, first.named, first.source
        return out

    def total(self, task: Task) -> Any:
        """Sum of ``task(X, v, block)`` over all partitions, added by a tree in their order.

        Parameters
        ----------
        task : callable
            See :data:`bayesgmm.core.blocks.Task`. On the dashboard it has the name of its class or function.

        Returns
        -------
        what the tasks return, summed

        Raises
        ------
        DataError
            If a partition cannot be read, holds a value that is no finite number, or weights that do not fit (partition and row are
            named); or none has a row.
        ClusterError
            If the cluster cannot do it: no worker, a lost scheduler, workers that die of the work.
        """
        client = _client_of(self._rows)
        found = self._run(client, task)
        if isinstance(found, _Fault):
            raise found.error
        if found is None:
            raise DataError(f"{self.source} has no rows: there is nothing to fit")
        return found

    def _run(self, client: Client | None, task: Task) -> Any:
        import cloudpickle

        token, payload = uuid4().hex, cloudpickle.dumps((task, self.columns))
        threads = _threads_of(client, self.n_blocks)
        # One node of the graph holds the parameters, so that each worker gets them once; nothing is lost with a worker.
        parameters, name = f"bayesgmm-parameters-{token}", f"bayesgmm-{_name(task)}-{token}"
        graph = self._graph | {parameters: (pickle.loads, payload)}
        level: list[Any] = []
        for block, (rows, weights) in enumerate(self._keys):
            level.append((name, block))
            graph[level[-1]] = (_on_partition, parameters, rows, weights, block, threads)
        height = 0
        while len(level) > 1:
            groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
            level = [(f"bayesgmm-sum-{token}", height, i) for i in range(len(groups))]
            graph |= {key: (_add, group) for key, group in zip(level, groups, strict=True)}
            height += 1
        try:
            return _compute(client, graph, level[0])
        except (ClusterError, DataError):
            raise
        except Exception as error:
            self._raise_unreadable(client, error)
            raise

    def _raise_unreadable(self, client: Client | None, error: Exception) -> None:
        """Name the first partition that cannot be computed, if that is what went wrong."""
        token = uuid4().hex
        for block, keys in enumerate(self._keys):
            look = (f"bayesgmm-look-{token}", block)
            try:
                _compute(client, self._graph | {look: (_touch, *(key for key in keys if key is not None))}, look)
            except ClusterError:
                raise
            except Exception as found:
                raise DataError(
                    f"partition {block} of the Dask collection cannot be read: {_one_line(found)}"
                ) from error


def map_rows(X: Any, function: Callable[[FloatArray], Any], width: int | None = None, dtype: Any = np.float64) -> Any:
    """A function of rows on each partition, when it is asked for.

    Parameters
    ----------
    X : dask.array.Array of shape (N, D) or dask.dataframe.DataFrame
    function : callable
        Of rows (n, D), to an array (n,) or (n, width); it travels to each worker once.
    width : int, optional
        Columns of the result. Default: it has one axis.
    dtype : dtype, default float64

    Returns
    -------
    dask.array.Array of shape (N,) or (N, width)
        Computing it raises a DataError where a value is no finite number.

    Raises
    ------
    DataError
        If X is no table of numbers.
    """
    rows, names = as_array(X)
    sent = _sent(function, names, rows)
    shape: dict[str, Any] = {"drop_axis": 1} if width is None else {"chunks": (rows.chunks[0], (width,))}
    meta = np.empty((0,) * (1 if width is None else 2), dtype=dtype)
    return rows.map_blocks(
        _of_partition, sent, alone=rows.numblocks[0] == 1, meta=meta, name=f"bayesgmm-rows-{uuid4().hex}", **shape
    )


def _sent(function: Callable[[FloatArray], Any], names: tuple[str, ...] | None, rows: Any) -> Any:
    """A function and the names of its columns as one node of a graph, which each worker gets once."""
    import cloudpickle
    from dask import delayed

    payload = cloudpickle.dumps((function, _columns(names, rows)))
    return delayed(pickle.loads)(payload, dask_key_name=f"bayesgmm-parameters-{uuid4().hex}")


def _columns(names: tuple[str, ...] | None, rows: Any) -> tuple[str, ...]:
    return names or tuple(f"x{j}" for j in range(rows.shape[1]))


def _of_partition(
    rows: Any, sent: tuple[Callable[[FloatArray], Any], tuple[str, ...]], alone: bool, block_id: Any = None
) -> Any:
    function, columns = sent
    X = _checked(rows, None, block_id[0], columns)[0]
    with at_most(available_threads() if alone else 1):
        return function(X)


def map_frames(X: Any, function: Callable[[FloatArray], pd.DataFrame], meta: pd.DataFrame) -> Any:
    """A table of what a function says of each row, when it is computed.

    Parameters
    ----------
    X : dask.array.Array of shape (N, D) or dask.dataframe.DataFrame
    function : callable
        Of rows (n, D), to a DataFrame of n rows.
    meta : DataFrame
        Such a table without rows.

    Returns
    -------
    dask.dataframe.DataFrame
        Partitioned as X, with the index of a DataFrame.
    """
    import dask.dataframe as dd
    from dask import delayed

    rows, names = as_array(X)
    sent = _sent(function, names, rows)
    parts = X.to_delayed() if hasattr(X, "columns") else X.rechunk({1: -1}).to_delayed()[:, 0]
    framed = delayed(_framed, pure=False)
    tables = [
        framed(part, sent, block, len(parts) == 1, dask_key_name=f"bayesgmm-rows-{uuid4().hex}")
        for block, part in enumerate(parts)
    ]
    divisions = X.divisions if hasattr(X, "divisions") else None
    return dd.from_delayed(tables, meta=meta, divisions=divisions, verify_meta=False)


def _framed(
    rows: Any, sent: tuple[Callable[[FloatArray], pd.DataFrame], tuple[str, ...]], block: int, alone: bool
) -> pd.DataFrame:
    values = _numbers(rows) if hasattr(rows, "to_numpy") else rows
    found: pd.DataFrame = _of_partition(values, sent, alone, (block,))
    if hasattr(rows, "index"):
        found.index = rows.index
    return found


class _Fault:
    """An error of a partition, handed on as a value: raised on a worker it would print a traceback there."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _on_partition(
    task_and_columns: tuple[Task, tuple[str, ...]], rows: Any, weights: Any, block: int, threads: int
) -> Any:
    """Task on one partition: its value, None where there are no rows, or a fault."""
    task, columns = task_and_columns
    try:
        if hasattr(rows, "weighted_blocks"):
            with at_most(threads):
                return _over_blocks(task, rows, block)
        X, v = _checked(rows, weights, block, columns)
        with at_most(threads):
            return task(X, v, block) if len(X) else None
    except DataError as error:
        return _Fault(error)
    except MemoryError:
        size = f" ({len(rows):,} rows)" if hasattr(rows, "__len__") else ""
        return _Fault(ClusterError(f"out of memory on partition {block}{size}: {_SMALLER}"))


def _over_blocks(task: Task, table: Any, block: int) -> Any:
    """Sum of a task over the blocks of a table that is one partition; None where there are none."""
    total = None
    for part in table.each(task, block << 24):
        total = part if total is None else total + part
    return total


def _read(table: Any) -> FloatArray:
    """All rows of a table in blocks."""
    blocks = [rows for rows, _ in table.weighted_blocks()]
    return np.concatenate(blocks) if blocks else np.empty((0, table.n_features))


def _checked(rows: Any, weights: Any, block: int, columns: Sequence[str]) -> tuple[FloatArray, FloatArray | None]:
    """Rows and weights of a partition as the kernel takes them.

    Raises
    ------
    DataError
        If a value is no finite number, or the weights are others than those of the rows.
    """
    X = np.require(rows, np.float32 if rows.dtype == np.float32 else np.float64, ["C", "W"])
    with np.errstate(over="ignore", invalid="ignore"):
        # finite only where all values are
        total = X.sum()
    if not np.isfinite(total) and not np.isfinite(X).all():
        bad = np.argwhere(~np.isfinite(X))
        row, column = map(int, bad[0])
        what = "NaN" if np.isnan(X[row, column]) else "infinity"
        raise DataError(
            f"Input X contains {what}: partition {block}, row {row}, column {columns[column]!r} ({len(bad)} such "
            f"value{'s' * (len(bad) > 1)} in this partition). Drop or impute these rows"
        )
    if weights is None:
        return X, None
    v = np.require(weights, np.float64, ["C", "W"])
    if v.shape != (len(X),):
        raise DataError(
            f"partition {block} has {len(X)} rows and {v.size} weights: partition sample_weight like X, for example as a column of it"
        )
    wrong = np.flatnonzero(~((v >= 0) & np.isfinite(v)))
    if len(wrong):
        raise DataError(
            f"sample_weight must be finite and not negative: partition {block}, row {wrong[0]} has {v[wrong[0]]:g}"
        )
    return X, v


def _add(parts: Sequence[Any]) -> Any:
    """Sum in the order of the partitions; the first fault stands for all."""
    total = None
    for part in parts:
        if isinstance(part, _Fault):
            return part
        if part is not None:
            total = part if total is None else total + part
    return total


def _touch(*parts: Any) -> None:
    """Need something, and say nothing of it."""


def _name(task: Task) -> str:
    """Name of a task on the dashboard: ``LogLikelihoods`` is ``log-likelihoods``."""
    function = getattr(task, "func", task)
    name = getattr(function, "__name__", type(function).__name__).strip("_<>")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", "-", name).lower()


def as_array(X: Any) -> tuple[Any, tuple[str, ...] | None]:
    """A Dask array of one chunk along the features, and the column names of a DataFrame.

    Raises
    ------
    DataError
        If it is no table, or columns are not numbers.
    """
    import dask.array as da

    if hasattr(X, "map_partitions") and X.ndim == 2:
        text = [str(name) for name, dtype in X.dtypes.items() if not _is_number(dtype)]
        if text:
            many = f"columns {', '.join(map(repr, text))} are" if len(text) > 1 else f"column {text[0]!r} is"
            raise DataError(f"could not convert string to float: {many} not numeric; select the numeric columns")
        names = tuple(map(str, X.columns))
        return X.map_partitions(_numbers, meta=np.empty((0, len(names)))), names
    if not isinstance(X, da.Array):
        raise DataError(f"a Dask array or DataFrame is needed, not a {type(X).__name__}")
    if X.ndim != 2 or not X.shape[1] > 0:
        raise DataError(
            f"Expected 2D array of known width, got a Dask array of shape {X.shape}; a single feature is X[:, None], and "
            "X.compute_chunk_sizes() finds unknown sizes"
        )
    if not _is_number(X.dtype):
        raise DataError(f"could not convert string to float: a Dask array of {X.dtype}; real numbers are needed")
    return X.rechunk({1: -1}), None


def _is_number(dtype: Any) -> bool:
    """Whether a column's type, NumPy's, pandas' or Arrow's, is of real numbers."""
    return getattr(dtype, "kind", "O") in "biuf"


def _numbers(frame: Any) -> FloatArray:
    out: FloatArray = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    return out


def _aligned(sample_weight: Any, rows: Any) -> Any:
    """Weights as a Dask array partitioned like the rows.

    Raises
    ------
    DataError
        If they are not, or are no single column of numbers.
    """
    import dask.array as da

    known = not np.isnan(rows.chunks[0]).any()
    if not is_dask(sample_weight):
        if not known:
            raise DataError(
                "the partitions of X are of unknown sizes: give sample_weight as a Dask array partitioned alike"
            )
        values = np.asarray(sample_weight, dtype=np.float64)
        if values.shape != (rows.shape[0],):
            raise DataError(f"sample_weight.shape == {values.shape}, expected {(rows.shape[0],)}")
        return da.from_array(values, chunks=(rows.chunks[0],))
    weights = sample_weight if isinstance(sample_weight, da.Array) else sample_weight.to_dask_array()
    if weights.ndim != 1 or not _is_number(weights.dtype):
        raise DataError(f"sample_weight must be one column of numbers, not {weights.dtype} of shape {weights.shape}")
    if known and not np.isnan(weights.chunks[0]).any():
        if weights.shape[0] != rows.shape[0]:
            raise DataError(f"sample_weight has {weights.shape[0]} rows, and X {rows.shape[0]}")
        return weights.rechunk((rows.chunks[0],))
    if weights.numblocks != rows.numblocks[:1]:
        raise DataError(
            f"sample_weight has {weights.numblocks[0]} partitions, and X {rows.numblocks[0]}: partition it like X, for example as a "
            "column of it"
        )
    return weights


def _optimised(collection: Any) -> dict[Any, Any]:
    """Graph of a collection, optimised once for all passes; what is persisted stays."""
    whole = collection.__dask_graph__()
    held = {key: node for key, node in dict(whole).items() if hasattr(node, "client")}
    return held | dict(collection.__dask_optimize__(whole, collection.__dask_keys__()))


def _client_of(collection: Any) -> Client | None:
    """The client that holds a collection's rows, or this process's, if there is one."""
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client
    from distributed.client import futures_of

    held = futures_of(collection)
    if held:
        return held[0].client
    try:
        return default_client()
    except ValueError:
        return None


def _threads_of(client: Client | None, n_blocks: int) -> int:
    """Threads for each task: one, or a fair share where there are fewer partitions than threads."""
    if client is None:
        return max(1, available_threads() // n_blocks)
    workers = workers_of(client)
    return max(1, min(min(workers), sum(workers) // n_blocks))


def workers_of(client: Client) -> list[int]:
    """Threads of each worker, once there is one.

    Raises
    ------
    ClusterError
        If none comes in time, or the scheduler is gone.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            found = list(client.nthreads().values())
        except (OSError, CancelledError, RuntimeError) as error:
            raise ClusterError(f"the connection to the scheduler was lost ({error})") from error
        if found:
            return found
        if time.monotonic() > deadline:
            raise ClusterError(f"the cluster has had no worker for {PATIENCE_SECONDS:g} s: start workers and fit again")
        time.sleep(0.2)


def _compute(client: Client | None, graph: dict[Any, Any], key: Any) -> Any:
    """Value of one key of a graph, in words of ours where the cluster fails."""
    from dask.delayed import Delayed

    wanted = Delayed(key, graph)
    if client is None:
        return wanted.compute()
    from distributed import KilledWorker, wait

    future = client.compute(wanted)
    try:
        while not future.done():
            try:
                wait(future, timeout=POLL_SECONDS)
            except TimeoutError:
                workers_of(client)
        return future.result()
    except KilledWorker as error:
        deaths = error.allowed_failures + 1
        raise ClusterError(
            f"{deaths} worker{'s' * (deaths > 1)} died at work, the last with {_held(error.task)} in hand; most often they run out of "
            f"memory: {_SMALLER}"
        ) from error
    except CancelledError as error:
        raise ClusterError(
            f"the cluster lost the rows or the connection ({error}); rows that were scattered, not computed, cannot be computed anew"
        ) from error
    finally:
        future.release()


def memory_of(client: Client) -> int:
    """Bytes of memory that all workers may use together; 0 where they know no limit."""
    limits = client.run_on_scheduler(_memory_limits)
    return int(sum(limits)) if all(limits) else 0


def _memory_limits(dask_scheduler: Any) -> list[int]:
    return [worker.memory_limit or 0 for worker in dask_scheduler.workers.values()]


class OnWorkers:
    """Functions of one common thing and an item each, evaluated on the workers of a cluster.

    Parameters
    ----------
    client : distributed.Client
    common : object
        Sent to each worker once.

    Raises
    ------
    ClusterError
        If there is no worker.
    """

    def __init__(self, client: Client, common: Any) -> None:
        import cloudpickle

        workers_of(client)
        self.client = client
        self._bytes = cloudpickle.dumps(common)
        self._sent: Any = None

    def evaluated(
        self,
        function: Callable[[Any, Any], Any],
        items: Sequence[Any],
        name: str,
        on_interrupt: Callable[[], None] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Values of ``function(common, item)``, as they come.

        A worker that is lost is no matter: another does its work. Where all that had the common thing are lost, it is sent anew.

        Parameters
        ----------
        function : callable
        items : sequence
        name : str
            On the dashboard.
        on_interrupt : callable, optional
            Called at the first Ctrl-C, after which values are waited for as before: it tells the functions to come to an end.

        Yields
        ------
        place : int
            Of the item.
        value : object

        Raises
        ------
        ClusterError
            If the cluster cannot do it.
        """
        from distributed import KilledWorker, as_completed

        waiting = set(range(len(items)))
        for attempt in range(ATTEMPTS):
            places = self._submitted(function, {place: items[place] for place in sorted(waiting)}, name)
            try:
                finished = as_completed(list(places))
                while waiting:
                    try:
                        future = next(finished)
                    except KeyboardInterrupt:
                        if on_interrupt is None:
                            raise
                        on_interrupt()
                        on_interrupt = None
                        continue
                    value = future.result()
                    waiting.discard(places[future])
                    yield places[future], value
                return
            except KilledWorker as error:
                raise ClusterError(f"workers died at work; most often they run out of memory: {error}") from error
            except CancelledError as error:
                self._sent = None
                if attempt == ATTEMPTS - 1:
                    raise ClusterError(f"the cluster lost the work or the connection ({error})") from error
            finally:
                for future in places:
                    future.release()

    def _submitted(self, function: Callable[[Any, Any], Any], items: dict[int, Any], name: str) -> dict[Any, int]:
        """Places of items by the futures of their values."""
        workers_of(self.client)
        if self._sent is None:
            key = f"bayesgmm-common-{uuid4().hex}"
            self._sent = self.client.scatter({key: self._bytes}, broadcast=True)[key]
        submit = self.client.submit
        return {
            submit(_on_worker, function, self._sent, item, key=f"{name}-{uuid4().hex}", pure=False): place
            for place, item in items.items()
        }


def _on_worker(function: Callable[[Any, Any], Any], payload: bytes, item: Any) -> Any:
    from distributed import get_worker

    with at_most(get_worker().state.nthreads):
        return function(pickle.loads(payload), item)


def _held(key: Any) -> str:
    """What a key of ours is about."""
    if isinstance(key, tuple) and isinstance(key[1], int) and not str(key[0]).startswith("bayesgmm-sum"):
        return f"partition {key[1]}"
    return "parameters" if str(key).startswith("bayesgmm-parameters") else "sums"


@contextmanager
def connected(scheduler: str | None = None, n_workers: int | None = None) -> Iterator[Client]:
    """A client of a cluster, of a scheduler that is there or of workers that are started on this machine and end with it.

    Parameters
    ----------
    scheduler : str, optional
        Address, such as ``tcp://10.0.0.1:8786``.
    n_workers : int, optional
        Worker processes on this machine, which share its cores.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ClusterError
        If Dask is not installed, the address is none, or no scheduler answers there within 5 seconds.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ClusterError("clusters need Dask: install it with pip install 'bayesgmm[dask]'") from error
    if scheduler is None:
        threads = max(1, available_threads() // (n_workers or 1))
        with (
            LocalCluster(
                n_workers=n_workers,
                threads_per_worker=threads,
                dashboard_address="127.0.0.1:0",
                preload=[__name__],
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    _knock(scheduler)
    # A client that has not come to be has to be told so: it would try to say goodbye at exit, and print that it could not.
    client = Client.__new__(Client)
    try:
        client.__init__(scheduler, timeout=CONNECT_SECONDS)  # type: ignore[misc]
    except Exception as error:
        client.status = "closed"
        raise ClusterError(f"no Dask scheduler answers at {scheduler}: {_one_line(error)}") from error
    with client:
        yield client


def dask_setup(worker: Any) -> None:
    """Make a worker of this machine deaf to Ctrl-C, which a terminal sends to all processes: it is for us, who tell the workers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _knock(address: str) -> None:
    """Open a connection and hear whether a scheduler speaks there: Dask's own client may wait for one without end.

    Raises
    ------
    ClusterError
        If the address is none, or no scheduler is there.
    """
    found = re.fullmatch(r"(?:(?P<scheme>tcp|tls)://)?(?P<host>\[[^\]]+\]|[^\s:/]+):(?P<port>\d{1,5})/?", address)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ClusterError(f"{address!r} is no address of a scheduler: expected one such as tcp://10.0.0.1:8786")
    try:
        place = (found["host"].strip("[]"), int(found["port"]))
        with socket.create_connection(place, timeout=CONNECT_SECONDS) as connection:
            # a scheduler speaks first, but under TLS; its message begins with the number of its parts
            said = b"\1".ljust(8, b"\0") if found["scheme"] == "tls" else connection.recv(8)
    except OSError as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} ({error.strerror or error}): start one with 'dask scheduler', or see whether "
            "the address and the port can be reached from here"
        ) from error
    if not 0 < int.from_bytes(said, "little") < 1000:
        raise ClusterError(f"what answers at {address} is no Dask scheduler")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
