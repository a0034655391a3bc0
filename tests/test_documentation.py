"""What README and the pages of the site show is what their code prints; the site names every public name and page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bayesgmm
import bayesgmm.plots
from tests.markdown import blocks, printed, words_and_numbers

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if "```python" in page.read_text(encoding="utf-8"))

# A selection with 3 × 4 × 4000 draws by NUTS, and a report, each take longer than all other blocks together; both have tests of their own.
DEAR = ("draws=4000", ".report(")

# Of numbers that are printed with two or three digits: processors round sums differently, and draws then part, by their Monte Carlo error.
RELATIVE, ABSOLUTE = 0.03, 0.03


@pytest.mark.parametrize(
    "page",
    [
        # The page on priors compiles models of PyMC, that on big data begins workers, that on K fits many.
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.slow] if path.stem in ("priors", "big-data", "choosing-k") else []
        )
        for path in (ROOT / "README.md", *PAGES)
    ],
)
def test_blocks_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace = {}
    for block in blocks(page.read_text(encoding="utf-8")):
        if any(mark in block.code for mark in DEAR):
            continue
        out = printed(block, page.name, namespace)
        words, numbers = words_and_numbers(out)
        said_words, said_numbers = words_and_numbers(block.said or "")
        assert words == said_words, f"{page.name}, line {block.line}:\n{out}"
        if "ESS" in out:  # effective sample sizes are estimates with a large error of their own
            kept = [i for i, number in enumerate(said_numbers) if abs(number) < 1000]
            numbers, said_numbers = [numbers[i] for i in kept], [said_numbers[i] for i in kept]
        np.testing.assert_allclose(
            numbers, said_numbers, RELATIVE, ABSOLUTE, err_msg=f"{page.name}, line {block.line}:\n{out}"
        )


def test_a_wrong_output_is_found():
    text = "```python\nprint(1.00)\n```\n\n```\n2.00\n```\n"
    (block,) = blocks(text)
    assert printed(block, "page", {}) == "1.0\n"
    assert words_and_numbers(block.said)[1] == [2.0]


def test_every_public_name_stands_in_the_reference():
    listed = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8").split()
    assert {*bayesgmm.__all__, *bayesgmm.plots.__all__} - {"__version__"} <= set(listed)
