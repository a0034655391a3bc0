"""The partition of the rows with the smallest posterior expected loss, its credible ball, and others beside it.

References
----------
Dahl, D. B., Johnson, D. J. & Müller, P. (2022). Search algorithms and loss functions for Bayesian clustering. Journal of
Computational and Graphical Statistics 31, 1189–1201.
Wade, S. & Ghahramani, Z. (2018). Bayesian cluster analysis: point estimation and credible balls. Bayesian Analysis 13, 559–626.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from bayesgmm.convergence import effective_size
from bayesgmm.core import kernel
from bayesgmm.core.allocations import RESCORED, best_draw, draw_allocations
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.core.partitions import Allocations, LabelArray, canonical, check_loss, losses, mean_coclustering, minimise
from bayesgmm.estimators.validation import n_distinct_rows

if TYPE_CHECKING:
    from bayesgmm.inference.posterior import PosteriorDraws

MAX_ROWS = 20_000
"""Rows that are partitioned at most."""

MAX_DRAWS = 4000
"""Draws that are used unless another number is asked for."""

ALLOCATIONS = 20_000_000
"""Rows × draws that are held unless more draws are asked for: one byte each."""

KMEANS_STARTS = 10

CLOSE = 1e-10
"""Difference of two losses that is rounding."""

UNSURE = 0.9
"""Mean co-clustering of a row with its own cluster below which the summary counts it as unsure."""

NAMES = {"vi": "variation of information", "binder": "Binder's loss"}
UNITS = {"vi": " bits", "binder": ""}


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedPartition:
    """A partition beside the estimate.

    Parameters
    ----------
    labels : ndarray of shape (N,)
        0 … C − 1 by decreasing size.
    n_clusters : int
    expected_loss : float
        Posterior expected loss; the estimate's is no larger.
    distance : float
        Loss between this partition and the estimate.
    adjusted_rand : float
        Adjusted Rand index of the estimate against this partition, each row counted once: 1 for equal ones, 0 on average for
        random ones.
    """

    labels: LabelArray
    n_clusters: int
    expected_loss: float
    distance: float
    adjusted_rand: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BallExtreme:
    """A draw's partition at the edge of a credible ball.

    Parameters
    ----------
    labels : ndarray of shape (N,)
        0 … C − 1 by decreasing size.
    n_clusters : int
    distance : float
        Loss between this partition and the estimate.
    """

    labels: LabelArray
    n_clusters: int
    distance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class CredibleBall:
    """Smallest ball around the estimate that has at least the asked posterior probability (Wade & Ghahramani 2018, section 4.3).

    Parameters
    ----------
    credible : float
        Probability asked for.
    radius : float
        In the loss.
    horizontal : BallExtreme
        In the ball, the partition farthest from the estimate.
    vertical_upper : BallExtreme
        Of those in the ball with the fewest clusters, the farthest.
    vertical_lower : BallExtreme
        Of those in the ball with the most clusters, the farthest.

    Notes
    -----
    The posterior is that of the draws; of extremes equally far, the first draw's is given.
    """

    credible: float
    radius: float
    horizontal: BallExtreme
    vertical_upper: BallExtreme
    vertical_lower: BallExtreme


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """Point estimate of a clustering: the partition of smallest posterior expected loss, with its uncertainty.

    Parameters
    ----------
    labels : ndarray of shape (N,)
        Cluster of each row, 0 … C − 1 by decreasing size. Clusters are no components: two components that the posterior does not
        keep apart may be one cluster.
    n_clusters : int
        C.
    loss : {"vi", "binder"}
    expected_loss : float
        Mean loss over the draws: bits under "vi" (0 to log₂ N), a share of the ordered pairs of rows under "binder" (0 to 1).
    expected_loss_error : float
        Its Monte Carlo standard error, autocorrelation of the chains included, with the partition held fixed.
    ball : CredibleBall
    comparisons : mapping of str to ComparedPartition
        "em" (each row in its most probable component at the mode), "kmeans" (scikit-learn's, K clusters), "best draw".
    mean_coclustering : ndarray of shape (N, C)
        Posterior probability that the row shares its component with a member of the cluster, the member drawn at random (by weight),
        the row itself left out; 1 for the only member of a cluster.
    n_draws : int
        Draws that were used.
    notes : tuple of str
        What is worth knowing.

    References
    ----------
    Wade & Ghahramani (2018), Bayesian cluster analysis: point estimation and credible balls, Bayesian Analysis 13, 559–626.
    """

    labels: LabelArray
    n_clusters: int
    loss: str
    expected_loss: float
    expected_loss_error: float
    ball: CredibleBall
    comparisons: Mapping[str, ComparedPartition]
    mean_coclustering: FloatArray
    n_draws: int
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> LabelArray:
        """Rows in each cluster, (C,)."""
        return np.bincount(self.labels, minlength=self.n_clusters)

    @property
    def own_coclustering(self) -> FloatArray:
        """How sure the estimate is of each row, (N,): its mean co-clustering with the other members of its own cluster."""
        return self.mean_coclustering[np.arange(len(self.labels)), self.labels]

    @property
    def rival(self) -> LabelArray:
        """The other cluster with which each row has the highest mean co-clustering, (N,); −1 where there is only one cluster."""
        if self.n_clusters == 1:
            return np.full(len(self.labels), -1)
        others = self.mean_coclustering.copy()
        others[np.arange(len(self.labels)), self.labels] = -1.0
        return np.argmax(others, axis=1)

    def __str__(self) -> str:
        unit, percent = UNITS[self.loss], f"{100 * self.ball.credible:.4g} %"
        few = ", ".join(str(n) for n in self.sizes[:8]) + (", …" if self.n_clusters > 8 else "")
        lines = [
            f"{len(self.labels)} rows in {_clusters(self.n_clusters)} (rows: {few}) by {NAMES[self.loss]}",
            f"expected loss {self.expected_loss:.4g} ± {self.expected_loss_error:.2g}{unit} over {self.n_draws} draws",
        ]
        titles = {"em": "EM's partition", "kmeans": "k-means' partition", "best draw": "best single draw"}
        for name, other in self.comparisons.items():
            lines.append(
                f"- {titles.get(name, name)}: {_clusters(other.n_clusters)}, expected loss {other.expected_loss:.4g}{unit}, "
                f"adjusted Rand index with the estimate {other.adjusted_rand:.3f}"
            )
        ball = self.ball
        lines.append(
            f"{percent} of the posterior lies within {ball.radius:.4g}{unit} of it, with {ball.vertical_upper.n_clusters} "
            f"to {_clusters(ball.vertical_lower.n_clusters)}"
        )
        unsure = int(np.sum(self.own_coclustering < UNSURE))
        lines.append(
            f"{unsure} of {len(self.labels)} rows share a component with their cluster with probability below {UNSURE:g}"
        )
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])


def _clusters(n: int) -> str:
    return f"{n} cluster{'s' * (n != 1)}"


def partition(
    X: FloatArray,
    draws: PosteriorDraws,
    mode: MixtureParameters,
    rng: np.random.Generator,
    *,
    loss: str = "vi",
    sample_weight: FloatArray | None = None,
    n_draws: int | None = None,
    n_restarts: int = 16,
    max_clusters: int | None = None,
    credible: float = 0.95,
) -> Partition:
    """Partition of smallest posterior expected loss; see :meth:`bayesgmm.BayesianGaussianMixture.partition`.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : PosteriorDraws
    mode : MixtureParameters
        EM's.
    rng : numpy.random.Generator
    loss, n_draws, n_restarts, max_clusters, credible
        As there.
    sample_weight : ndarray of shape (N,), optional

    Returns
    -------
    Partition

    Raises
    ------
    ValueError
        As there.
    """
    check_loss(loss)
    _check("n_draws", n_draws, 1, optional=True)
    _check("n_restarts", n_restarts, 1)
    _check("max_clusters", max_clusters, 1, optional=True)
    _check_probability("credible", credible)
    N, K = len(X), mode.n_components
    if N > MAX_ROWS:
        raise ValueError(
            f"a partition of {N} rows is searched under every draw, and at most {MAX_ROWS} rows are taken: give X=, a sample of the rows"
        )
    drawing, searching, clustering = rng.spawn(3)
    thinned, shape = _thinned(draws, n_draws or min(MAX_DRAWS, ALLOCATIONS // N))
    z = draw_allocations(X, *thinned, drawing)
    best, exact = best_draw(z, loss, sample_weight)
    labels_of: dict[str, NDArray[Any]] = {
        "em": np.argmax(kernel.responsibilities(X, mode)[0], axis=1),
        "kmeans": _kmeans(X, K, sample_weight, clustering),
        "best draw": z[:, best],
    }
    others = {name: canonical(labels, sample_weight) for name, labels in labels_of.items()}
    labels = minimise(
        z,
        loss,
        searching,
        sample_weight,
        list(others.values()),
        n_restarts,
        K if max_clusters is None else max_clusters,
    )
    distances, n_clusters = losses(z, labels, loss, sample_weight)
    return Partition(
        labels=labels,
        n_clusters=int(labels.max()) + 1,
        loss=loss,
        expected_loss=float(distances.mean()),
        expected_loss_error=_standard_error(distances.reshape(shape)),
        ball=_credible_ball(z, distances, n_clusters, float(credible), sample_weight),
        comparisons={name: _compared(z, other, labels, loss, sample_weight) for name, other in others.items()},
        mean_coclustering=mean_coclustering(z, labels, sample_weight),
        n_draws=len(distances),
        notes=_notes(exact, max_clusters, others),
    )


def _check(name: str, value: Any, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{' or None' * optional}; got {value!r}")


def _check_probability(name: str, value: Any) -> None:
    if not (isinstance(value, Real) and 0 < float(value) < 1):
        raise ValueError(f"{name} must be a probability between 0 and 1, both excluded; got {value!r}")


def _thinned(draws: PosteriorDraws, n_draws: int) -> tuple[tuple[FloatArray, FloatArray, FloatArray], tuple[int, int]]:
    """Weights, means and factors of about that many draws, evenly from each chain; (chains, draws) of them."""
    chains = draws.n_chains
    kept = min(draws.n_draws, max(1, n_draws // chains))
    which = (np.arange(kept) * draws.n_draws) // kept
    parts = (part[:, which] for part in (draws.weights, draws.means, draws.precision_factors))
    weights, means, factors = (np.ascontiguousarray(part.reshape(-1, *part.shape[2:])) for part in parts)
    return (weights, means, factors), (chains, kept)


def _kmeans(X: FloatArray, K: int, sample_weight: FloatArray | None, rng: np.random.Generator) -> NDArray[np.int32]:
    # Moved and scaled as a whole: the same answer, without overflow.
    centred = X - X.mean(axis=0)
    centred /= np.max(np.abs(centred)) or 1.0
    n_clusters = min(K, n_distinct_rows(centred, K))
    model = KMeans(n_clusters, n_init=KMEANS_STARTS, random_state=int(rng.integers(2**31)))
    # Threads that wait for one another cost more than they bring at these sizes.
    with threadpool_limits(limits=1):
        labels: NDArray[np.int32] = model.fit(centred, sample_weight=sample_weight).labels_
    return labels


def _standard_error(values: FloatArray) -> float:
    """Standard error of the mean of draws (chains, draws) by their effective sample size."""
    if np.ptp(values) <= CLOSE:
        return 0.0
    size = float(effective_size(values[None])[0]) if values.shape[1] >= 4 else float(values.size)
    return float(values.std(ddof=1) / np.sqrt(size))


def _compared(
    z: Allocations, other: LabelArray, labels: LabelArray, loss: str, sample_weight: FloatArray | None
) -> ComparedPartition:
    as_draw = other[:, None].astype(np.uint16)
    return ComparedPartition(
        labels=other,
        n_clusters=int(other.max()) + 1,
        expected_loss=float(losses(z, other, loss, sample_weight)[0].mean()),
        distance=float(losses(as_draw, labels, loss, sample_weight)[0][0]),
        adjusted_rand=float(adjusted_rand_score(other, labels)),
    )


def _credible_ball(
    z: Allocations, distances: FloatArray, n_clusters: LabelArray, credible: float, sample_weight: FloatArray | None
) -> CredibleBall:
    radius = float(np.quantile(distances, credible, method="inverted_cdf"))
    inside = distances <= radius + CLOSE

    def farthest(candidates: NDArray[np.bool_]) -> BallExtreme:
        # Of equals the first, whatever the last digits are.
        draw = int(np.flatnonzero(candidates & (distances >= distances[candidates].max() - CLOSE))[0])
        return BallExtreme(
            labels=canonical(z[:, draw], sample_weight),
            n_clusters=int(n_clusters[draw]),
            distance=float(distances[draw]),
        )

    return CredibleBall(
        credible=credible,
        radius=radius,
        horizontal=farthest(inside),
        vertical_upper=farthest(inside & (n_clusters == n_clusters[inside].min())),
        vertical_lower=farthest(inside & (n_clusters == n_clusters[inside].max())),
    )


def _notes(exact: bool, max_clusters: int | None, others: Mapping[str, LabelArray]) -> tuple[str, ...]:
    notes = []
    if not exact:
        notes.append(
            f"the best single draw is the best of {RESCORED} that looked best without weights or against a part of the draws"
        )
    larger = [name for name, labels in others.items() if max_clusters is not None and labels.max() >= max_clusters]
    if larger:
        notes.append(f"max_clusters={max_clusters} rules out the partitions compared: {', '.join(larger)}")
    return tuple(notes)
