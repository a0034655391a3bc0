"""Every example runs from start to finish, says something and ends in a figure."""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LONG = (
    "06_heart_disease",
    "07_em_step_by_step",
    "11_hyperparameters",
    "08_anomalies",
    "12_strengths_and_limits",
    "10_choosing_k",
    "13_em_and_mcmc",
    "14_galaxies",
    "15_old_faithful",
)
ALONE = "01_soft_and_hard"
"""The one that is run as a user runs it; the others share a process, so that libraries are loaded once."""

SAID = {"15_old_faithful": "The draws can be trusted"}
"""What must be among the words of an example."""


@pytest.fixture
def fresh_figures(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("an example must not wait for a window to be closed"))
    backend = mpl.get_backend()
    with mpl.rc_context():
        plt.switch_backend("Agg")
        yield
    plt.close("all")
    plt.switch_backend(backend)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in EXAMPLES
        if path.stem != ALONE
    ],
)
def test_example_runs(script, tmp_path, monkeypatch, capsys, fresh_figures):
    figure = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", [str(script), str(figure)])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert is_png(figure)
    if "em_step_by_step" in script.stem:
        assert figure.with_suffix(".gif").read_bytes().startswith(b"GIF8")
    assert SAID.get(script.stem, "\n") in said
    assert "nan" not in said.lower().replace("<na>", "").split()


def test_example_runs_as_a_script(tmp_path):
    script = tmp_path / f"{ALONE}.py"
    shutil.copy(next(path for path in EXAMPLES if path.stem == ALONE), script)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert is_png(script.with_suffix(".png"))


def test_examples_stand_in_the_order_of_the_lecture_and_say_what_they_teach():
    numbers = [int(path.stem[:2]) for path in EXAMPLES]
    assert numbers == sorted(set(numbers))
    for path in EXAMPLES:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, path.name
        assert path.name in (path.parent / "README.md").read_text(encoding="utf-8")
