"""One posterior of Old Faithful, whose features have names that must be escaped, and its report."""

from __future__ import annotations

import warnings

import pytest

from bayesgmm import BayesianGaussianMixture
from bayesgmm.datasets import load_faithful
from bayesgmm.report.page import fit_page, render

NAMES = ("<script>alert(1)</script>", "Länge [µm²] 长度 & " + 182 * "w")


@pytest.fixture(scope="session")
def table():
    return load_faithful().astype(float).set_axis(list(NAMES), axis=1)


@pytest.fixture(scope="session")
def post(table):
    return BayesianGaussianMixture(2, method="laplace", random_state=0, progressbar=False).fit(table)


@pytest.fixture(scope="session")
def page(post):
    return fit_page(post)


@pytest.fixture(scope="session")
def html(page):
    return render(page)


@pytest.fixture(scope="session")
def failed_page(failed):
    return fit_page(failed)


@pytest.fixture(scope="session")
def failed(table):
    """A posterior of so few draws that its diagnostics fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = BayesianGaussianMixture(2, draws=20, tune=20, chains=2, target_ess=0, random_state=0, progressbar=False)
        return few.fit(table.to_numpy()[::4])
