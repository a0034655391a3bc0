"""Settings of the documentation site; `make docs` builds it into build/docs."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

import bayesgmm  # noqa: E402

project = "bayesgmm"
version = release = bayesgmm.__version__
copyright = "the authors of bayesgmm; BSD-3-Clause"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "mathml",
    "gallery",
]
templates_path = ["templates"]
exclude_patterns = ["extensions", "templates"]

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# every reference of ours has to lead somewhere
nitpicky = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"bayesgmm {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
