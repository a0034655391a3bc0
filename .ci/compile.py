"""Compiles what the tests share, in one process and one order.

Test processes that ran side by side would each compile it, in an order of their own; found in the cache, it is the same code, bit for bit.
"""

import warnings

import numpy as np

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, GaussianMixture, select

warnings.simplefilter("ignore")
X = np.vstack([np.random.default_rng(0).normal(centre, 1.0, (60, 2)) for centre in (0.0, 9.0)])
GaussianMixture(2, random_state=0).fit(X).standard_errors(X)
GaussianMixture(2, random_state=0).fit(X.astype(np.float32))
GaussianMixture(2, prior="default", random_state=0).fit(X).predict_proba(X)
settings = {"draws": 50, "chains": 2, "target_ess": 0, "random_state": 0, "progressbar": False}
post = BayesianGaussianMixture(2, **settings).fit(X)
post.predict_proba(X)
post.partition(n_draws=50, n_restarts=2)
AnomalyDetector(BayesianGaussianMixture(2, method="laplace", **settings), n_simulated=500).fit(X).table()
select(X, (1, 2), "full", method="laplace", random_state=0, draws=100, progressbar=False)
