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
    loaded = imported_by(code)
    assert "sklearn" in loaded
    # pandas is scikit-learn's own import.
    assert not loaded & ((HEAVY | {"rich"}) - {"pandas", "sklearn"})


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
