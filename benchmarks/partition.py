"""The partition of smallest expected loss beside taking the best single draw, for the same allocations.

What people do without a search: the loss between draws, each pair by NumPy's contingency tables, and the draw with the smallest mean.
All pairs of 4,000 draws take minutes so: the peer's time is measured on some of the candidates, against all draws, and scaled up. Our time
is one whole call of ``partition``: drawing the allocations, k-means, the exact best draw, the search, the credible ball.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from benchmarks.measure import Row, Section, all_threads, duration, elapsed

N_ROWS, N_DRAWS = 1_000, 4_000
QUICK = (200, 400)
CENTRES = np.array([[0.0, 0.0], [2.5, 0.0], [0.0, 3.0], [3.0, 3.0]])
LIMIT = 10.0
CANDIDATES = 10


def _losses(z: np.ndarray, labels: np.ndarray, loss: str) -> np.ndarray:
    """Loss of one partition under each draw (N, S): contingency tables by ``bincount``."""
    N, K, C = len(z), int(z.max()) + 1, int(labels.max()) + 1
    out = np.empty(z.shape[1])
    for s in range(z.shape[1]):
        table = np.bincount(labels * K + z[:, s], minlength=C * K).reshape(C, K).astype(float)
        sums = [
            np.sum(n**2 if loss == "binder" else n * np.log2(np.maximum(n, 1.0)))
            for n in (table.sum(0), table.sum(1), table)
        ]
        out[s] = sums[0] + sums[1] - 2 * sums[2]
    return out / (N if loss == "vi" else N**2)


def _measure(post: Any, loss: str, n_draws: int, judged: bool) -> Row:
    from bayesgmm.core.allocations import draw_allocations

    # Compiles.
    post.partition(loss=loss, n_draws=50)
    results: list[Any] = []
    ours = elapsed(lambda: results.append(post.partition(loss=loss, n_draws=n_draws)))
    found = results[0]
    z = draw_allocations(post._X, *post._draws.flat(), np.random.default_rng(0).spawn(3)[0]).astype(np.int64)
    tried = np.linspace(0, z.shape[1] - 1, CANDIDATES).astype(int)
    peer = elapsed(lambda: [_losses(z, z[:, s], loss) for s in tried]) / CANDIDATES * z.shape[1]
    best = found.comparisons["best draw"]
    same = np.isclose(_losses(z, found.labels, loss).mean(), found.expected_loss, rtol=1e-9)
    no_worse = all(found.expected_loss <= other.expected_loss + 1e-12 for other in found.comparisons.values())
    others = ", ".join(f"{name} {other.expected_loss:.4g}" for name, other in found.comparisons.items())
    return Row(
        f"N={len(found.labels)}, {found.n_draws} draws, {loss}",
        f"{all_threads()} | 1",
        duration(ours),
        duration(peer),
        f"{peer / ours:.1f}×",
        f"≤ {LIMIT:g} s" if judged else "–",
        bool(ours <= LIMIT and same and no_worse) if judged else None,
        f"expected loss {found.expected_loss:.4g} in {found.n_clusters} clusters; {others}"
        + ("" if same and no_worse else " NOT AS IT SHOULD BE"),
        {"ours": ours, "peer": peer, "expected_loss": found.expected_loss, "best_draw": best.expected_loss},
    )


def run(quick: bool) -> Section:
    """Measure both losses on four clusters that overlap."""
    from bayesgmm import BayesianGaussianMixture

    n_rows, n_draws = QUICK if quick else (N_ROWS, N_DRAWS)
    rng = np.random.default_rng(0)
    X = np.repeat(CENTRES, n_rows // 4, axis=0) + rng.standard_normal((n_rows, 2))
    with warnings.catch_warnings():
        # Components that overlap cannot be told apart, and the fit says so: partitions do not mind.
        warnings.simplefilter("ignore")
        post = BayesianGaussianMixture(
            4, draws=n_draws // 4, max_draws=n_draws // 4, target_ess=0, random_state=0, progressbar=False
        ).fit(X)
    return Section(
        "Partition of smallest posterior expected loss",
        f"the best single draw by NumPy, {CANDIDATES} candidates timed against all draws and scaled to all candidates",
        tuple(_measure(post, loss, n_draws, not quick) for loss in ("vi", "binder")),
        ("Ours: one whole call of partition, the exact best single draw included",),
    )
