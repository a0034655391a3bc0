"""Rows in blocks at the door of the estimators: what is taken for them, their features, and what a fit asks of them first."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from bayesgmm.core.blocked import Survey
from bayesgmm.core.blocks import Gather, RowBlocks
from bayesgmm.core.parameters import FloatArray
from bayesgmm.distributed import DaskBlocks, is_dask, map_frames, map_rows
from bayesgmm.estimators.validation import (
    LARGEST_SCALE,
    check_distinct_rows,
    check_table,
    check_total_weight,
    named_columns,
    warn_degenerate_columns,
)

if TYPE_CHECKING:
    import pandas as pd


def is_blockwise(X: Any) -> bool:
    """Whether X is a table in blocks, or the path of one."""
    return (
        isinstance(X, str | os.PathLike | Iterator) or (hasattr(X, "total") and hasattr(X, "n_features")) or is_dask(X)
    )


def row_blocks(estimator: BaseEstimator, X: Any, sample_weight: Any = None, *, reset: bool) -> RowBlocks | None:
    """Rows in blocks, with the features of the estimator; None for a table in memory.

    Parameters
    ----------
    estimator : BaseEstimator
        Gets ``n_features_in_`` and ``feature_names_in_`` when ``reset``. Otherwise the columns of a path
        or of a Dask DataFrame are chosen by the names of the fit, and those of a table in blocks are compared with them.
    X : object
    sample_weight : object, optional
        Of a Dask collection, partitioned alike; other blocks have their weights beside them.
    reset : bool
        True while fitting.

    Returns
    -------
    RowBlocks or None

    Raises
    ------
    DataError
        If a path holds no table, or X can be iterated only once.
    ValueError
        If the features are not those of the fit, or weights are given apart from blocks that have them beside them.
    """
    if not is_blockwise(X):
        return None
    known = None if reset else getattr(estimator, "feature_names_in_", None)
    blocks: RowBlocks
    if is_dask(X):
        blocks = DaskBlocks(X if reset else named_columns(estimator, X), sample_weight)
    else:
        refuse_weights_of_blocks(sample_weight)
        blocks = X if hasattr(X, "total") else _opened(X, known)
    names = list(getattr(blocks, "columns", ())) if getattr(blocks, "named", False) else None
    if reset:
        estimator.n_features_in_ = blocks.n_features
        if names is not None:
            estimator.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
        return blocks
    if blocks.n_features != estimator.n_features_in_:
        raise ValueError(
            f"X has {blocks.n_features} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} features "
            "as input"
        )
    if names is not None and known is not None and names != list(known):
        raise ValueError(
            f"the features are {', '.join(map(repr, known))}, in this order, and the table has {', '.join(map(repr, names))}: "
            "open it with columns="
        )
    return blocks


def _opened(source: Any, names: Any) -> RowBlocks:
    from bayesgmm.tables import open_blocks

    table = open_blocks(source)
    if names is None or not table.named or table.columns == tuple(names):
        return table
    return open_blocks(source, columns=list(names))


def of_each_row(
    estimator: BaseEstimator,
    X: Any,
    function: Callable[[FloatArray], Any],
    width: int | None = None,
    dtype: Any = np.float64,
) -> Any:
    """A function of rows: of a table in memory, of rows in blocks a block at a time, or of a Dask collection when it is computed.

    Parameters
    ----------
    estimator : BaseEstimator
        Fitted.
    X : object
    function : callable
        Of rows (n, D), to an array (n,) or (n, width).
    width : int, optional
        Columns of the result. Default: it has one axis.
    dtype : dtype, default float64
        Of the result.

    Returns
    -------
    ndarray or dask.array.Array of shape (N,) or (N, width)
    """
    if is_dask(X):
        X = named_columns(estimator, X)
        row_blocks(estimator, X, reset=False)
        return map_rows(X, function, width, dtype)
    blocks = row_blocks(estimator, X, reset=False)
    if blocks is None:
        return np.asarray(function(check_table(estimator, X, reset=False, single=True)))
    return blocks.total(Gather(function)).values


def alone(fit: Any) -> Any:
    """A fitted mixture as workers need it to judge rows: without the rows of its fit, and what is told of the fit alone."""
    out = copy.copy(fit)
    for name in ("_X", "_sample_weight", "idata_", "modes_", "history_", "_stepwise"):
        out.__dict__.pop(name, None)
    return out


def table_of_rows(estimator: BaseEstimator, X: Any, function: Callable[[FloatArray], pd.DataFrame]) -> Any:
    """A table of what a function says of each row.

    Parameters
    ----------
    estimator : BaseEstimator
        Fitted.
    X : object
        A DataFrame's columns are taken by their names.
    function : callable
        Of rows (n, D), to a DataFrame of n rows.

    Returns
    -------
    DataFrame, iterator of DataFrame, or dask.dataframe.DataFrame
        Of a table in memory; of rows in blocks, one for each block, in their order; of a Dask collection, when it is computed.
    """
    if is_dask(X):
        X = named_columns(estimator, X)
    blocks: Any = row_blocks(estimator, X, reset=False)
    if blocks is None:
        return function(check_table(estimator, named_columns(estimator, X), reset=False))
    nothing = function(np.zeros((1, blocks.n_features))).iloc[:0]
    if is_dask(X):
        return map_frames(X, function, nothing)
    return blocks.each(lambda rows, *_: function(rows))


def batches(X: Any) -> Iterator[tuple[Any, FloatArray | None]]:
    """Blocks with their weights, one after another: of a table in blocks, a path, or an iterator, which is used up."""
    if isinstance(X, Iterator):
        for rows in X:
            yield rows, None
        return
    blocks: Any = DaskBlocks(X) if is_dask(X) else X if hasattr(X, "total") else _opened(X, None)
    if not hasattr(blocks, "weighted_blocks"):
        raise TypeError(
            f"a {type(blocks).__name__} does not give its blocks one by one, as partial_fit takes them: use fit"
        )
    names = list(blocks.columns) if blocks.named else None
    for rows, weights in blocks.weighted_blocks():
        if names is not None:
            import pandas as pd

            rows = pd.DataFrame(rows, columns=names, copy=False)
        yield rows, weights


def refuse_weights_of_blocks(sample_weight: Any) -> None:
    """Refuse weights that come beside rows in blocks.

    Raises
    ------
    ValueError
    """
    if sample_weight is not None:
        raise ValueError("rows in blocks have their weights beside them: open_blocks(..., weights='column')")


def check_survey(found: Survey, n_components: int, names: list[str], reg_covar: float, has_prior: bool) -> None:
    """Refuse rows that cannot be fitted, and warn of those that make a result doubtful, as for a table in memory.

    Raises
    ------
    ValueError
    """
    m, K = found.moments, n_components
    if m.n_counted < max(2, K):
        raise ValueError(
            f"Expected n_samples >= n_components but got n_components = {K}, n_samples = {m.n_counted}"
            if m.n_counted >= 2
            else f"Found array with {m.n_counted} sample(s) while a minimum of 2 is required"
        )
    largest = max(float(np.abs(m.low).max()), float(np.abs(m.high).max()))
    if largest > LARGEST_SCALE:
        raise ValueError(
            f"X has values of size {largest:.1e}: their squares leave the range of float64. Rescale the columns "
            "(divide by a typical value) and fit again"
        )
    check_total_weight(m.weight, largest)
    if has_prior:
        return
    warn_degenerate_columns(m.low, m.high, np.diagonal(m.scatter) / m.weight, names, reg_covar)
    check_distinct_rows(found.sample.rows, K, reg_covar)
