"""A report put together, rendered and written: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import os
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesgmm import __version__
from bayesgmm.io import write_text
from bayesgmm.report.blocks import Page, Section, sort_value, spelled
from bayesgmm.report.diagnostics_sections import diagnostics_section, prior_section
from bayesgmm.report.facts import FitFacts, facts_of
from bayesgmm.report.fit_sections import components_section, data_section, figures_section, rows_section
from bayesgmm.report.settings import settings_section
from bayesgmm.report.verdicts import counted, fit_verdict, selection_verdict

if TYPE_CHECKING:
    import jinja2

    from bayesgmm.selection import Selection

GENERATOR = '<meta name="generator" content="bayesgmm '
"""By which a report of ours is known."""


def write_report(page: Page, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Render a page and write it, whole or not at all.

    Parameters
    ----------
    page : Page
        Of :func:`fit_page` or :func:`selection_page`.
    path : path
        The file; its folder must exist.
    overwrite : bool, default False
        Whether a file that is there is replaced.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileExistsError
        If the file exists and ``overwrite`` is not set, or it is a folder.
    OSError
        If it cannot be written.
    """
    target = check_target(path, overwrite)
    try:
        write_text(target, render(page))
    except OSError as error:
        raise OSError(error.errno, f"cannot write the report {target}: {error.strerror}") from error
    return target


def check_target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Refuse a place where no report can be written, before the work begins.

    Raises
    ------
    FileExistsError
        If it is a folder, or a file that must not be replaced.
    FileNotFoundError
        If its folder does not exist.
    """
    target = Path(path)
    if target.is_dir():
        raise FileExistsError(
            f"cannot write the report to {target}: it is a folder; name a file, such as {target / 'report.html'}"
        )
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(
            f"{target} exists; name another file, or use overwrite=True (--force at the command line)"
        )
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"cannot write the report to {target}: the folder {target.absolute().parent} does not exist"
        )
    return target


def is_report(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a report that this package wrote."""
    try:
        with open(path, encoding="utf-8") as stream:
            return GENERATOR in stream.read(2000)
    except (OSError, UnicodeDecodeError):
        return False


def fit_page(fit: Any, X: Any = None, sample_weight: Any = None) -> Page:
    """Put together the report on a fit.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted.
    X : array-like of shape (N, D), optional
        Rows of a fit by EM. A posterior's own are taken.
    sample_weight : array-like of shape (N,), optional
        That go with ``X``.

    Returns
    -------
    Page
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        facts = facts_of(fit, X, sample_weight)
        provenance = _own_provenance(fit, facts)
        verdict = fit_verdict(facts)
        sections = _fit_sections(facts, provenance)
    return Page(_title(facts, provenance), _subtitle(facts), verdict, sections)


def selection_page(selection: Selection, X: Any = None, sample_weight: Any = None) -> Page:
    """Put together the report on a selection, and on the model that it picks.

    Parameters
    ----------
    selection : Selection
    X : array-like of shape (N, D), optional
        Rows, where the fits are EM's. Posteriors hold their own.
    sample_weight : array-like of shape (N,), optional
        That go with ``X``.

    Returns
    -------
    Page
    """
    from bayesgmm.report.selection_sections import choice_section
    from bayesgmm.report.verdicts import judge_of

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = judge_of(selection)
        fit = None if judge is None else selection.fits.get(selection.best(judge))
        facts = None if fit is None else facts_of(fit, X, sample_weight)
        verdict = selection_verdict(selection, facts)
        sections = [choice_section(selection, verdict.level != "bad")]
        provenance = selection.provenance
        if facts is not None:
            own = _fit_sections(facts, provenance)
            sections = [own[0], *sections, *own[1:]]
    n_models = counted(len(selection.table), "model")
    title = "How many components" + (f": {_base(provenance)}" if provenance else "")
    return Page(
        title,
        f"{n_models} of {counted(selection.n_rows, 'row')} compared, by {_METHODS[selection.method]}",
        verdict,
        sections,
    )


_METHODS = {"em": "EM", "laplace": "EM and a Laplace approximation", "nuts": "EM and NUTS"}


def _fit_sections(facts: FitFacts, provenance: Mapping[str, Any] | None) -> list[Section]:
    return [
        data_section(facts, provenance),
        components_section(facts),
        figures_section(facts),
        rows_section(facts),
        diagnostics_section(facts),
        prior_section(facts),
        settings_section(facts, provenance),
    ]


def _own_provenance(fit: Any, facts: FitFacts) -> Mapping[str, Any] | None:
    """Where the data come from, unless they are others than those that were noted."""
    noted: Mapping[str, Any] | None = getattr(fit, "_provenance", None)
    if noted is None or facts.X is None:
        return noted
    from bayesgmm.report.settings import hash_of

    return noted if hash_of(facts, None) == noted["data_hash"] else None


def _base(provenance: Mapping[str, Any]) -> str:
    source = str(provenance["source"])
    return os.path.basename(source) or source


def _title(facts: FitFacts, provenance: Mapping[str, Any] | None) -> str:
    what = f"Gaussian mixture of {counted(facts.K, 'component')}"
    return f"{what}: {_base(provenance)}" if provenance else what


def _subtitle(facts: FitFacts) -> str:
    rows = f"{counted(len(facts.X), 'row')}, " if facts.X is not None else ""
    how = _METHODS[facts.fit.method_] if facts.is_posterior else "EM"
    return f"{rows}{counted(facts.D, 'feature')}, covariance {facts.fit.covariance_type}, by {how}"


@cache
def environment() -> jinja2.Environment:
    """The templates, with everything escaped that is put into them."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("bayesgmm.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"spelled": spelled, "sort_value": sort_value}
    return made


def render(page: Page) -> str:
    """The page as HTML."""
    templates = environment()
    assert templates.loader is not None
    style, script = (templates.loader.get_source(templates, name)[0].strip() for name in ("report.css", "sort.js"))
    return templates.get_template("report.html.j2").render(
        page=page,
        version=__version__,
        # the files of this package go in as they are; their hashes keep any other style or script from running
        style=_safe(style),
        script=_safe(script),
        style_hash=_digest(style),
        script_hash=_digest(script),
    )


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
