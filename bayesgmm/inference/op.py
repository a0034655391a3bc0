"""The marginal log-likelihood of a Gaussian mixture as one PyTensor operation over the kernel's pass.

The operation returns the log-likelihood together with its gradient, which the same pass over the data yields by Fisher's
identity. Differentiating the first output hands out the other three, so a compiled graph of value and gradient holds
one node and reads the data once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, disconnected_type, grad_not_implemented
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key

from bayesgmm.core.kernel import KERNEL_VERSION, fused_pass, gradients

_N_OUTPUTS = 4
_NDIM = {"X": 2, "sample_weight": 1, "log_weights": 1, "means": 2, "precision_factors": 3}


class MixtureLogLikelihood(Op):
    r"""Log-likelihood of all rows and its gradient, from one pass over the data.

    .. math:: \sum_n v_n \log \sum_k \pi_k \, \mathcal{N}(x_n;\, \mu_k,\, (P_k P_k^\top)^{-1})

    Inputs are ``X`` (N, D), ``sample_weight`` (N,) or empty for all ones, ``log_weights`` (K,), ``means`` (K, D) and
    ``precision_factors`` (K, D, D), of which the lower triangles are read. Outputs are the log-likelihood and its gradients
    with respect to ``log_weights`` (free numbers, not tied to the simplex), ``means`` and ``precision_factors`` (zero above
    the diagonal).

    The first output can be differentiated, once, with respect to the last three inputs. Everything else raises
    ``NotImplementedError`` or PyTensor's ``NullTypeGradError``, never a wrong number.
    """

    __props__ = ()

    def make_node(self, *inputs: Any) -> Apply:
        """Build the node; every input is converted to float64.

        Raises
        ------
        TypeError
            If the number of inputs or one's number of dimensions is wrong, or one is complex.
        """
        if len(inputs) != len(_NDIM):
            raise TypeError(f"expected {len(_NDIM)} inputs ({', '.join(_NDIM)}), got {len(inputs)}")
        variables = []
        for (name, ndim), value in zip(_NDIM.items(), inputs, strict=True):
            variable = pt.as_tensor_variable(value)
            if variable.ndim != ndim:
                raise TypeError(f"{name} must have {ndim} dimensions, got {variable.ndim}")
            if variable.dtype.startswith("complex"):
                raise TypeError(f"{name} must be real, got {variable.dtype}")
            variables.append(variable if variable.dtype == "float64" else pt.cast(variable, "float64"))
        outputs = [pt.dscalar(), *(pt.TensorType("float64", variable.type.shape)() for variable in variables[2:])]
        return Apply(self, variables, outputs)

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Evaluate on arrays, for the backends that call Python."""
        X, v, log_weights, means, factors = (np.ascontiguousarray(value) for value in inputs)
        log_likelihood, counts, first, second = fused_pass(X, v, log_weights, means, factors)
        values = (np.asarray(log_likelihood), *gradients(counts, first, second, factors))
        for storage, value in zip(output_storage, values, strict=True):
            storage[0] = value

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shapes of the outputs from those of the inputs."""
        return [(), *shapes[2:]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        """Every output depends on every input."""
        return [[True] * _N_OUTPUTS for _ in node.inputs]

    def pullback(
        self, inputs: Sequence[Variable], outputs: Sequence[Variable], cotangents: Sequence[Variable]
    ) -> list[Variable]:
        """Gradient of the first output: the node's own remaining outputs.

        Raises
        ------
        NotImplementedError
            If one of the gradients is differentiated again.
        """
        if any(not isinstance(cotangent.type, DisconnectedType) for cotangent in cotangents[1:]):
            raise NotImplementedError(
                "MixtureLogLikelihood has first derivatives only; for a Hessian take finite differences of the gradient"
            )
        fixed = [
            grad_not_implemented(self, position, inputs[position], "the data and their weights are held fixed")
            for position in range(2)
        ]
        if isinstance(cotangents[0].type, DisconnectedType):
            return [*fixed, *(disconnected_type() for _ in inputs[2:])]
        return [*fixed, *(cotangents[0] * gradient for gradient in outputs[1:])]


def cache_version(kernel_version: str) -> int:
    """Number that PyTensor's cache on disk knows the compiled operation by: other sources, other number."""
    return int.from_bytes(hashlib.sha256(kernel_version.encode() + Path(__file__).read_bytes()).digest()[:8])


_CACHE_VERSION = cache_version(KERNEL_VERSION)


@register_funcify_default_op_cache_key(MixtureLogLikelihood)
def _numba_mixture_log_likelihood(op: MixtureLogLikelihood, node: Apply | None = None, **kwargs: Any) -> Any:
    # PyTensor's own key covers the operation's type and properties, never what the function does.
    @numba_njit
    def mixture_log_likelihood(X: Any, sample_weight: Any, log_weights: Any, means: Any, precision_factors: Any) -> Any:
        factors = np.ascontiguousarray(precision_factors)
        log_likelihood, counts, first, second = fused_pass(
            np.ascontiguousarray(X),
            np.ascontiguousarray(sample_weight),
            np.ascontiguousarray(log_weights),
            np.ascontiguousarray(means),
            factors,
        )
        g_log_weights, g_means, g_factors = gradients(counts, first, second, factors)
        return np.asarray(log_likelihood), g_log_weights, g_means, g_factors

    return mixture_log_likelihood, _CACHE_VERSION


mixture_log_likelihood = MixtureLogLikelihood()
"""The operation itself; it has no settings, so one instance serves everyone."""
