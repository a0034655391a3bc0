"""What every section shares: simulated mixtures, interleaved timing, threads, and the rows of the tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Row:
    """One line of a table: both sides, their ratio, and whether it meets the target.

    `met` is None where the row is for information or the sizes are not those of the target (a quick run). `against` names the
    peer where the rows of a table have several.
    """

    case: str
    threads: str
    ours: str
    peer: str
    ratio: str
    target: str
    met: bool | None
    note: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    against: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Section:
    """A table with what it compares in words and remarks below it."""

    title: str
    against: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truth:
    """Parameters of a simulated mixture."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def simulate(
    n_rows: int, n_features: int, n_components: int, spread: float, *, seed: int = 0, min_distance: float = 0.0
) -> tuple[np.ndarray, Truth]:
    """Rows (N, D) of a mixture with unit variances, and its parameters.

    Centres are N(0, spread²), drawn again until all pairs are `min_distance` apart; correlations are moderate.
    """
    rng = np.random.default_rng([seed, n_features, n_components])
    weights = rng.dirichlet(np.full(n_components, 20.0))
    while True:
        means = spread * rng.standard_normal((n_components, n_features))
        distances = np.linalg.norm(means[:, None] - means[None], axis=2)[np.triu_indices(n_components, 1)]
        if np.all(distances >= min_distance):
            break
    mixing = np.eye(n_features) + 0.5 / np.sqrt(n_features) * rng.standard_normal(
        (n_components, n_features, n_features)
    )
    mixing /= np.linalg.norm(mixing, axis=2, keepdims=True)
    X = np.empty((n_rows, n_features))
    labels = rng.choice(n_components, size=n_rows, p=weights)
    for k in range(n_components):
        member = np.flatnonzero(labels == k)
        X[member] = means[k] + rng.standard_normal((len(member), n_features)) @ mixing[k].T
    return X, Truth(weights, means, mixing @ np.swapaxes(mixing, 1, 2))


@contextmanager
def limited_threads(n: int) -> Iterator[None]:
    """Hold BLAS and OpenMP, and bayesgmm's own threads, to n."""
    before = os.environ.get("BAYESGMM_NUM_THREADS")
    os.environ["BAYESGMM_NUM_THREADS"] = str(n)
    try:
        with threadpool_limits(limits=n):
            yield
    finally:
        if before is None:
            del os.environ["BAYESGMM_NUM_THREADS"]
        else:
            os.environ["BAYESGMM_NUM_THREADS"] = before


def all_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def elapsed(task: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


def interleaved(
    ours: Callable[[], float], peer: Callable[[], float], repetitions: int
) -> tuple[list[float], list[float]]:
    """Measure ours, peer, ours, peer, … so that a slow minute of the machine falls on both."""
    both = [(ours(), peer()) for _ in range(repetitions)]
    return [a for a, _ in both], [b for _, b in both]


def seconds_per_call(task: Callable[[], Any], at_least: float) -> Callable[[], float]:
    """Measurement of the mean time of a call, over as many calls as last about `at_least` seconds."""
    once = min(elapsed(task) for _ in range(3))
    calls = max(1, round(at_least / max(once, 1e-9)))

    def block() -> float:
        return elapsed(lambda: [task() for _ in range(calls)] and None) / calls

    return block


def duration(seconds: float) -> str:
    """Seconds with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def count(n: int) -> str:
    """Number of rows as in the table of targets: 1e4, 5e4, 1e6, or plain."""
    text = f"{n:.0e}".replace("e+0", "e").replace("e+", "e")
    return text if n >= 1000 and float(text) == n else str(n)


def size(n_rows: int, n_features: int, n_components: int) -> str:
    """A case by its size."""
    return f"N={count(n_rows)} D={n_features} K={n_components}"


def speed_row(
    case: str,
    threads: str,
    ours: Sequence[float],
    peer: Sequence[float],
    target: float | None,
    *,
    note: str = "",
    valid: bool = True,
    against: str = "",
    **values: Any,
) -> Row:
    """Row of two lists of times: ratio of the medians, peer over ours, that should be at least the target."""
    a, b = float(np.median(ours)), float(np.median(peer))
    # Times that are differences may be smaller than the noise of a busy machine.
    ratio = b / a if min(a, b) > 0 else None
    if ratio is None:
        note = f"{note}; LOST IN NOISE"
    return Row(
        case,
        threads,
        duration(a),
        duration(b),
        "–" if ratio is None else f"{ratio:.1f}×",
        "–" if target is None else f"≥ {target:g}×",
        None if target is None else bool(valid and ratio is not None and ratio >= target),
        note,
        {"ours": list(ours), "peer": list(peer), "ratio": ratio, **values},
        against,
    )
