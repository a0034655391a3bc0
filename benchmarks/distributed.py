"""EM past one machine: what an iteration costs on a cluster, reckoned from one core and run on 64 virtual workers, one after another.

A virtual worker does what a real one does: it gets the pickled parameters, passes over its own rows on one core, and gives pickled
sums, which a tree adds. Only the wires are not there: their bytes are counted, and their time is reckoned.
"""

from __future__ import annotations

import pickle
import time
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from bayesgmm.core import blocked, em
from bayesgmm.core.blocks import Accumulate, moments
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
from bayesgmm.distributed import FAN_IN, DaskBlocks, _add, _on_partition, connected
from benchmarks.measure import Row, Section, Truth, duration, elapsed, limited_threads, simulate

CASES = ((2, 3, 2_000_000), (10, 5, 500_000), (20, 10, 200_000))
"""Features, components, and rows of a worker: passes of some 10 ms and more."""

WORKERS = 64
REPETITIONS = 5
TOLERANCE = 0.15
"""How far the simulated run may lie from what was reckoned: both are maxima of 64 times, one expected and one that came out. Of times that
vary by a tenth such a maximum is 1.24 of the mean and varies by 0.04 (that of 64 normal numbers: 2.4 ± 0.43), and the expected one is taken
from 64 times too: three standard deviations of the difference are 0.15."""

FAR_ROWS, FAR_WORKERS = 1e10, 100
FAR_PARTITIONS = 400
BANDWIDTH, LATENCY = 1.25e9, 5e-4
"""Of a network of 10 Gbit/s: bytes and seconds."""

MOST_BYTES = 1.2
"""Bytes that travel, against 8 for each number in the sums and in the parameters."""


def _best(task: Any, repetitions: int = REPETITIONS) -> float:
    """Seconds of a core: a virtual worker has one to itself, whatever else runs on this machine."""

    def once() -> float:
        begin = time.thread_time()
        task()
        return time.thread_time() - begin

    return min(once() for _ in range(repetitions))


def _expected_maximum(seconds: list[float], n: int) -> float:
    """Expected maximum of n draws from the distribution of times: Σ_i t_(i) [(i / m)^n − ((i − 1) / m)^n], t_(i) the i-th of m in order."""
    edges = (np.arange(len(seconds) + 1) / len(seconds)) ** n
    return float(np.sort(seconds) @ np.diff(edges))


def _numbers(D: int, K: int) -> int:
    """Numbers in the sums of a pass, and about those in the parameters: K (1 + D + D²)."""
    return K * (1 + D + D * D)


def _tree(messages: list[bytes]) -> tuple[Any, list[list[float]], int]:
    """Sum of messages by a tree: its value, the seconds of each node by level, and the bytes of the inner nodes' messages."""
    levels, sent = [], 0
    while len(messages) > 1:
        groups = [messages[i : i + FAN_IN] for i in range(0, len(messages), FAN_IN)]
        levels.append([_best(lambda group=group: _node(group)) for group in groups])
        messages = [_node(group) for group in groups]
        sent += sum(map(len, messages))
    return pickle.loads(messages[0]), levels, sent


def _node(group: list[bytes]) -> bytes:
    return pickle.dumps(_add([pickle.loads(each) for each in group]), protocol=pickle.HIGHEST_PROTOCOL)


def _share(truth: Truth, n_rows: int, worker: int) -> np.ndarray:
    """A worker's own rows of the one mixture."""
    rng = np.random.default_rng([worker, n_rows])
    roots = np.linalg.cholesky(truth.covariances)
    blocks = [
        mean + rng.standard_normal((n, len(mean))) @ root.T
        for n, mean, root in zip(rng.multinomial(n_rows, truth.weights), truth.means, roots)
    ]
    return rng.permutation(np.concatenate(blocks))


