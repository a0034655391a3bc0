"""What comes in at the door of the estimators: tables, weights, seeds. Bad input ends here with one clear error."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, _num_features, validate_data

from bayesgmm.core.parameters import FloatArray
from bayesgmm.exceptions import DataWarning, warn_user

LARGEST_SCALE = 1e150
SMALLEST_SCALE = 1e-150
LARGEST_SUM, SMALLEST_SUM = 1e307, 1e-280
MANY_ROWS = 1e6
"""Between this sum of weights and its inverse, squares of numbers up to ``LARGEST_SCALE`` add without leaving the range of float64."""


def check_settings(estimator: BaseEstimator) -> None:
    """Hold the constructor's parameters against the estimator's constraints, unless scikit-learn is configured not to.

    scikit-learn's own decorator of ``fit`` does this too, and loads its progress bars for a tenth of a second.

    Raises
    ------
    ValueError
        ``InvalidParameterError``, with what is allowed.
    """
    if not sklearn.get_config()["skip_parameter_validation"]:
        estimator._validate_params()


def check_table(
    estimator: BaseEstimator, X: Any, *, reset: bool, min_rows: int = 1, single: bool = False
) -> FloatArray:
    """Observations as a C-contiguous float64 array (N, D).

    Parameters
    ----------
    estimator : BaseEstimator
        Gets ``n_features_in_`` and ``feature_names_in_`` when ``reset``; is compared with them otherwise.
    X : array-like of shape (N, D)
        Array, DataFrame or nested list of finite numbers.
    reset : bool
        True while fitting.
    min_rows : int, default 1
    single : bool, default False
        Float32 stays float32, and is not copied where it is C-contiguous.

    Returns
    -------
    ndarray of shape (N, D)

    Raises
    ------
    TypeError
        If X is a sparse matrix, a Dask collection, or in blocks.
    ValueError
        If X is not a finite numeric table, with the row and the column at fault.
    """
    if sparse.issparse(X):
        raise TypeError(
            "sparse input is not supported: Gaussian densities need dense rows; use X.toarray() or X.todense() if it fits in "
            "memory, or reduce the dimension first (for example with TruncatedSVD)"
        )
    if isinstance(X, str | os.PathLike) or hasattr(X, "total"):
        raise TypeError(
            "this needs all rows in memory, not a table in blocks or the path of one: read it, or a part of it, first"
        )
    if type(X).__module__.partition(".")[0] == "dask":
        raise TypeError(
            "this needs all rows in memory, not a Dask collection: call X.compute() first, or give a sample of the rows"
        )
    _refuse_masked(X)
    _refuse_text(X)
    dtype = [np.float64, np.float32] if single else np.float64
    array = validate_data(
        estimator, X, reset=reset, dtype=dtype, order="C", ensure_all_finite=False, ensure_min_samples=min_rows
    )
    # min and max are finite exactly when every value is, at no memory of the size of X.
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ValueError(_not_finite(array, column_names(X, array.shape[1])))
    largest = max(abs(float(array.min())), abs(float(array.max())))
    if largest > LARGEST_SCALE:
        raise ValueError(
            f"X has values of size {largest:.1e}: their squares leave the range of float64. Rescale the columns "
            "(divide by a typical value) and fit again"
        )
    return _of_one_type(array)


class _Writable:
    """Offers the memory of an array as one that may be written to, and keeps it alive."""

    def __init__(self, array: FloatArray) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _of_one_type(array: FloatArray) -> FloatArray:
    """The array itself, under the type that the kernel is compiled for: read-only memory would have it compiled anew.

    Memory maps, pandas and Arrow hand out such memory. No code writes to a table.
    """
    return array if array.flags.writeable and type(array) is np.ndarray else np.asarray(_Writable(array))


def column_names(X: Any, n_features: int) -> list[str]:
    """Column names of a table, or ``x0, x1, …`` where it has none."""
    columns = getattr(X, "columns", None)
    if columns is not None and len(columns) == n_features:
        return [str(c) for c in columns]
    return [f"x{j}" for j in range(n_features)]


def named_columns(estimator: BaseEstimator, X: Any) -> Any:
    """The columns of a DataFrame that the estimator was fitted to, by their names; anything else as it is.

    scikit-learn's own methods ask for the same columns in the same order; ours, which look at tables of other origin, do not.

    Raises
    ------
    ValueError
        If columns are missing (all are named).
    """
    names = getattr(estimator, "feature_names_in_", None)
    columns = getattr(X, "columns", None)
    if names is None or columns is None or callable(getattr(X, "total", None)):
        # rows in blocks choose their columns when they are opened
        return X
    missing = [str(name) for name in names if name not in columns]
    if missing:
        raise ValueError(
            f"{_columns(missing)} missing: the mixture was fitted to {', '.join(map(repr, map(str, names)))}, and the table has "
            f"{', '.join(map(repr, map(str, columns)))}"
        )
    return X[list(names)]


def feature_names(estimator: BaseEstimator) -> list[str]:
    """Feature names of a fitted estimator, or ``x0, x1, …`` where the table had none."""
    names = getattr(estimator, "feature_names_in_", None)
    return [str(n) for n in names] if names is not None else [f"x{j}" for j in range(estimator.n_features_in_)]


def _refuse_masked(X: Any) -> None:
    if np.ma.is_masked(X):
        where = ", ".join(str(int(i)) for i in np.argwhere(np.ma.getmaskarray(X))[0])
        raise ValueError(
            f"X has {int(np.ma.count_masked(X))} masked values (the first at [{where}]): drop these rows or impute them first"
        )


def _refuse_text(X: Any) -> None:
    dtypes = getattr(X, "dtypes", None)
    if dtypes is None or not hasattr(X, "columns"):
        return
    repeated = sorted(name for name, count in Counter(map(str, X.columns)).items() if count > 1)
    if repeated:
        raise ValueError(
            f"{', '.join(map(repr, repeated))} is the name of several columns: rename them, or leave the names out "
            "(X.to_numpy())"
        )
    text = [str(name) for name, dtype in zip(X.columns, dtypes, strict=False) if not _is_numeric(X[name], str(dtype))]
    if text:
        raise ValueError(
            f"could not convert string to float: {_columns(text)} not numeric; select the numeric columns "
            "(--columns at the command line)"
        )


def _is_numeric(column: Any, dtype: str) -> bool:
    if "datetime" in dtype or "timedelta" in dtype:
        return False
    if dtype not in ("object", "str", "string", "category"):
        return True
    try:
        np.asarray(column, dtype=float)
    except (TypeError, ValueError):
        return False
    return True


def _not_finite(array: FloatArray, names: list[str]) -> str:
    bad = np.argwhere(~np.isfinite(array))
    shown = ", ".join(
        f"row {row}, column {names[column]!r} ({'NaN' if np.isnan(array[row, column]) else 'infinity'})"
        for row, column in bad[:3]
    )
    kind = "NaN" if np.isnan(array).any() else "infinity"
    return (
        f"Input X contains {kind}: {shown}{', …' if len(bad) > 3 else ''} ({len(bad)} value{'s' * (len(bad) > 1)} in all). "
        "Drop or impute these rows"
    )


def check_weights(sample_weight: Any, X: FloatArray) -> FloatArray | None:
    """Frequency weights as float64 (N,), or None.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, none is positive, or sums of them leave the range of float64.
    """
    if sample_weight is None:
        return None
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if np.any(weights < 0):
        row = int(np.flatnonzero(weights < 0)[0])
        raise ValueError(f"sample_weight must not be negative: row {row} has {weights[row]:g}")
    if not np.any(weights > 0):
        raise ValueError("sample_weight is zero for every row")
    with np.errstate(over="ignore"):
        total = float(weights.sum())
    if not 1 / MANY_ROWS < total < MANY_ROWS:
        check_total_weight(total, max(abs(float(X.min())), abs(float(X.max()))))
    return _of_one_type(np.ascontiguousarray(weights))


def check_total_weight(total: float, size: float) -> None:
    """Refuse weights whose sum, times the largest square of the data, would leave the range of float64, at either end.

    Raises
    ------
    ValueError
    """
    large = total < LARGEST_SCALE and total * max(1.0, size) ** 2 < LARGEST_SUM
    small = total > 1 / MANY_ROWS or total * min(1.0, size) ** 2 > SMALLEST_SUM
    if not (large and small):
        raise ValueError(
            f"sample_weight sums to {total:.1e}, with values of size {size:.1e} in X: sums of squares leave the range of float64. "
            "Divide the weights by a typical one, or rescale the columns"
        )


def check_classes(y: Any, n_rows: int) -> tuple[np.ndarray, Labels]:
    """Classes of partly known labels, sorted, and the class 0 … C − 1 of each row, −1 unknown.

    None, NaN and −1 are unknown, as everywhere in the package, but where the labels are −1 and 1 alone: these are then the two classes.

    Raises
    ------
    ValueError
        If y is missing, of another length, continuous, mixes numbers and text, or has fewer than two classes.
    """
    labels, known = partial_labels(y, n_rows)
    if not known.any():
        raise ValueError("y has no known label (−1, None and NaN are unknown): no class can be learned from it")
    given = getattr(y, "dtype", None)
    own = isinstance(given, np.dtype) and given.kind in "iufbU"
    found = np.array(list(labels[known]), dtype=given if own else None)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError("Input y contains infinity or a value too large for dtype('float64')")
    check_classification_targets(found)
    classes, codes = np.unique(found, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y has a single class, {classes.tolist()[0]!r}, among its known labels: at least two classes are needed"
        )
    out = np.full(n_rows, -1, dtype=np.int64)
    out[known] = codes
    return classes, out


def partial_labels(y: Any, n_rows: int, classes: np.ndarray | None = None) -> tuple[np.ndarray, NDArray[np.bool_]]:
    """Labels (N,), and which of them are known; −1 is a class where it is one of ``classes``, or the labels are −1 and 1.

    Raises
    ------
    ValueError
        If y is missing, of another length, or mixes numbers and text.
    """
    from bayesgmm.crossvalidation import known_labels

    if y is None:
        raise ValueError("a classifier requires y to be passed, but the target y is None")
    values = np.asarray(y) if hasattr(y, "__array__") else np.asarray(y, dtype=object)
    if values.ndim == 2 and values.shape[1] == 1:
        values = column_or_1d(values, warn=True)
    labels, known = known_labels(values)
    if len(labels) != n_rows:
        raise ValueError(f"y has {len(labels)} labels for {n_rows} rows of X")
    if classes is None:
        signs = bool(known.any()) and all(not isinstance(label, str) and label == 1 for label in labels[known])
    else:
        signs = classes.dtype.kind in "iuf" and bool(np.any(classes == -1))
    if signs:
        known = known | np.array([not isinstance(label, str) and label == -1 for label in labels], dtype=bool)
    return labels, known


def warn_degenerate(X: FloatArray, n_components: int, names: list[str], reg_covar: float) -> None:
    """Warn of constant columns, and of a ``reg_covar`` that would swamp the data."""
    # Some thousand rows tell whether reg_covar would swamp a column.
    spread = np.var(X[:: max(1, len(X) // 5000)], axis=0, dtype=np.float64)
    warn_degenerate_columns(X.min(axis=0), X.max(axis=0), spread, names, reg_covar, len(X) > 1)


def warn_degenerate_columns(
    low: FloatArray, high: FloatArray, spread: FloatArray, names: list[str], reg_covar: float, several: bool = True
) -> None:
    """The same of columns (D,) whose range and variance are known."""
    constant = [names[j] for j in np.flatnonzero(low == high)]
    if constant and several:
        warn_user(
            f"{_columns(constant)} constant: the variance there is reg_covar alone",
            DataWarning,
        )
    swamped = [names[j] for j in np.flatnonzero((spread < reg_covar) & (low < high))]
    if swamped:
        warn_user(
            f"reg_covar={reg_covar:g} exceeds the variance of column{'s' * (len(swamped) > 1)} "
            f"{', '.join(map(repr, swamped))}: rescale the data or lower reg_covar",
            DataWarning,
        )


def refuse_degenerate(X: FloatArray, n_components: int, names: list[str]) -> None:
    """Refuse data that cannot scale a prior.

    Raises
    ------
    ValueError
        If there are fewer distinct rows than components, a constant column, or exactly collinear columns.
    """
    remedy = "or give the prior's scale: prior=ConjugatePrior(scale=...)"
    distinct = n_distinct_rows(X, max(2, n_components))
    if distinct < max(2, n_components):
        raise ValueError(
            f"X has {distinct} distinct rows for {n_components} components: use fewer components, {remedy}"
        )
    low, high = X.min(axis=0), X.max(axis=0)
    constant = [names[j] for j in np.flatnonzero(low == high)]
    if constant:
        raise ValueError(f"{_columns(constant)} constant: drop {'them' if len(constant) > 1 else 'it'}, {remedy}")
    narrow = [names[j] for j in np.flatnonzero(high - low < SMALLEST_SCALE)]
    if narrow:
        raise ValueError(
            f"{_columns(narrow)} narrower than {SMALLEST_SCALE:g}: squares of its differences leave the range of float64. Rescale the "
            "columns (divide by a typical value) and fit again"
        )
    standard = np.zeros((X.shape[1], X.shape[1]))
    center = X.mean(axis=0)
    size = np.max(np.abs(np.stack([low - center, high - center])), axis=0)
    for start in range(0, len(X), 65536):
        part = (X[start : start + 65536] - center) / size
        standard += part.T @ part
    deviation = np.sqrt(np.diagonal(standard))
    values, vectors = np.linalg.eigh(standard / deviation / deviation[:, None])
    if values[0] < 1e-12:
        involved = [names[j] for j in np.flatnonzero(np.abs(vectors[:, 0]) > 1e-4)]
        why = "fewer rows than columns" if len(X) <= X.shape[1] else "exactly collinear (or duplicate)"
        raise ValueError(f"columns {', '.join(map(repr, involved))} are {why}: drop one of them, {remedy}")


def _columns(names: list[str]) -> str:
    return f"columns {', '.join(map(repr, names))} are" if len(names) > 1 else f"column {names[0]!r} is"


def check_distinct_rows(X: FloatArray, n_components: int, reg_covar: float) -> None:
    """Warn of fewer distinct rows than components, and refuse them where nothing keeps variances from 0.

    Raises
    ------
    ValueError
    """
    distinct = n_distinct_rows(X, n_components)
    if distinct < n_components:
        warn_user(
            f"Number of distinct rows ({distinct}) found smaller than n_components ({n_components}): components coincide",
            ConvergenceWarning,
        )
        if reg_covar == 0:
            raise ValueError(f"{distinct} distinct rows cannot carry {n_components} components at reg_covar=0")


def n_distinct_rows(X: FloatArray, enough: int) -> int:
    """Number of distinct rows, counted no further than ``enough``."""
    seen: set[bytes] = set()
    for row in X:
        seen.add((row + 0.0).tobytes())
        if len(seen) >= enough:
            break
    return len(seen)


def generator(random_state: Any) -> np.random.Generator:
    """A NumPy generator from scikit-learn's ``random_state`` (None, an int, a RandomState) or a Generator."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    if isinstance(random_state, (int, np.integer)):
        return np.random.default_rng(int(random_state))
    return np.random.default_rng(check_random_state(random_state).randint(2**31 - 1, size=4))


