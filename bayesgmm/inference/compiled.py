"""The PyMC model's log posterior and gradient over a flat vector, compiled once and callable from any thread.

PyTensor compiles the graph of :func:`bayesgmm.inference.model.model_from_inputs` to one Numba function whose arguments are
the free variables, the data and the prior's values. No size is part of the graph, and the other covariance structures are
the full one with shorter arrays, so a single compilation, kept in PyTensor's cache on disk, serves every N, D, K and structure.
The function is called directly: PyTensor's own callable holds its arguments in shared storage, which two
threads would overwrite, and keeps the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pytensor.compile.mode import NUMBA, Mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph import rewrite_graph
from pytensor.graph.traversal import ancestors
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS
from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key, numba_njit
from pytensor.link.numba.linker import NumbaLinker

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.inference.model import BartlettLayout, ModelInputs, model_from_inputs
from bayesgmm.inference.prior_ops import log_weights_forward, precision_factors_forward

VALUE_NAMES = ("weights_simplex__", "bartlett_diagonal_log__", "bartlett_offdiagonal", "means")
"""PyMC's names of the unconstrained variables, in the order of the flat vector."""

_compiling = threading.Lock()


class _NogilLinker(NumbaLinker):
    """PyTensor's Numba linker, but the function releases the GIL and is compiled once, not again within a wrapper."""

    def fgraph_convert(self, fgraph: Any, **kwargs: Any) -> Any:
        return numba_funcify_and_cache_key(fgraph, **kwargs)

    def jit_compile(self, fn_and_cache: Any) -> Callable[..., Any]:
        function, key = fn_and_cache
        python_function = function.py_func
        if key is not None:
            # Numba names the cache file after the source file, here a temporary one, and leaves flags out of its key.
            python_function.__code__ = python_function.__code__.replace(co_filename="<string>")
            flags = f"nogil_fastmath{int(pytensor.config.numba__fastmath)}_{pytensor.__version__}"
            CACHED_SRC_FUNCTIONS[python_function] = f"{key}_{flags}"
        return numba_njit(python_function, final_function=True, nogil=True, cache=key is not None)


def _compile() -> Callable[..., Any]:
    K, D = 2, 2
    rng = np.random.default_rng(0)
    template = ModelInputs(
        rng.normal(size=(4, D)), np.empty(0), np.ones(K), np.zeros(D), np.asarray(1.0), np.array([4.0, 3.0]), np.eye(D)
    )
    with pytensor.config.change_flags(floatX="float64"):
        model = model_from_inputs(template, "full", open_values=True)
        values = {variable.name: variable for variable in model.continuous_value_vars}
        ordered = [values[name] for name in VALUE_NAMES]
        # Before differentiation, so that equal subgraphs are one; the prior's values were checked when it was resolved.
        simplify = ("canonicalize", "stabilize", "local_remove_check_parameter")
        log_posterior = rewrite_graph(model.logp(), include=simplify)
        shared = {v.name: v for v in ancestors([log_posterior]) if isinstance(v, SharedVariable)}
        names = [field.name for field in fields(ModelInputs)]
        if set(shared) != set(names):
            raise RuntimeError(f"the model's graph reads {sorted(shared)}, not {sorted(names)}")
        arguments = {shared[name]: shared[name].type(name) for name in names}
        function = pytensor.function(
            [*ordered, *arguments.values()],
            [log_posterior, *pt.grad(log_posterior, ordered)],
            givens=arguments,
            mode=Mode(_NogilLinker(), NUMBA.including("local_remove_check_parameter").provided_optimizer),
            trust_input=True,
        )
    return function.vm.jit_fn


@cache
def _function() -> Callable[..., Any]:
    return _compile()


def log_posterior_function() -> Callable[..., Any]:
    """Numba function of the four unconstrained variables and the fields of ``ModelInputs``, in order.

    It returns the log posterior and its gradient with respect to the four variables. Every argument must be a
    C-contiguous writeable float64 array, or Numba compiles anew.
    """
    with _compiling:
        return _function()