def _case(D: int, K: int, n_rows: int, quick: bool) -> tuple[list[Row], dict[str, float]]:
    truth = simulate(1, D, K, 3.0)[1]
    X = _share(truth, n_rows, WORKERS)
    parameters = MixtureParameters(truth.weights, truth.means, factors_from_covariances(truth.covariances))
    payload = pickle.dumps((Accumulate(parameters), tuple(f"x{j}" for j in range(D))))

    def work(rows: np.ndarray, block: int) -> bytes:
        return pickle.dumps(
            _on_partition(pickle.loads(payload), rows, None, block, 1), protocol=pickle.HIGHEST_PROTOCOL
        )

    # One core's figures, between every two workers: seconds of a pass over always the same rows, and of a message.
    message = work(X, 0)
    passes, nodes = [], []
    seconds, messages, sums = [], [], []
    for worker in range(WORKERS):
        passes.append(_best(lambda: work(X, 0)))
        nodes.append(_best(lambda: _node([message] * FAN_IN)))
        rows = _share(truth, n_rows, worker)
        seconds.append(_best(lambda rows=rows, worker=worker: work(rows, worker)))
        messages.append(work(rows, worker))
        sums.append(pickle.loads(messages[-1]))
    per_row, per_message = float(np.median(passes)) / n_rows, float(np.median(nodes)) / FAN_IN
    height = int(np.ceil(np.log(WORKERS) / np.log(FAN_IN)))
    slowest, evenly = _expected_maximum(passes, WORKERS), n_rows * per_row
    reckoned = slowest + height * FAN_IN * per_message
    total, levels, inner = _tree(messages)
    flat = reduce(add, sums)
    np.testing.assert_allclose(total.second, flat.second, rtol=1e-10, atol=1e-10 * np.abs(flat.second).max())
    sums_last = sum(map(max, levels))
    simulated = max(seconds) + sums_last
    up, down = sum(map(len, messages)) + inner, WORKERS * len(payload)
    least = 8 * 2 * WORKERS * _numbers(D, K)

    m_step = _best(lambda: em.Problem(X[:2], structure("full"), reg_covar=1e-6).m_step(total, parameters.means))
    name = f"{WORKERS} workers × {n_rows:,} rows, D={D} K={K}"
    rows_of = [
        Row(
            f"an iteration: {name}",
            "1 a worker",
            duration(simulated),
            duration(reckoned),
            f"{simulated / reckoned:.2f}",
            f"1 ± {TOLERANCE:g}",
            None if quick else abs(simulated / reckoned - 1) <= TOLERANCE,
            f"slowest worker {duration(max(seconds))}, expected {duration(slowest)} = {slowest / evenly:.2f} medians; sums "
            f"{duration(sums_last)}",
            {"seconds": seconds, "passes": passes, "levels": levels, "reckoned": reckoned},
        ),
        Row(
            f"bytes of an iteration: {name}",
            "–",
            f"{(up + down) / 1e3:.0f} kB",
            f"{least / 1e3:.0f} kB",
            f"{(up + down) / least:.2f}",
            f"≤ {MOST_BYTES:g}" if D >= 10 else "–",
            None if quick or D < 10 else (up + down) / least <= MOST_BYTES,
            f"sums {len(messages[0]):,} bytes each, parameters {len(payload):,}; rows: none",
            {"up": up, "down": down, "least": least},
        ),
    ]
    one = float(len(message))
    far_height = int(np.ceil(np.log(FAR_WORKERS) / np.log(FAN_IN)))
    wires = 2 * far_height * (LATENCY + FAN_IN * one / BANDWIDTH)
    far = {
        "per_row": per_row,
        "slowest": _expected_maximum(passes, FAR_WORKERS) / evenly,
        "rows": FAR_ROWS / FAR_WORKERS * _expected_maximum(passes, FAR_WORKERS) / n_rows,
        "sums": far_height * FAN_IN * per_message + m_step,
        "wires": wires,
        "bytes": FAR_WORKERS * (one * FAN_IN / (FAN_IN - 1) + len(payload)),
    }
    return rows_of, far


def _of_scheduler(n_partitions: int) -> tuple[float, float]:
    """Seconds of a pass over partitions without rows to speak of, on two real workers, and those for each task."""
    import dask.array as da

    X = np.random.default_rng(0).normal(size=(4 * n_partitions, 2))
    with connected(n_workers=2):
        blocks = DaskBlocks(da.from_array(X, chunks=(4, 2)).persist())
        blocks.total(moments)
        whole = min(elapsed(lambda: blocks.total(moments)) for _ in range(5))
    return whole, whole / (n_partitions * FAN_IN / (FAN_IN - 1))


def run(quick: bool) -> Section:
    """Reckon and simulate every case."""
    rows: list[Row] = []
    remarks = []
    n_partitions = 32 if quick else 256
    whole, each = _of_scheduler(n_partitions)
    scheduled = each * FAR_PARTITIONS * FAN_IN / (FAN_IN - 1)
    with limited_threads(1):
        for D, K, n_rows in CASES[:1] if quick else CASES:
            found, far = _case(D, K, 20_000 if quick else n_rows, quick)
            rows += found
            seconds = far["rows"] + far["sums"] + far["wires"]
            remarks.append(
                f"{FAR_ROWS:.0e} rows on {FAR_WORKERS} workers of one core, D={D} K={K}: {duration(seconds + scheduled)} an iteration "
                f"({1e9 * far['per_row']:.1f} ns a row, the slowest of {FAR_WORKERS} × {far['slowest']:.2f}; sums "
                f"{duration(far['sums'])}, a network of 10 Gbit/s {duration(far['wires'])}, {far['bytes'] / 1e6:.2f} MB in all; "
                f"scheduler {duration(scheduled)} for {FAR_PARTITIONS} partitions)"
            )
    rows.append(
        Row(
            f"Dask's scheduler: a pass over {n_partitions} partitions of 4 rows, two worker processes",
            "1 a worker",
            duration(whole),
            "–",
            f"{duration(each)} a task",
            "–",
            None,
            "partitions should be so large that this is little",
            {"seconds": whole, "per_task": each},
        )
    )
    remarks.append(f"rows that travel: the {blocked.SUBSAMPLE_ROWS:,} that the starts are made from, once")
    return Section(
        "Past one machine: an iteration of EM on a cluster, by 64 virtual workers",
        "what is reckoned: the expected slowest of 64, from one core's times, and the tree; 8 bytes a number",
        tuple(rows),
        tuple(remarks),
    )
