"""What a user's script does on Old Faithful, for each side: ``python -m benchmarks.faithful ours|peer FILE DRAWS``.

Reads the table, samples K = 2 with four chains and prints the posterior means as JSON. A process of its own, so that
all imports and compilations are in its time.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def ours(X: np.ndarray, draws: int) -> np.ndarray:
    """Posterior means by bayesgmm."""
    from bayesgmm import BayesianGaussianMixture

    post = BayesianGaussianMixture(2, draws=draws, chains=4, random_state=1, progressbar=False).fit(X)
    return post.means_


def peer(X: np.ndarray, draws: int) -> np.ndarray:
    """Posterior means by nutpie on the pm.Mixture model, started at the quartiles so that labels stay in order."""
    import nutpie

    from benchmarks.peer import build_model, start

    means = np.quantile(X, [0.25, 0.75], axis=0)
    point = start(np.full(2, 0.5), means, np.stack([np.diag(X.var(axis=0) / 4)] * 2))
    compiled = nutpie.compile_pymc_model(build_model(X, 2), initial_points=point, jitter_rvs=set())
    trace = nutpie.sample(compiled, draws=draws, chains=4, seed=1, progress_bar=False)
    return trace["posterior"]["means"].values.mean(axis=(0, 1))


if __name__ == "__main__":
    side, path, n_draws = sys.argv[1:]
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    found = {"ours": ours, "peer": peer}[side](table, int(n_draws))
    print(json.dumps(found[np.argsort(found[:, 0])].tolist()))
