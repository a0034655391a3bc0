"""Averages over draws and over models: the predictive density, and the probability that two rows share a component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import dsyrk
from scipy.special import softmax

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.exceptions import CriterionWarning, warn_user

if TYPE_CHECKING:
    from bayesgmm.selection import Selection
    from bayesgmm.sweep import Key

Draws = tuple[FloatArray, FloatArray, FloatArray]
"""Weights (S, K), means (S, K, D) and precision factors (S, K, D, D)."""

IntArray = NDArray[np.int64]

MAX_ROWS = 5000
"""Rows whose co-clustering matrix is made: 25 million numbers, 200 MB."""

BLOCK_ELEMENTS = 4_000_000
"""Responsibilities that are held at a time where N × K is smaller: 32 MB."""

DENSE = 32
"""Entries of the matrix that are made in the time that one pair takes by itself."""

NEGLIGIBLE = 1e-12
"""Weight below which a model is left out of a probability, which it would change by less."""

COLUMNS = {"evidence": "probability", "stacking": "weight", "bic": "bic"}
"""Kinds of weights and the columns of a selection's table that they come from."""


def coclustering(
    X: FloatArray,
    models: Iterable[tuple[float, Draws]],
    rows: Any = None,
    pairs: ArrayLike | None = None,
) -> FloatArray:
    """Probability that rows come from the same component: Σ_k r_ik r_jk averaged over draws and models.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    models : iterable of (float, (weights, means, precision_factors))
        Probability of each model, and its draws: (S, K), (S, K, D), (S, K, D, D).
    rows : int array-like, boolean mask or slice, optional
        Positions of n rows; the result is theirs alone.
    pairs : int array-like of shape (P, 2), optional
        Positions of two rows each; the result is theirs alone.

    Returns
    -------
    ndarray of shape (N, N), (n, n) or (P,)
        1 for a row with itself.

    Raises
    ------
    ValueError
        If rows and pairs are both given, or the matrix would have more than 5,000 rows.
    IndexError
        If a position is not one of a row.

    Notes
    -----
    Draws are taken up a block at a time: N × K responsibilities for each, and one product of matrices for all of a block.
    """
    if rows is not None and pairs is not None:
        raise ValueError("give rows or pairs, not both")
    if pairs is not None:
        return _of_pairs(X, models, _positions_of_pairs(pairs, len(X)))
    chosen = _positions(rows, len(X))
    if len(chosen) > MAX_ROWS:
        raise ValueError(
            f"co-clustering of {len(chosen)} rows is a matrix of {len(chosen)} × {len(chosen)} numbers, and at most {MAX_ROWS} rows "
            "are taken: give rows=, a part of them, or pairs=, the pairs that matter"
        )
    return _of_all(X[chosen] if rows is not None else X, models, chosen)


def _positions(rows: Any, n_rows: int) -> IntArray:
    everything = np.arange(n_rows)
    if rows is None:
        return everything
    if not isinstance(rows, slice):
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iub"):
            raise IndexError(
                f"rows must be whole numbers, a mask of {n_rows} booleans or a slice; got {rows.dtype} {rows.shape}"
            )
        rows = rows if rows.size else rows.astype(int)
    try:
        return everything[rows]
    except IndexError as error:
        raise IndexError(f"rows do not fit {n_rows} rows: {error}") from None


def _positions_of_pairs(pairs: ArrayLike, n_rows: int) -> IntArray:
    asked = np.asarray(pairs)
    if asked.ndim != 2 or asked.shape[1] != 2 or asked.dtype.kind not in "iu":
        raise ValueError(f"pairs must be whole numbers of shape (P, 2); got {asked.dtype} of shape {asked.shape}")
    try:
        return np.arange(n_rows)[asked]
    except IndexError as error:
        raise IndexError(f"pairs do not fit {n_rows} rows: {error}") from None


