"""A sweep over K and structures beside the same loop over scikit-learn's ``GaussianMixture``, and the time of a full selection.

The loop is what a user of scikit-learn writes: every structure and every K = 1 … 9 with ten starts, all other arguments as they are
there, and ``bic``. Ours is one call of ``select``. The peer's default tolerance (1e-3 nats a row) ends its climbs early; ours go on
to 1e-7, and no BIC of ours may be above the peer's by more than 0.1.

The full selection of Old Faithful (K = 1 … 6, NUTS, 4 × 1000 draws, all criteria) is timed as a process of its own, imports included:
with empty caches, and again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, Section, all_threads, duration, elapsed, simulate, size
from benchmarks.process import ROOT, _environment

STRUCTURES = ("full", "tied", "diag", "spherical")
CASE = (10_000, 4, 5)
QUICK_CASE = (1_000, 4, 3)
SPREAD = 2.5
STARTS = 10
TARGET = 10.0
BIC_SLACK = 0.1
LIMITS = {"warm": 60.0, "cold": 150.0}
SCRIPT = """
from bayesgmm import select
from bayesgmm.datasets import load_faithful
found = select(load_faithful(), range(1, {stop}), "full", method="nuts", draws={draws}, random_state=1, progressbar=False)
print(found.summary())
"""


def _loop(X: Any, ks: range) -> dict[tuple[str, int], float]:
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        # Fits with too many components stop at max_iter, and say so.
        warnings.simplefilter("ignore")
        return {
            (kind, K): float(GaussianMixture(K, covariance_type=kind, n_init=STARTS, random_state=0).fit(X).bic(X))
            for kind in STRUCTURES
            for K in ks
        }


def _sweep(quick: bool) -> tuple[Row, str]:
    from bayesgmm import select

    n_rows, n_features, n_components = QUICK_CASE if quick else CASE
    ks = range(1, 4 if quick else 10)
    X, _ = simulate(n_rows, n_features, n_components, SPREAD)
    options = {"n_init": STARTS, "random_state": 0, "progressbar": False}
    # Compiles the kernel.
    select(X[:2000], (1, 2), STRUCTURES, **options)
    found: list[Any] = []
    ours = elapsed(lambda: found.append(select(X, ks, STRUCTURES, **options)))
    theirs: list[dict[tuple[str, int], float]] = []
    peer = elapsed(lambda: theirs.append(_loop(X, ks)))
    worst = {key: float(found[0].table.loc[key, "bic"]) - bic for key, bic in theirs[0].items()}
    key = max(worst, key=lambda k: worst[k])
    no_worse = worst[key] <= BIC_SLACK
    ratio = peer / ours
    row = Row(
        f"{size(*X.shape, n_components)}: {len(STRUCTURES)} structures × K = 1..{ks[-1]} × {STARTS} starts",
        f"{all_threads()} | {all_threads()}",
        duration(ours),
        duration(peer),
        f"{ratio:.1f}×",
        "–" if quick else f"≥ {TARGET:g}×",
        None if quick else bool(no_worse and ratio >= TARGET),
        f"BIC at worst {worst[key]:+.2f} (K = {key[1]}, {key[0]})" + ("" if no_worse else " WORSE THAN THE PEER'S"),
        {"ours": ours, "peer": peer, "ratio": ratio, "bic_differences": {f"{k}-{K}": d for (k, K), d in worst.items()}},
    )
    better = sum(d < -1 for d in worst.values())
    return (
        row,
        f"Our BIC is lower by more than 1 for {better} of {len(worst)} models (at most by {-min(worst.values()):.0f})",
    )


def _selection(quick: bool) -> tuple[list[Row], str]:
    script = SCRIPT.format(stop=4 if quick else 7, draws=100 if quick else 1000)
    printed: list[str] = []

    def once(cache: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=_environment(cache, one_blas_thread=True),
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the selection failed:\n{done.stderr[-2000:]}")
        printed.append(done.stdout.strip())

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            seconds = elapsed(lambda: once(Path(folder)))
            rows.append(
                Row(
                    f"Old Faithful K=1..{3 if quick else 6} full, NUTS 4 × {100 if quick else 1000}, all criteria, caches {name}",
                    f"{all_threads()} | –",
                    duration(seconds),
                    "–",
                    "–",
                    "–" if quick else f"≤ {LIMITS[name]:g} s",
                    None if quick else seconds <= LIMITS[name],
                    "imports included",
                    {"seconds": seconds},
                )
            )
    return rows, printed[-1]


def run(quick: bool) -> Section:
    """Measure the sweep by EM beside the loop, and the full selection."""
    sweep, remark = _sweep(quick)
    selection, summary = _selection(quick)
    return Section(
        "Selection over K and structures",
        f"a loop over scikit-learn GaussianMixture(n_init={STARTS}), its defaults otherwise",
        (sweep, *selection),
        (remark, f"Old Faithful: {summary}"),
    )
