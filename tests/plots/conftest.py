"""One posterior for one feature, one for three, and EM's fit with its history, shared by all tests of figures."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from bayesgmm import BayesianGaussianMixture, GaussianMixture

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def table(D: int, n_rows: int = 120) -> pd.DataFrame:
    """A third of the rows 8 units away in every feature."""
    rng = np.random.default_rng(D)
    X = rng.standard_normal((n_rows, D))
    X[: n_rows // 3] += 8
    return pd.DataFrame(X, columns=[f"feature {chr(97 + j)}" for j in range(D)])


def laplace(X, K: int = 2, covariance_type: str = "full", **options):
    return BayesianGaussianMixture(
        K,
        covariance_type=covariance_type,
        method="laplace",
        draws=150,
        target_ess=0,
        n_init=2,
        random_state=0,
        progressbar=False,
        **options,
    ).fit(X)


@pytest.fixture(scope="package")
def X():
    return table(3)


@pytest.fixture(scope="package")
def post(X):
    return laplace(X)


@pytest.fixture(scope="package")
def X1():
    return table(1)


@pytest.fixture(scope="package")
def post1(X1):
    return laplace(X1)


@pytest.fixture(scope="package")
def em(X):
    """From a poor start, so that there are iterations to show."""
    return GaussianMixture(2, init_params="random", n_init=1, keep_history=True, random_state=3).fit(X)


def panels(figure):
    """Axes that are shown."""
    return [ax for ax in figure.axes if ax.axison]


def all_text(figure) -> str:
    """Everything that is written in a figure, folded lines joined."""
    return " ".join(t.get_text() for t in figure.findobj(mpl.text.Text)).replace("\n", " ").replace("\u00a0", " ")
