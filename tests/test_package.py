"""What importing the package costs, and what it offers."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest

import bayesgmm

HEAVY = {"arviz", "arviz_base", "matplotlib", "nutpie", "pandas", "pymc", "pytensor", "sklearn", "xarray"}


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after the code."""
    listing = "import sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    loaded = imported_by("import bayesgmm, bayesgmm.datasets, bayesgmm.exceptions")
    assert not loaded & (HEAVY | {"numpy", "numba", "scipy", "rich"})


def test_importing_the_core_brings_numerics_alone():
    modules = "kernel, covariance, priors, seeding, em, parameters"
    loaded = imported_by(f"from bayesgmm.core import {modules}")
    assert "numba" in loaded
    assert not loaded & (HEAVY | {"rich"})


def test_help_imports_nothing_heavy():
    code = """
from bayesgmm.cli import main
for arguments in (["--help"], ["fit", "--help"], ["score", "--help"], ["demo", "--help"], ["warmup", "--help"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as exit:
        assert exit.code == 0
"""
    assert not imported_by(code) & (HEAVY | {"numpy", "numba", "scipy", "rich"})


def test_a_fit_by_em_imports_nothing_of_the_sampler_or_of_figures():
    code = """
import numpy as np
from bayesgmm import GaussianMixture
X = np.random.default_rng(0).normal(size=(50, 2))
GaussianMixture(2, n_init=2, random_state=0).fit(X).predict_proba(X)
"""
    loaded = imported_by(code + "\nimport sys; assert 'scipy.stats' not in sys.modules")
    assert "sklearn" in loaded
    assert not loaded & ((HEAVY | {"rich"}) - {"sklearn"})


DEFERRED = {
    "first asked for by scikit-learn": """
import sklearn.utils.fixes as fixes
assert fixes.pd.DataFrame({"a": [1]}).shape == (1, 1)
assert fixes._mode([1, 1, 2])[0] == 1
import pandas, scipy.stats
assert fixes.pd.DataFrame is pandas.DataFrame
assert abs(scipy.stats.norm.cdf(0.0) - 0.5) < 1e-15
""",
    "first asked for by the user": """
import pandas as pd
from scipy.stats import norm
X = pd.DataFrame(norm.rvs(size=(30, 2), random_state=0), columns=["a", "b"])
fit = GaussianMixture(1).fit(X)
assert list(fit.feature_names_in_) == ["a", "b"]
""",
}


@pytest.mark.parametrize(
    "name", [name if "by the" not in name else pytest.param(name, marks=pytest.mark.slow) for name in DEFERRED]
)
def test_what_scikit_learn_does_not_need_for_a_base_class_is_there_when_it_is_needed(name):
    code = """
import sys
from bayesgmm import GaussianMixture
GaussianMixture(1).fit([[0.0], [1.0], [3.0]])
assert not {"pandas", "scipy.stats"} & set(sys.modules)
"""
    assert "pandas" in imported_by(code + DEFERRED[name])


def test_modules_that_are_loaded_stay():
    code = """
import pandas, scipy.stats
from bayesgmm import GaussianMixture
import sys, sklearn.utils.fixes as fixes
assert fixes.pd is pandas is sys.modules["pandas"]
assert sys.modules["scipy.stats"] is scipy.stats
"""
    imported_by(code)


def test_another_thread_that_imports_meanwhile_gets_the_module():
    """As if it came while ``sklearn.base`` is imported: the stand-in is where the import system looks."""
    code = """
import sys
from bayesgmm.estimators import deferred
with deferred.stood_in_for():
    import pandas.api.types
    from pandas import DataFrame
    assert sys.modules["pandas"].DataFrame([1]).shape == (1, 1)
assert type(sys.modules["pandas"]).__name__ == "module"
assert "scipy.stats" not in sys.modules
"""
    assert "pandas" in imported_by(code)


def test_sampling_imports_neither_pymc_nor_pytensor():
    code = """
import warnings
import numpy as np
from bayesgmm import BayesianGaussianMixture
warnings.simplefilter("ignore")
X = np.random.default_rng(0).normal(size=(50, 2))
BayesianGaussianMixture(1, draws=20, chains=1, target_ess=0, random_state=0, progressbar=False).fit(X).summary()
"""
    loaded = imported_by(code)
    assert "nutpie" in loaded
    assert not loaded & {"pymc", "pytensor"}


def test_the_command_of_em_imports_no_sampler_and_scoring_no_figures(tmp_path):
    code = f"""
import numpy as np
from bayesgmm.cli import main
rng = np.random.default_rng(0)
np.savetxt({str(tmp_path / "X.csv")!r}, rng.normal(size=(50, 2)), delimiter=",", header="a,b", comments="")
"""
    fit = ["fit", str(tmp_path / "X.csv"), "-k", "1", "--method", "em", "--out", str(tmp_path / "fit"), "--quiet"]
    score = ["score", str(tmp_path / "fit"), str(tmp_path / "X.csv"), "--out", str(tmp_path / "s.csv"), "--quiet"]
    sampler = {"arviz", "nutpie", "pymc", "pytensor", "xarray"}
    assert not imported_by(f"{code}assert main({fit}) == 0") & sampler
    assert not imported_by(f"from bayesgmm.cli import main\nassert main({score}) == 0") & (sampler | {"matplotlib"})


@pytest.mark.parametrize("name", [name for name in bayesgmm.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name):
    assert name in dir(bayesgmm)
    assert getattr(bayesgmm, name).__doc__
    assert getattr(bayesgmm, name).__module__.startswith("bayesgmm")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'GausianMixture'"):
        _ = bayesgmm.GausianMixture


def test_type_checkers_and_users_see_the_same_names():
    with open(bayesgmm.__file__, encoding="utf-8") as stream:
        checked = re.findall(r"^    from (\S+) import (.+)$", stream.read(), flags=re.MULTILINE)
    seen = {name: home for home, names in checked for name in names.split(", ")}
    assert seen == bayesgmm._HOMES
    assert set(bayesgmm.__all__) == {*bayesgmm._HOMES, "__version__"}


def test_the_installed_version_is_that_of_the_code():
    assert metadata.version("bayesgmm") == bayesgmm.__version__
