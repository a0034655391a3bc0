"""Whether the standard error of the log evidence is its scatter: NUTS fits against exact enumeration.

``python -m benchmarks.evidence`` fits two components to eight rows, overlapping and separated, with many seeds, and prints mean and
standard deviation of z = (estimate − exact) / standard error: they should be near 0 and 1.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np

from bayesgmm import BayesianGaussianMixture, ConjugatePrior
from tests.oracles import Enumeration, PriorValues

CENTRE, SCALE = np.array([0.3, 0.5]), np.array([[1.5, 0.5], [0.5, 1.0]])
OVERLAPPING = np.array(
    [[-2.4, -1.0], [-1.9, 0.3], [-1.5, -0.6], [-0.2, 0.9], [0.4, -0.4], [1.6, 1.8], [2.0, 0.7], [2.9, 2.2]]
)
SEPARATED = 0.3 * OVERLAPPING + np.where(np.arange(8) < 4, -6.0, 6.0)[:, None]
CASES = {"overlapping": (OVERLAPPING, 0.5), "separated": (SEPARATED, 0.02)}


def calibration(
    table: str, covariance_type: str = "full", n_seeds: int = 20, draws: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """z-scores and standard errors of the log evidence over seeds, each with a NUTS fit of its own.

    Parameters
    ----------
    table : {"overlapping", "separated"}
    covariance_type : {"full", "tied", "diag", "spherical"}
    n_seeds : int
    draws : int
        Per chain, of four.

    Returns
    -------
    z, errors : ndarray of shape (n_seeds,)
    """
    X, kappa = CASES[table]
    exact = Enumeration(X, PriorValues(np.full(2, 2.0), CENTRE, kappa, 6.0, SCALE), 2, covariance_type).log_evidence
    z, errors = np.empty(n_seeds), np.empty(n_seeds)
    for seed in range(n_seeds):
        estimator = BayesianGaussianMixture(
            2,
            covariance_type=covariance_type,
            prior=ConjugatePrior(2.0, CENTRE, kappa, 6.0, SCALE),
            draws=draws,
            target_ess=0,
            random_state=seed,
            progressbar=False,
        )
        with warnings.catch_warnings():
            # Eight rows say little about which component is which.
            warnings.simplefilter("ignore", UserWarning)
            found = estimator.fit(X).log_evidence(random_state=seed)
        z[seed], errors[seed] = (found.log_evidence - exact) / found.standard_error, found.standard_error
    return z, errors


def main() -> int:
    """Print one line per case; 1 where the scatter and the errors do not agree."""
    good = True
    for table in CASES:
        for covariance_type in ("full", "tied", "diag", "spherical"):
            z, errors = calibration(table, covariance_type)
            # 20 unit normals: sd within 0.52 and 1.52, mean within 0.74 with probability 0.999.
            good &= 0.5 < z.std(ddof=1) < 1.6 and abs(z.mean()) < 0.74
            print(
                f"{table:12s} {covariance_type:10s} z: mean {z.mean():+.2f}, sd {z.std(ddof=1):.2f}; median error {np.median(errors):.4f}",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
