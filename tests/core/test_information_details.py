"""Parts of the standard errors one at a time: free entries, coordinates, sums over rows, and what is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bayesgmm.core import em, information, kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.information import FreeEntries, ScoreCoordinates, ScoreMoments, named_scalars
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
from tests.core.test_information import Natural, a_prior, fitted, separated
from tests.mixtures import STRUCTURES, random_mixture

ROUNDING = 1e-10
"""Two orders of the same sums of at most some hundred terms, in matrices of condition below 1e3."""


def named(kind: str, n_features: int, order: list[int] | None = None) -> dict[str, float]:
    """Names of numbers that tell where they come from: component (hundreds), feature or pair (units)."""
    free = structure(kind)
    by_component = 100.0 * np.arange(2)[:, None]
    deviations = {"full": by_component + np.arange(n_features), "diag": by_component + np.arange(n_features)}
    deviations |= {"tied": np.arange(float(n_features)), "spherical": by_component[:, 0]}
    pairs = np.arange(n_features * (n_features - 1) / 2)
    correlations = {"full": by_component + pairs, "tied": pairs}.get(kind)
    arrays = {
        "weights": by_component[:, 0],
        "means": by_component + np.arange(n_features),
        "standard_deviations": deviations[kind],
        "correlations": correlations,
    }
    return named_scalars(arrays, free, ["a", "b", "c"][:n_features], order)


def test_names_of_full_covariances_have_components_features_and_pairs():
    assert named("full", 3) == {
        **{"weights[0]": 0, "weights[1]": 100},
        **{"means[0, a]": 0, "means[0, b]": 1, "means[0, c]": 2},
        **{"means[1, a]": 100, "means[1, b]": 101, "means[1, c]": 102},
        **{"standard_deviations[0, a]": 0, "standard_deviations[0, b]": 1, "standard_deviations[0, c]": 2},
        **{"standard_deviations[1, a]": 100, "standard_deviations[1, b]": 101, "standard_deviations[1, c]": 102},
        **{"correlations[0, a:b]": 0, "correlations[0, a:c]": 1, "correlations[0, b:c]": 2},
        **{"correlations[1, a:b]": 100, "correlations[1, a:c]": 101, "correlations[1, b:c]": 102},
    }


def test_an_order_renames_components_and_leaves_what_they_share():
    assert named("tied", 2, [1, 0]) == {
        **{"weights[0]": 100, "weights[1]": 0},
        **{"means[0, a]": 100, "means[0, b]": 101, "means[1, a]": 0, "means[1, b]": 1},
        **{"standard_deviations[a]": 0, "standard_deviations[b]": 1},
        **{"correlations[a:b]": 0},
    }
    assert named("spherical", 1, [1, 0])["standard_deviations[0]"] == 100


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_correlations_have_no_names_where_the_structure_has_none(kind):
    found = named_scalars({"correlations": np.ones((2, 1)), "weights": np.ones(2)}, structure(kind), ["a", "b"])
    assert list(found) == ["weights[0]", "weights[1]"]


def derivatives(free: FreeEntries, kind: str, owner: int) -> np.ndarray:
    """∂Σ/∂entry (q, D, D) of an owner: covariances are linear in their free entries."""
    units = np.eye(free.owners * free.size)[owner * free.size : (owner + 1) * free.size]
    K, D = free.n_components, free.n_features
    return np.stack([structure(kind).expand(free.put(unit), K, D)[owner] for unit in units])


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(2, 3), (3, 1)])
def test_free_entries_are_those_that_the_covariances_are_linear_in(kind, K, D):
    free, rng = FreeEntries(structure(kind), K, D), np.random.default_rng(0)
    J = derivatives(free, kind, 0)
    np.testing.assert_array_equal(free.basis, J)
    A = rng.standard_normal((4, D, D))
    M = A + np.swapaxes(A, 1, 2)
    np.testing.assert_allclose(free.contract(M), np.einsum("aij,nji->na", J, M), rtol=ROUNDING, atol=1e-14)
    z = rng.standard_normal((5, D))
    outer = z[:, :, None] * z[:, None, :] - np.eye(D)
    np.testing.assert_allclose(free.squares(z), 0.5 * np.einsum("aij,nji->na", J, outer), rtol=ROUNDING, atol=1e-14)
    entries = rng.standard_normal(free.owners * free.size)
    np.testing.assert_array_equal(free.take(free.put(entries)), entries)
    # Replicates: any number of axes in front.
    many = np.stack([[free.put(i + j + entries) for j in range(2)] for i in range(3)])
    np.testing.assert_array_equal(free.take(many), np.add.outer(np.add.outer(np.arange(3), np.arange(2)), entries))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_deviations_and_correlations_are_those_of_the_matrices(kind):
    mixture = random_mixture(np.random.default_rng(1), 2, 3, kind)
    free = FreeEntries(structure(kind), 2, 3)
    packed = np.stack([mixture.packed, 4 * mixture.packed])
    sd = np.sqrt(np.diagonal(mixture.covariances, axis1=1, axis2=2))
    own = {"full": sd, "tied": sd[:1], "diag": sd, "spherical": sd[:, :1]}[kind]
    np.testing.assert_allclose(free.deviations(packed), [own, 2 * own], rtol=ROUNDING)
    shared = {"tied": own[0], "spherical": own[:, 0]}.get(kind, own)
    np.testing.assert_array_equal(free.drop_shared(own), shared)
    if free.symmetric:
        rho = (mixture.covariances / sd[:, :, None] / sd[:, None, :])[: free.owners, *np.tril_indices(3, -1)]
        np.testing.assert_allclose(free.correlations(packed), [rho, rho], rtol=ROUNDING)


def unit_normals(weights: list[float], variances: np.ndarray | None = None, n_features: int = 2) -> MixtureParameters:
    """Components at 0 without correlations, of variance 1 unless told."""
    K = len(weights)
    variances = np.ones((K, n_features)) if variances is None else np.asarray(variances, dtype=float)
    factors = np.stack([np.diag(1 / np.sqrt(v)) for v in variances])
    return MixtureParameters(np.array(weights), np.zeros((K, variances.shape[1])), factors)


def test_the_largest_of_the_active_weights_gives_way_to_the_others():
    mixture = unit_normals([0.2, 0.5, 0.3])
    all_move = ScoreCoordinates(structure("full"), mixture)
    np.testing.assert_array_equal(all_move.from_weights, [[1, 0], [-1, -1], [0, 1]])
    # ∂ log π
    np.testing.assert_allclose(all_move.log_weight_gradient, [[5, 0], [-2, -2], [0, 10 / 3]], rtol=ROUNDING)
    two_move = ScoreCoordinates(structure("full"), mixture, np.array([True, False, True]))
    np.testing.assert_array_equal(two_move.from_weights, [[1], [0], [-1]])


@pytest.mark.parametrize("kind", STRUCTURES)
def test_slots_of_components_fill_the_coordinates_without_gaps(kind):
    own = ScoreCoordinates(structure(kind), unit_normals([0.2, 0.5, 0.3]))
    index = np.arange(own.size)
    means = [index[own.mean_slots(k)].tolist() for k in range(3)]
    covariances = [index[own.covariance_slots(k)].tolist() for k in range(3)]
    assert means == [[2, 3], [4, 5], [6, 7]]
    expected = {
        "full": [[8, 9, 10], [11, 12, 13], [14, 15, 16]],
        "tied": [[8, 9, 10]] * 3,
        "diag": [[8, 9], [10, 11], [12, 13]],
        "spherical": [[8], [9], [10]],
    }
    assert covariances == expected[kind]
    assert own.size == expected[kind][-1][-1] + 1 == structure(kind).n_parameters(3, 2)
    assert [own.slots(k).tolist() for k in range(3)] == [m + c for m, c in zip(means, covariances)]


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_without_a_prior_a_component_without_rows_keeps_nothing_of_its_own(kind):
    active = np.array([True, False, True])
    mixture = unit_normals([0.5, 0.0, 0.5])
    without = ScoreCoordinates(structure(kind), mixture, active, False)
    gone = set(without.slots(1).tolist() if kind != "tied" else range(3, 5))
    assert set(np.flatnonzero(~without.kept).tolist()) == gone
    assert without.kept.shape == (without.size,)
    assert ScoreCoordinates(structure(kind), mixture, active, True).kept.all()


@pytest.mark.parametrize("kind", STRUCTURES)
def test_reg_covar_holds_up_a_variance_of_which_it_is_more_than_half(kind):
    own = ScoreCoordinates(structure(kind), unit_normals([0.6, 0.4]))
    turn, held = own.held_up(0.5)
    assert turn is None
    assert not held.any()
    turn, held = own.held_up(np.nextafter(0.5, 1))
    assert turn is not None
    covariances = np.concatenate([np.arange(own.size)[own.covariance_slots(k)] for k in range(2)])
    assert set(np.flatnonzero(held).tolist()) == set(covariances.tolist())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Entries (0, 0), (1, 0), (1, 1) along the principal axes, in the order of the shares: half, and twice the variance.
        ("full", [[False, False, False], [False, True, True]]),
        ("diag", [[False, False], [False, True]]),
        ("spherical", [[False], [True]]),
    ],
)
def test_only_directions_that_are_held_up_are(kind, expected):
    """reg_covar 0.5: half of a variance of 1 is not more than half of it, of a variance of a quarter it is."""
    variances = [[1.0, 1.0], [0.25, 0.25]] if kind == "spherical" else [[1.0, 1.0], [1.0, 0.25]]
    own = ScoreCoordinates(structure(kind), unit_normals([0.6, 0.4], np.array(variances)))
    _, held = own.held_up(0.5)
    assert [held[own.covariance_slots(k)].tolist() for k in range(2)] == expected
    assert not held[: own.covariance_slots(0).start].any()


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_turned_coordinates_are_the_same_covariances_along_other_axes(kind):
    """Half the squared Frobenius norm of E, the information of a row about it, is a sum of squares in them, whatever the axes."""
    mixture = random_mixture(np.random.default_rng(2), 2, 3, kind)
    own = ScoreCoordinates(structure(kind), mixture.parameters)
    turn, _ = own.held_up(10.0)
    assert turn is not None
    for k in range(2):
        part = own.covariance_slots(k)
        gram = 0.5 * own.free.contract(own.free.basis)
        block = turn[part, part]
        np.testing.assert_allclose(block.T @ gram @ block, 0.5 * np.eye(6), atol=1e-12)
        # The axes are those of reg_covar against the covariance.
        P = mixture.parameters.precision_factors[k if kind == "full" else 0]
        for column, shares in zip(block.T[own.free.diagonal], np.linalg.eigvalsh(P.T @ P), strict=True):
            E = np.einsum("a,aij->ij", column, own.free.basis)
            # Symmetric of rank one: an axis' square.
            assert np.trace(E @ P.T @ P) == pytest.approx(shares, rel=1e-9)
            assert np.linalg.matrix_rank(E, tol=1e-9) == 1
    rest = np.delete(
        np.arange(own.size), np.concatenate([np.arange(own.size)[own.covariance_slots(k)] for k in range(2)])
    )
    np.testing.assert_array_equal(turn[np.ix_(rest, rest)], np.eye(len(rest)))


def dense_scores(X: np.ndarray, mixture: MixtureParameters, own: ScoreCoordinates) -> tuple[np.ndarray, np.ndarray]:
    """Responsibilities (N, K) through scipy and the scores (N, K, P) of rows if their labels were k."""
    K, covariances = mixture.n_components, mixture.covariances
    joint = np.stack(
        [w * stats.multivariate_normal.pdf(X, m, S) for w, m, S in zip(mixture.weights, mixture.means, covariances)],
        axis=1,
    )
    scores = np.zeros((len(X), K, own.size))
    for n, x in enumerate(X):
        for k in range(K):
            z = mixture.precision_factors[k].T @ (x - mixture.means[k])
            scores[n, k, : own.n_weights] = own.from_weights[k] / mixture.weights[k]
            scores[n, k, own.mean_slots(k)] = z
            about = 0.5 * (np.outer(z, z) - np.eye(len(z)))
            scores[n, k, own.covariance_slots(k)] = [np.trace(J @ about) for J in own.free.basis]
    return joint / joint.sum(axis=1, keepdims=True), scores


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_sums_over_rows_are_those_of_the_scores_of_every_row_and_label(kind, weighted):
    rng = np.random.default_rng(3)
    mixture = random_mixture(rng, 3, 2, kind)
    X = mixture.sample(rng, 40)
    v = rng.uniform(0.3, 2.5, 40) if weighted else None
    own = ScoreCoordinates(structure(kind), mixture.parameters)
    sums = ScoreMoments(own, 1)(X, v, 0)
    r, scores = dense_scores(X, mixture.parameters, own)
    u = np.ones(40) if v is None else v
    by_row = np.einsum("nk,nkp->np", r, scores)
    np.testing.assert_allclose(sums.meat, np.einsum("n,np,nq->pq", u, by_row, by_row), rtol=ROUNDING, atol=1e-10)
    missing = np.einsum("n,nk,nkp,nkq->pq", u, r, scores, scores) - sums.meat
    # Louis (1982): what is unknown about the labels takes information away and gives none.
    np.testing.assert_allclose(sums.missing_information(own), missing, rtol=ROUNDING, atol=1e-10)
    assert np.linalg.eigvalsh(sums.missing_information(own)).min() > -1e-10
    problem = em.Problem(X, structure("full"), None, v)
    expected, found = problem.e_step(mixture.parameters), sums.statistics(mixture.parameters)
    for name in ("log_likelihood", "total_weight", "counts", "first", "second"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-11, err_msg=name)


def test_rows_of_weight_zero_count_for_nothing_however_far_away():
    X, labels = separated(2, 2, 50)
    _, parameters, _ = fitted(X, labels)
    own = ScoreCoordinates(structure("full"), parameters)
    far = np.vstack([X, [[1e150, 0.0]]])
    few = ScoreMoments(own, 1)(X, np.full(50, 0.5), 0)
    more = ScoreMoments(own, 1)(far, np.append(np.full(50, 0.5), 0.0), 0)
    assert few.total_weight == more.total_weight == 25
    assert more.log_likelihood == pytest.approx(few.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(more.meat, few.meat, rtol=ROUNDING, atol=1e-12)


def test_no_rows_have_sums_of_zero():
    own = ScoreCoordinates(structure("full"), unit_normals([0.6, 0.4]))
    sums = ScoreMoments(own, 1)(np.empty((0, 2)), None, 0)
    assert (sums.log_likelihood, sums.total_weight) == (0, 0)
    assert not sums.grams.any()
    assert not sums.meat.any()


@pytest.mark.parametrize(
    ("elements", "n_rows", "largest", "parts"),
    [
        # 11 parameters: as many rows as make up the elements, but no fewer than 64 and no more than 8192.
        (0, 512, 64, 8),
        (11 * 65 - 1, 512, 64, 8),
        (11 * 65, 130, 65, 2),
        (11 * 100_000, 8193, 8192, 2),
        # More pieces than 8 parts: the parts have several.
        (0, 513, 64, 5),
        (0, 64 * 24, 64, 8),
        (0, 1, 1, 1),
    ],
)
def test_pieces_of_a_block_are_small_and_their_sums_few(elements, n_rows, largest, parts, monkeypatch):
    own = ScoreCoordinates(structure("full"), unit_normals([0.6, 0.4]))
    pieces, handed = [], []
    responsibilities, over_chunks = kernel.responsibilities, information.over_chunks

    def counted(X, parameters, n_threads):
        pieces.append(len(X))
        # Pieces run beside one another; within one there is a single thread.
        assert n_threads == 1
        return responsibilities(X, parameters, n_threads)

    def watched(n_rows, chunk_rows, work, n_threads, task):
        handed.append((-(-n_rows // chunk_rows), work, n_threads))
        over_chunks(n_rows, chunk_rows, work, n_threads, task)

    monkeypatch.setattr(information.kernel, "responsibilities", counted)
    monkeypatch.setattr(information, "over_chunks", watched)
    monkeypatch.setattr(information, "BLOCK_ELEMENTS", elements)
    sums = ScoreMoments(own, 1)(np.zeros((n_rows, 2)), None, 0)
    assert sum(pieces) == sums.total_weight == n_rows
    assert max(pieces) == largest
    # Of 1 + 2 + 3 scores of a row and component: that many times the work of a pass of EM.
    assert handed == [(parts, 6 * kernel.pass_cost(n_rows, 2, 2), 1)]


@pytest.mark.parametrize("with_prior", [False, True], ids=["likelihood", "prior"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_gradients_are_the_slopes_of_the_objective_and_of_the_likelihood(kind, with_prior):
    X, labels = separated(2, 2, 60)
    prior, v = a_prior(X, 2), np.linspace(0.5, 2, 60)
    problem = em.Problem(X, structure(kind), prior if with_prior else None, v)
    mixture = random_mixture(np.random.default_rng(4), 2, 2, kind)
    parameters = replace(mixture.parameters, means=np.array([[0.3, -0.2], [3.0, 1.0]]))
    own = ScoreCoordinates(problem.kind, parameters)
    sums = problem.total(ScoreMoments(own, 1))
    _, expected, gradient, slope = information._information(problem, own, sums.grams, sums.meat)
    jacobian, scale = own.to_natural()
    # The last weight is 1 less the first.
    ways = np.delete(jacobian * scale[:, None], 1, axis=0)
    for objective, found in ((Natural(problem, 2), gradient), (Natural(replace(problem, prior=None), 2), slope)):
        theta = objective.pack(parameters, mixture.packed)
        h = 1e-5
        slopes = [(objective(theta + h * way) - objective(theta - h * way)) / (2 * h) for way in ways.T]
        # Differences: h² of truncation, and 1e-16 |f| / h of rounding, |f| near 1e3.
        np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-6)
    # Of labelled rows at their optimum: N_k of a normal's information, and the multinomial's of the weights.
    counts = sums.grams[:, 0, 0]
    concentration, precision = (prior.resolved_concentration - 1, prior.mean_precision) if with_prior else (0, 0)
    weights = np.diag((counts + concentration) / parameters.weights**2)
    np.testing.assert_allclose(expected[:1, :1], own.from_weights.T @ weights @ own.from_weights, rtol=ROUNDING)
    for k in range(2):
        part = own.mean_slots(k)
        np.testing.assert_allclose(expected[part, part], (counts[k] + precision) * np.eye(2), rtol=ROUNDING)
        others = np.delete(np.arange(own.size), np.arange(own.size)[part])
        assert not expected[part, others].any()
    if not with_prior:
        whose = [counts.sum()] * 2 if kind == "tied" else counts
        J = own.free.basis
        for k in range(2):
            part = own.covariance_slots(k)
            np.testing.assert_allclose(
                expected[part, part], 0.5 * whose[k] * np.einsum("aij,bji->ab", J, J), rtol=ROUNDING, atol=1e-12
            )


def test_as_many_parameters_as_are_allowed_are_not_too_many(monkeypatch):
    X, labels = separated(2, 2, 60)
    problem, parameters, packed = fitted(X, labels)
    monkeypatch.setattr(information, "MAX_PARAMETERS", 11)
    assert information.standard_errors(problem, parameters, packed).covariance_matrix.shape == (11, 11)


def empty_notes(problem: em.Problem, parameters: MixtureParameters) -> list[str]:
    """What is said about components without rows."""
    packed = problem.kind.pack(parameters.covariances)
    with pytest.warns(information.InformationWarning):
        errors = information.standard_errors(problem, parameters, packed)
    return [note for note in errors.notes if "has no rows" in note]


def test_a_weight_of_the_boundary_is_none_at_it():
    X, labels = separated(2, 1, 80)
    prior = a_prior(X, 2)
    problem, parameters, _ = fitted(X, labels, prior=prior)
    least = information.BOUNDARY
    for weight, n_notes in ((least, 0), (np.nextafter(least, 0), 1)):
        moved = replace(parameters, weights=np.array([1 - weight, weight]))
        assert len(empty_notes(problem, moved)) == n_notes


def test_a_share_of_the_rows_of_the_boundary_is_none_at_it(monkeypatch):
    X, labels = separated(2, 1, 80)
    problem, parameters, packed = fitted(X, labels)
    least, e_step, passes = information.BOUNDARY * 80, em.Problem.e_step, []

    def with_count(count):
        def step(self, parameters):
            passes.append(count)
            return replace(e_step(self, parameters), counts=np.array([80 - count, count]))

        return step

    monkeypatch.setattr(em.Problem, "e_step", with_count(least))
    assert information.standard_errors(problem, parameters, packed).notes == ()
    monkeypatch.setattr(em.Problem, "e_step", with_count(np.nextafter(least, 0)))
    assert len(empty_notes(problem, parameters)) == 1
    assert len(passes) == 2


def test_under_a_prior_no_pass_is_spent_on_the_counts(monkeypatch):
    X, labels = separated(2, 1, 80)
    problem, parameters, packed = fitted(X, labels, prior=a_prior(X, 2))
    monkeypatch.delattr(em.Problem, "e_step")
    assert information.standard_errors(problem, parameters, packed).notes == ()


def test_under_a_prior_reg_covar_holds_up_nothing():
    """It is not used there: variances far below it are determined."""
    X, labels = separated(2, 2, 80)
    problem, parameters, packed = fitted(X, labels, prior=a_prior(X, 2))
    plain = information.standard_errors(problem, parameters, packed)
    large = information.standard_errors(replace(problem, reg_covar=1e3), parameters, packed)
    np.testing.assert_array_equal(large.covariance_matrix, plain.covariance_matrix)
    # Nor does a prior on data of tiny variances need it.
    tiny = 1e-3 * X
    problem, parameters, packed = fitted(tiny, labels, prior=replace(a_prior(tiny, 2), scale=1e-6 * np.eye(2)))
    assert information.standard_errors(problem, parameters, packed).notes == ()


@pytest.mark.parametrize("method", ["information", "sandwich"])
@pytest.mark.parametrize(("share", "touched"), [(0.9e-3, False), (1.1e-3, True)])
def test_a_variance_is_lost_where_a_thousandth_of_its_error_lies_in_what_reg_covar_holds_up(share, touched, method):
    """Axes at 45° with variances l and r l, r held up: (1 + r)⁻² of the error of each feature's variance is the first axis'."""
    r = 1 / np.sqrt(1 - share) - 1
    reg = 0.9 * r / (1 - 0.9 * r)
    # The data have the variances 1 and what makes r of the sum with reg_covar.
    own = np.array([1.0, r * (1 + reg) - reg])
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    Z = np.random.default_rng(8).standard_normal((50, 2))
    Z -= Z.mean(axis=0)
    Z @= np.linalg.inv(np.linalg.cholesky(Z.T @ Z / 50)).T
    X = (Z * np.sqrt(own)) @ turn.T
    S = turn @ np.diag(own + reg) @ turn.T
    parameters = MixtureParameters(np.ones(1), np.zeros((1, 2)), factors_from_covariances(S[None]))
    problem = em.Problem(X, structure("full"), reg_covar=reg)
    if touched:
        with pytest.warns(
            information.InformationWarning, match="^reg_covar makes up more than half of a variance of component 0"
        ):
            errors = information.standard_errors(problem, parameters, S[None], method)
    else:
        errors = information.standard_errors(problem, parameters, S[None], method)
    # By symmetry the covariance has nothing of the turn from one axis to the other.
    assert np.isinf(errors.covariances[0]).tolist() == [[touched, False], [False, touched]]
    assert np.all(np.isinf(errors.correlations) == touched)
    assert np.all(np.isinf(errors.standard_deviations) == touched)
    assert np.all(np.isfinite(errors.means))
    assert errors.undetermined == ((0,) if touched else ())


def test_a_root_of_the_inverse_leaves_out_what_is_below_the_threshold():
    A = np.random.default_rng(5).standard_normal((4, 6))
    M = A @ A.T
    root, null = information._inverse_root(M)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(M), rtol=1e-9, atol=1e-12)
    assert null.shape == (4, 0)
    for value, n_lost in ((information.SINGULAR, 1), (0.5 * information.SINGULAR, 1), (0.0, 1), (-1.0, 1)):
        root, null = information._inverse_root(np.diag([4.0, value, 1.0]))
        assert null.shape == (3, n_lost)
        np.testing.assert_allclose(np.abs(null[:, 0]), [0, 1, 0], atol=1e-12)
        np.testing.assert_allclose(root @ root.T, np.diag([0.25, 0, 1]), atol=1e-12)
    root, null = information._inverse_root(np.diag([4.0, 2 * information.SINGULAR, 1.0]))
    assert null.shape == (3, 0)
    np.testing.assert_allclose(np.diagonal(root @ root.T), [0.25, 0.5 / information.SINGULAR, 1], rtol=1e-9)


@pytest.mark.parametrize("kind", ["full", "tied", "spherical"])
@pytest.mark.parametrize("why", ["lost", "held"])
def test_each_entry_that_is_not_determined_names_its_component(kind, why):
    own = ScoreCoordinates(structure(kind), unit_normals([0.3, 0.3, 0.4]))
    none = np.zeros(own.size + 1, dtype=bool)
    # All three weights, then the coordinates' order.
    owners = [[0], [1], [2], *([k] for k in (0, 0, 1, 1, 2, 2))]
    owners += {
        "full": [[k] for k in range(3) for _ in range(3)],
        "tied": [[0, 1, 2]] * 3,
        "spherical": [[0], [1], [2]],
    }[kind]
    assert len(owners) == len(none)
    for entry, expected in enumerate(owners):
        one = none.copy()
        one[entry] = True
        undetermined, notes = information._report(
            own, one if why == "lost" else none, one if why == "held" else none, 0.0
        )
        assert undetermined == tuple(expected)
        (note,) = notes
        plural = "components 0, 1, 2" if len(expected) > 1 else f"component {expected[0]}"
        assert f" of {plural}: the data do" in note
        assert note.startswith("the observed information is singular" if why == "lost" else "reg_covar makes up")
    assert information._report(own, none, none, 0.0) == ((), ())


def test_half_a_standard_error_from_the_optimum_is_not_worth_a_note():
    own = ScoreCoordinates(structure("full"), unit_normals([0.6, 0.4]))
    none = np.zeros(own.size + 1, dtype=bool)
    assert information._report(own, none, none, 0.5)[1] == ()
    (note,) = information._report(own, none, none, float(np.nextafter(0.5, 1)))[1]
    assert note.startswith("the parameters may lie up to 0.5 of their standard errors from the optimum")


def test_what_is_lost_has_an_infinite_variance_and_no_covariances():
    free = FreeEntries(structure("full"), 2, 2)
    n = 2 + 4 + 6
    A = np.random.default_rng(6).standard_normal((n, n + 5))
    scaled, scale = A @ A.T, np.linspace(0.5, 2.0, n)
    mixture = random_mixture(np.random.default_rng(7), 2, 2)
    lost = np.zeros(n, dtype=bool)
    # A weight, a mean, and the second variance of the last component.
    lost[[0, 3, 11]] = True
    errors = information._collect(free, scaled, scale, lost, mixture.packed, "information", (0, 1), ())
    expected = scale[:, None] * scaled * scale
    expected[lost] = expected[:, lost] = 0
    expected[lost, lost] = np.inf
    expected = np.delete(np.delete(expected, 1, axis=0), 1, axis=1)
    np.testing.assert_allclose(errors.covariance_matrix, expected, rtol=ROUNDING)
    se = np.where(lost, np.inf, np.sqrt(np.diagonal(scaled)) * scale)
    np.testing.assert_allclose(errors.weights, se[:2], rtol=ROUNDING)
    np.testing.assert_allclose(errors.means, se[2:6].reshape(2, 2), rtol=ROUNDING)
    np.testing.assert_allclose(errors.covariances[1], [[se[9], se[10]], [se[10], np.inf]], rtol=ROUNDING)
    # A correlation needs both variances.
    assert np.isinf(errors.correlations).tolist() == [[False], [True]]
    assert np.isinf(errors.standard_deviations).tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("n_features", [1, 2, 3])
def test_deviations_and_correlations_have_their_errors_by_the_delta_method(kind, n_features):
    """Of any covariance matrix of the estimates, here a random one: slopes by differences."""
    K, D = 2, n_features
    free, mixture = FreeEntries(structure(kind), K, D), random_mixture(np.random.default_rng(9), K, D, kind)
    before, n = K + K * D, K + K * D + free.owners * free.size
    A = np.random.default_rng(10).standard_normal((n, n + 3))
    scaled, scale = A @ A.T / 100, np.linspace(0.5, 2.0, n)
    none = np.zeros(n, dtype=bool)
    # Correlations need the scale of an entry to be that of its deviations.
    sd = np.sqrt(np.diagonal(mixture.covariances, axis1=1, axis2=2))
    for owner in range(free.owners):
        part = slice(before + owner * free.size, before + (owner + 1) * free.size)
        scale[part] = sd[owner, free.rows] * sd[owner, free.cols]
    errors = information._collect(free, scaled, scale, none, mixture.packed, "sandwich", (), ("a note",))
    assert (errors.method, errors.covariance_type, errors.notes) == ("sandwich", kind, ("a note",))
    entries, matrix = free.take(mixture.packed), (scaled * scale * scale[:, None])[before:, before:]

    def by_differences(derived):
        h = 1e-6
        slopes = [
            (derived(free.put(entries + e)) - derived(free.put(entries - e))) / (2 * h)
            for e in h * np.eye(len(entries))
        ]
        return np.sqrt(np.einsum("a...,ab,b...->...", slopes, matrix, slopes))

    # Central differences: h² of truncation and 1e-16 / h of rounding, against entries of a tenth to ten.
    close = {"rtol": 1e-6, "atol": 1e-9}
    deviations = by_differences(lambda packed: free.drop_shared(free.deviations(packed)))
    np.testing.assert_allclose(errors.standard_deviations, deviations, **close)
    np.testing.assert_allclose(free.take(errors.covariances), np.sqrt(np.diagonal(matrix)), rtol=ROUNDING)
    if D == 1 or kind in ("diag", "spherical"):
        assert errors.correlations is None
    else:
        correlations = by_differences(free.correlations)
        np.testing.assert_allclose(errors.correlations, correlations if kind == "full" else correlations[0], **close)


def test_variances_that_rounding_made_negative_have_an_error_of_zero():
    free, mixture = FreeEntries(structure("full"), 1, 2), random_mixture(np.random.default_rng(11), 1, 2)
    scaled = np.diag([0.0, -1e-17, 1.0, -1e-17, -1e-17, -1e-17])
    errors = information._collect(
        free, scaled, np.ones(6), np.zeros(6, dtype=bool), mixture.packed, "information", (), ()
    )
    assert errors.means.tolist() == [[0, 1]]
    assert not errors.covariances.any()
    assert not errors.correlations.any()