def _of_all(X: FloatArray, models: Iterable[tuple[float, Draws]], positions: IntArray) -> FloatArray:
    N = len(X)
    out = np.zeros((N, N), order="F")
    if N == 0:
        return out
    for share, draws in models:
        S, K = draws[0].shape
        held = max(1, BLOCK_ELEMENTS // max(1, N * K))
        for start in range(0, S, held):
            part = range(start, min(S, start + held))
            block = np.empty((len(part) * K, N))
            for at, s in enumerate(part):
                block[at * K : (at + 1) * K] = _responsibilities(X, draws, s).T
            # The lower triangle alone, added to what is there.
            out = dsyrk(share / S, block.T, beta=1.0, c=out, lower=1, overwrite_c=1)
    for i in range(N):
        out[i, i + 1 :] = out[i + 1 :, i]
    np.minimum(out, 1.0, out=out)
    out[positions[:, None] == positions] = 1.0
    return out


def _of_pairs(X: FloatArray, models: Iterable[tuple[float, Draws]], pairs: IntArray) -> FloatArray:
    needed, where = np.unique(pairs, return_inverse=True)
    first, second = where.reshape(pairs.shape).T
    rows = np.ascontiguousarray(X[needed])
    if len(needed) <= MAX_ROWS and len(needed) ** 2 < DENSE * len(pairs):
        return _of_all(rows, models, needed)[first, second]
    out = np.zeros(len(pairs))
    for share, draws in models:
        S, K = draws[0].shape
        held = min(S, max(1, BLOCK_ELEMENTS // max(1, len(rows) * K)))
        at_a_time = max(1, BLOCK_ELEMENTS // (32 * held * K))
        for start in range(0, S, held):
            block = np.hstack([_responsibilities(rows, draws, s) for s in range(start, min(S, start + held))])
            for begin in range(0, len(pairs), at_a_time):
                some = slice(begin, begin + at_a_time)
                out[some] += share / S * np.einsum("pq,pq->p", block[first[some]], block[second[some]])
    out = np.minimum(out, 1.0)
    out[first == second] = 1.0
    return out


def _responsibilities(X: FloatArray, draws: Draws, s: int) -> FloatArray:
    return kernel.responsibilities(X, MixtureParameters(*(part[s] for part in draws)))[0]


def model_weights(selection: Selection, weights: str | Mapping[Key, float] = "evidence") -> dict[Key, float]:
    """Weights of the models of a selection, by their keys.

    Parameters
    ----------
    selection : Selection
    weights : {"evidence", "stacking", "bic"} or mapping of (str, int) to float, default "evidence"
        See :meth:`bayesgmm.Selection.score_samples`.

    Returns
    -------
    dict of (str, int) to float
        Positive, of sum 1; models of weight 0 are left out.

    Raises
    ------
    ValueError
        If the selection has no such weights, a model is not in it or has no fit, or a weight is negative or not finite.
    TypeError
        If weights are of another kind.

    Warns
    -----
    CriterionWarning
        If models are left out because they have no value of the criterion.
    """
    if isinstance(weights, str):
        found = _by_criterion(selection, weights)
    elif hasattr(weights, "items"):
        found = _given(selection, weights)
    else:
        raise TypeError(
            f"weights must be one of {', '.join(COLUMNS)} or a mapping of (covariance_type, n_components) to a number; "
            f"got {type(weights).__name__}"
        )
    total = sum(found.values())
    for key, weight in found.items():
        if weight > 0 and key not in selection.fits:
            reason = str(selection.table.loc[key, "reason"]) or "it was not kept"
            raise ValueError(f"{_named(key)} has the weight {weight / total:.3g} but no fit: {reason}")
    return {key: weight / total for key, weight in found.items() if weight > 0}


def _by_criterion(selection: Selection, name: str) -> dict[Key, float]:
    if name not in COLUMNS:
        raise ValueError(f"weights must be one of {', '.join(COLUMNS)} or a mapping; got {name!r}")
    values = selection.table[COLUMNS[name]]
    if name == "bic":
        singular = selection.table["flags"].str.contains("near-singular").fillna(False).astype(bool)
        values = values.mask(singular)
    known = values.dropna().astype("float64")
    if known.empty:
        raise ValueError(_why_none(selection, name))
    _tell_left_out(name, [_named(key) for key in values.index[values.isna()]])
    shares = softmax(-0.5 * known.to_numpy()) if name == "bic" else known.to_numpy()
    return {(str(kind), int(K)): float(w) for (kind, K), w in zip(known.index, shares, strict=True)}


def _why_none(selection: Selection, name: str) -> str:
    if name == "bic":
        return "no model has weights by BIC: all are near-singular or failed, see the table's flags and reason"
    if selection.method == "em":
        return (
            f"weights={name!r} needs posteriors, and this selection is of EM's fits alone: use method='laplace' or 'nuts', or "
            "weights='bic' for EM's fits with weights ∝ exp(−BIC/2)"
        )
    wanted = {"evidence": "evidence", "stacking": "loo"}[name]
    if wanted not in selection.criteria:
        other = "stacking" if name == "evidence" else "evidence"
        return f"weights={name!r} needs the criterion {wanted!r}, which was not asked for: add it to criteria, or see weights={other!r}"
    return f"no model has a weight by {name}: see the table's column reason"


def _tell_left_out(name: str, models: Sequence[str]) -> None:
    if models:
        few = ", ".join(models[:5]) + (", …" if len(models) > 5 else "")
        warn_user(
            f"{len(models)} model{'s have' if len(models) > 1 else ' has'} no weight by {name} and {'are' if len(models) > 1 else 'is'} "
            f"left out: {few}; the table's columns flags and reason tell why",
            CriterionWarning,
        )


def _given(selection: Selection, weights: Any) -> dict[Key, float]:
    models = {(str(kind), int(K)) for kind, K in selection.table.index}
    found: dict[Key, float] = {}
    for key, value in weights.items():
        if not isinstance(key, tuple) or key not in models:
            some = ", ".join(map(repr, sorted(models)[:6])) + (", …" if len(models) > 6 else "")
            raise ValueError(f"weights name the model {key!r}, which is not in this selection: it has {some}")
        try:
            weight = float(value)
        except (TypeError, ValueError):
            weight = float("nan")
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {_named(key)} must be a finite number of at least 0; got {value!r}")
        found[str(key[0]), int(key[1])] = weight
    if not sum(found.values()) > 0:
        raise ValueError("weights give no model a weight above 0")
    return found


def _named(key: Any) -> str:
    return f"K = {key[1]} ({key[0]})"


def averaged_density(selection: Selection, X: ArrayLike, weights: str | Mapping[Key, float]) -> FloatArray:
    """Logarithm of the predictive densities' average; see :meth:`bayesgmm.Selection.score_samples`."""
    total: FloatArray | None = None
    for key, weight in model_weights(selection, weights).items():
        term = np.log(weight) + np.asarray(selection.fits[key].score_samples(X))
        total = term if total is None else np.logaddexp(total, term)
    assert total is not None
    return total


def averaged_coclustering(
    selection: Selection,
    X: ArrayLike | None,
    weights: str | Mapping[Key, float],
    rows: Any = None,
    pairs: ArrayLike | None = None,
) -> FloatArray:
    """Co-clustering averaged over models; see :meth:`bayesgmm.Selection.coclustering`."""
    shares = model_weights(selection, weights)
    fits = {key: selection.fits[key] for key, share in shares.items() if share > NEGLIGIBLE}
    first = next(iter(fits.values()))
    if X is None and not hasattr(first, "_draws"):
        raise ValueError("EM's fits do not keep the data: give X")
    table = first._X if X is None else first._table(X)
    return coclustering(table, ((shares[key], _draws(fit)) for key, fit in fits.items()), rows, pairs)


def _draws(fit: Any) -> Draws:
    """Draws of a posterior; the one set of parameters of a maximum."""
    if hasattr(fit, "_draws"):
        draws: Draws = fit._draws.flat()
        return draws
    p = fit._parameters
    return p.weights[None], p.means[None], p.precision_factors[None]
