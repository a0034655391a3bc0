"""A few hundred of the cases of ``tests/degenerate.py``; ``make validate`` runs 10,000."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from bayesgmm import GaussianMixture
from bayesgmm.core import em
from bayesgmm.estimators import validation
from tests import degenerate
from tests.degenerate import COST, TABLES, TASKS, Case, as_code, case_of, fault_of

N_CASES, N_GROUPS = 240, 6
N_COMMANDS = 4


def chosen(costs: range, n: int) -> list[Case]:
    """The first n cases of tasks with such a cost."""
    cases = map(case_of, itertools.count())
    return list(itertools.islice((case for case in cases if COST.get(case.task, 1) in costs), n))


@pytest.mark.filterwarnings("ignore")  # fault_of judges them
@pytest.mark.parametrize("group", range(N_GROUPS))
def test_degenerate_input_is_fitted_or_refused_and_nothing_else(group):
    cases = chosen(range(5), N_CASES)[group::N_GROUPS]
    faults = [f"{fault}\n    {as_code(case)}" for case in cases if (fault := fault_of(case)) is not None]
    assert not faults, "\n".join(faults)


@pytest.mark.filterwarnings("ignore")
def test_degenerate_files_at_the_command():
    cases = chosen(range(15, 16), N_COMMANDS)
    faults = [f"{fault}\n    {as_code(case)}" for case in cases if (fault := fault_of(case)) is not None]
    assert not faults, "\n".join(faults)


def test_every_table_comes_under_every_task():
    pairs = {(case.task, case.table) for case in map(case_of, range(len(TASKS) * len(TABLES)))}
    assert pairs == set(itertools.product(TASKS, TABLES))


def _with_error(self, *_, **__):
    raise KeyError("means")


def _with_nan(self, parameters, packed):
    SET(self, parameters, packed)
    self.means_ = self.means_ * np.nan


SET, SCORES = GaussianMixture._set, GaussianMixture.score_samples


@pytest.mark.parametrize(
    ("where", "name", "what", "says"),
    [
        (GaussianMixture, "_set", _with_error, "a foreign exception, KeyError"),
        (GaussianMixture, "_set", _with_nan, "means_ is not finite"),
        (GaussianMixture, "_set", lambda self, *_: np.linalg.cholesky(-np.eye(2)), "a foreign exception, LinAlgError"),
        (GaussianMixture, "_set", lambda self, *_: np.zeros((2, 0)).max(), "raised by others, ValueError: zero-size"),
        (em, "LOOSE_TOL", None, "a break, not a refusal"),
        (validation, "LARGEST_SCALE", 0.1, "sound rows were refused"),
        (GaussianMixture, "score_samples", lambda self, X: SCORES(self, X) + 1e-3, "score_samples: "),
        (GaussianMixture, "predict", lambda self, X: np.full(len(X), 2), "labels outside"),
    ],
)
def test_the_judge_sees_a_fault_that_is_made(where, name, what, says, monkeypatch):
    case = Case("em", "plain", "float64", "none", "full", 2, 0)
    assert fault_of(case) is None
    monkeypatch.setattr(where, name, what)
    assert says in fault_of(case)


def test_the_judge_sees_warnings_of_libraries_and_fits_that_never_end(monkeypatch):
    case = Case("em", "plain", "float64", "none", "full", 2, 0)
    monkeypatch.setitem(TASKS, "em", lambda case: str(np.log(np.zeros(1))))
    assert "a foreign warning, RuntimeWarning: divide by zero" in fault_of(case)
    monkeypatch.setattr(degenerate, "SECONDS", 0.05)
    monkeypatch.setitem(TASKS, "em", lambda case: time.sleep(1))
    assert "it was not done after" in fault_of(case)