def check_parameter_arrays(
    weights: Any, means: Any, n_components: int, n_features: int
) -> tuple[FloatArray | None, FloatArray | None]:
    """Given weights and means with their shapes and ranges checked.

    Raises
    ------
    ValueError
        If a shape is wrong, a weight lies outside [0, 1], or the weights do not sum to 1.
    """
    if weights is not None:
        weights = np.asarray(weights, dtype=float)
        if weights.shape != (n_components,):
            raise ValueError(
                f"The parameter 'weights' should have the shape of ({n_components},), but got {weights.shape}"
            )
        if np.any(weights < 0) or np.any(weights > 1) or not np.isfinite(weights).all():
            raise ValueError(f"weights must lie in [0, 1]; got {weights.min():g} to {weights.max():g}")
        if abs(weights.sum() - 1) > 1e-8:
            raise ValueError(f"weights must sum to 1; they sum to {weights.sum():.6g}")
    if means is not None:
        means = np.ascontiguousarray(means, dtype=float)
        if means.shape != (n_components, n_features):
            raise ValueError(
                f"The parameter 'means' should have the shape of ({n_components}, {n_features}), but got {means.shape}"
            )
        if not np.isfinite(means).all():
            raise ValueError("means must be finite")
    return weights, means


def number_of_features(X: Any) -> int:
    """Number of columns of a table."""
    return int(_num_features(X))


Labels = NDArray[np.int64]
