"""Examples in docstrings do what they show; public names say what they take, return and raise."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

import bayesgmm
import bayesgmm.plots

PACKAGE = Path(bayesgmm.__file__).parent
WITH_EXAMPLES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]
MOST_USED = {
    "AnomalyDetector", "BayesianGaussianMixture", "ConjugatePrior", "GaussianMixture", "HierarchicalPrior", "MixtureClassifier",
    "compare", "kfold", "load", "save", "select",
}  # fmt: skip
PUBLIC = [getattr(bayesgmm, name) for name in bayesgmm.__all__ if name != "__version__"]
PUBLIC += [getattr(bayesgmm.plots, name) for name in bayesgmm.plots.__all__]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_print_what_they_show(module):
    found = doctest.testmod(import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("name", sorted(MOST_USED))
def test_the_most_used_names_have_an_example(name):
    assert ">>> " in getattr(bayesgmm, name).__doc__


def functions(thing):
    """Public functions and methods of our own that a public name stands for."""
    if inspect.isfunction(thing):
        return [thing]
    members = [getattr(value, "__func__", value) for name, value in vars(thing).items() if not name.startswith("_")]
    ours = [m for m in members if inspect.isfunction(m) and m.__module__.startswith("bayesgmm")]
    return [m for m in ours if not m.__name__.startswith("set_")]


def sections(doc):
    return set(re.findall(r"^(\w[\w ]*)\n-{3,}$", inspect.cleandoc(doc), flags=re.MULTILINE))


@pytest.mark.parametrize("function", [f for thing in PUBLIC for f in functions(thing)], ids=lambda f: f.__qualname__)
def test_public_functions_say_what_they_take_return_and_raise(function):
    doc = function.__doc__
    assert doc, f"{function.__qualname__} has no docstring"
    found = sections(doc)
    taken = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    if taken:
        assert "Parameters" in found, f"{function.__qualname__} does not say what it takes"
        named = re.findall(r"^\*{0,2}(\w+(?:, \*{0,2}\w+)*)(?: :|$)", inspect.cleandoc(doc), flags=re.MULTILINE)
        told = {part.lstrip("*") for names in named for part in names.split(", ")}
        assert set(taken) <= told, f"{function.__qualname__} does not say what {set(taken) - told} are"
    assert {"Returns", "Yields"} & found, f"{function.__qualname__} does not say what it returns"
    body = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    if any(isinstance(node, ast.Raise) for node in ast.walk(body)):
        assert "Raises" in found, f"{function.__qualname__} does not say what it raises"


def named_entries(doc):
    """Lines that open an entry of the sections of numpydoc, as (section, line)."""
    section, lines = "", inspect.cleandoc(doc).splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch("-{3,}", below):
            section = line
        elif line and not line.startswith((" ", "-")):
            yield section, line


@pytest.mark.parametrize(
    "thing",
    [*filter(inspect.isclass, PUBLIC), *(f for thing in PUBLIC for f in functions(thing))],
    ids=lambda t: t.__qualname__,
)
def test_arrays_have_shapes(thing):
    arrays = re.compile(r"ndarray|array-like|\barray\b")
    missing = [
        line
        for section, line in named_entries(thing.__doc__)
        if section in ("Parameters", "Attributes", "Returns", "Yields") and arrays.search(line) and "shape" not in line
    ]
    assert not missing


@pytest.mark.parametrize(
    "thing", [t for t in PUBLIC if t not in (bayesgmm.save, bayesgmm.load)], ids=lambda t: t.__name__
)
def test_public_names_give_their_source(thing):
    # A paper or book with its year. Files are our own format, and have none.
    assert re.search(r"\((1[89]|20)\d\d\)|\b(1[89]|20)\d\d[,)]", thing.__doc__)