class CompiledPosterior:
    """Log posterior and gradient of one model over a flat unconstrained vector θ of length P.

    Evaluation releases the GIL and may run in several threads at once.

    Parameters
    ----------
    inputs : ModelInputs
        Data and resolved prior.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"

    Attributes
    ----------
    ndim : int
        P.
    slices : dict of str to slice
        Where each unconstrained variable of the PyMC model lies in θ, by its name there; row-major.
    """

    def __init__(self, inputs: ModelInputs, covariance_type: str = "full") -> None:
        self.inputs = inputs
        self.covariance_type = covariance_type
        K, D = inputs.n_components, inputs.n_features
        self._layout = BartlettLayout.of(structure(covariance_type))
        self._shapes = ((K - 1,), self._layout.squares_shape(K, D), self._layout.below_shape(K, D), (K, D))
        stops = np.cumsum([0, *(int(np.prod(shape)) for shape in self._shapes)])
        cuts = [slice(int(a), int(b)) for a, b in zip(stops[:-1], stops[1:], strict=True)]
        self.ndim = int(stops[-1])
        self.slices = dict(zip(VALUE_NAMES, cuts, strict=True))
        self._parts = tuple(zip(cuts, self._shapes, strict=True))
        self._arguments = tuple(getattr(inputs, field.name) for field in fields(ModelInputs))
        self._function: Callable[..., Any] | None = None

    @classmethod
    def from_data(
        cls,
        X: ArrayLike,
        n_components: int,
        covariance_type: str = "full",
        prior: str | ConjugatePrior = "default",
        sample_weight: ArrayLike | None = None,
    ) -> CompiledPosterior:
        """Posterior of the model that ``build_model`` builds from the same arguments.

        Raises
        ------
        ValueError
            As ``build_model``.
        """
        return cls(ModelInputs.resolve(X, n_components, covariance_type, prior, sample_weight), covariance_type)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the unconstrained variables that are not empty."""
        return tuple(name for name, part in self.slices.items() if part.stop > part.start)

    def compile(self) -> CompiledPosterior:
        """Make the function ready now: seconds on a machine's first use, some tenths of a second later on."""
        if self._function is None:
            self._function = log_posterior_function()
        return self

    def logp_and_grad(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Log posterior density of θ, as the PyMC model's ``logp()``, and its gradient.

        Parameters
        ----------
        theta : ndarray of shape (P,)

        Returns
        -------
        logp : float
        gradient : ndarray of shape (P,)
        """
        if self._function is None:
            self.compile()
        # A copy: read-only or strided views have another Numba type and would set off a compilation.
        point = np.array(theta, dtype=np.float64, order="C")
        if point.shape != (self.ndim,):
            raise ValueError(f"theta must have shape ({self.ndim},), got {point.shape}")
        values = [point[part].reshape(shape) for part, shape in self._parts]
        logp, *gradients = self._function(*values, *self._arguments)  # type: ignore[misc]
        return float(logp), np.concatenate([gradient.ravel() for gradient in gradients])

    def _matrices(self, theta: FloatArray) -> tuple[FloatArray, ...]:
        return tuple(theta[..., part].reshape(*theta.shape[:-1], *shape) for part, shape in self._parts)

    def constrain(self, theta: ArrayLike) -> dict[str, FloatArray]:
        """Parameters of one point or of a batch.

        Parameters
        ----------
        theta : array-like of shape (P,) or (S, P)

        Returns
        -------
        dict
            ``weights`` (K,), ``means`` (K, D), ``precision_factors`` (K, D, D), each with a leading axis S for a batch.
        """
        points = np.ascontiguousarray(theta, dtype=np.float64)
        free, log_squares, below, means = self._matrices(np.atleast_2d(points))
        K, D = self.inputs.n_components, self.inputs.n_features
        squares = np.exp(log_squares)
        factors = np.empty((len(free), K, D, D))
        weights = np.empty((len(free), K))
        for s in range(len(free)):
            weights[s] = log_weights_forward(np.ascontiguousarray(free[s]))
            factors[s] = precision_factors_forward(
                self.inputs.scale_factor, squares[s], np.ascontiguousarray(below[s]), K
            )
        np.exp(weights, out=weights)
        result = {"weights": weights, "means": means.copy(), "precision_factors": factors}
        return result if points.ndim == 2 else {name: value[0] for name, value in result.items()}

    def unconstrain(self, weights: ArrayLike, means: ArrayLike, precision_factors: ArrayLike) -> FloatArray:
        """The point θ of given parameters: the inverse of :meth:`constrain`.

        Parameters
        ----------
        weights : array-like of shape (K,)
            Positive.
        means : array-like of shape (K, D)
        precision_factors : array-like of shape (K, D, D)
            Lower, with positive diagonals, of the posterior's covariance structure.

        Returns
        -------
        ndarray of shape (P,)

        Raises
        ------
        ValueError
            If a weight or a diagonal element of a factor is not positive.
        """
        pi = np.asarray(weights, dtype=np.float64)
        factors = np.asarray(precision_factors, dtype=np.float64)
        diagonals = np.diagonal(factors, axis1=-2, axis2=-1)
        if not (np.all(pi > 0) and np.all(diagonals > 0)):
            raise ValueError("weights and the diagonals of precision_factors must be positive")
        log_weights = np.log(pi)
        R, C = self._shapes[1]
        A = np.linalg.solve(self.inputs.scale_factor, factors[:R])
        roots = np.diagonal(A, axis1=-2, axis2=-1)[:, :C]
        rows, columns = np.tril_indices(self.inputs.n_features if self._layout.off_diagonal else 0, -1)
        values = (
            (log_weights - log_weights.mean())[:-1],
            2.0 * np.log(roots),
            A[:, rows, columns],
            np.asarray(means, dtype=np.float64),
        )
        return np.concatenate([np.ravel(value) for value in values])

    def log_jacobian(self, theta: ArrayLike) -> float | FloatArray:
        """Log volume of (π_1 … π_K−1, μ, Σ) per volume of θ; Σ counts by its lower triangle, diagonal or variance.

        The log posterior less this is the log density in (π, μ, Σ), whose mode is EM's maximum a posteriori.

        Parameters
        ----------
        theta : array-like of shape (P,) or (S, P)

        Returns
        -------
        float or ndarray of shape (S,)

        References
        ----------
        Muirhead (1982), Aspects of Multivariate Statistical Theory, section 2.1 (the Jacobians of P Pᵀ and of the inverse).
        """
        points = np.asarray(theta, dtype=np.float64)
        free, log_squares, _, _ = self._matrices(np.atleast_2d(points))
        D = self.inputs.n_features
        K = self.inputs.n_components
        full = np.concatenate([free, -free.sum(axis=1, keepdims=True)], axis=1)
        high = full.max(axis=1, keepdims=True)
        total = np.log(K) - K * (high[:, 0] + np.log(np.exp(full - high).sum(axis=1)))
        R, C = self._shapes[1]
        log_V = np.log(np.diag(self.inputs.scale_factor))
        if self._layout.off_diagonal:
            # log c → A: Π A_ii / 2; A → P = V A: Π V_ii^i; P → P Pᵀ: 2^D Π P_ii^(D − i + 1); inverse: |P Pᵀ|^−(D + 1).
            i = np.arange(1, D + 1)
            log_P = log_V + 0.5 * log_squares
            total = total + np.sum(0.5 * log_squares + i * log_V + (D + 1 - i) * log_P, axis=(1, 2))
            total = total - 2.0 * (D + 1) * np.sum(log_P, axis=(1, 2))
        else:
            total = total - np.sum(2.0 * log_V[:C] + log_squares, axis=(1, 2))
        return total if points.ndim == 2 else float(total[0])
