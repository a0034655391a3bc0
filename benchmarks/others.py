"""EM, gradient and NUTS beside NumPyro, pomegranate, R's mclust and Stan, each where it is on the machine.

The same rows, the same starting parameters and numbers of threads. EM: time per iteration, the difference of two fits
over the difference of their iterations; after the longer one both sides must give the data the same likelihood.
Gradient: the marginalised mixture in NumPyro and Stan with the priors of ``benchmarks.peer``; at the parameters that
the data were simulated from, on one thread. NUTS: smallest bulk ESS per second, four chains on all cores, started at
those parameters. Peers compile beforehand, and the remarks say for how long; ours is the whole fit, EM and warm-up
included. A peer draws less, and its figure is carried on to our number of draws in its favour.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks import foreign
from benchmarks.em import SHORT, _fit, _per_iteration, _start
from benchmarks.foreign import MCLUST, NUMPYRO, POMEGRANATE, STAN, Missing, Program
from benchmarks.measure import (
    Row,
    Section,
    all_threads,
    duration,
    interleaved,
    limited_threads,
    seconds_per_call,
    simulate,
    size,
    speed_row,
)
from benchmarks.sampling import CHAINS, MIN_DISTANCE, SPREAD, _ours, _worst_distance, smallest_bulk_ess

EM_CASES = ((10_000, 2, 3, 404), (100_000, 8, 4, 34), (100_000, 20, 5, 24))
GRADIENT_CASES = ((1_000, 2, 3), (10_000, 8, 4), (100_000, 2, 3))
SAMPLING_CASE = (2_000, 4, 4)
PEER_TUNE, PEER_DRAWS = 300, 300
EM_AGREEMENT, GRADIENT_AGREEMENT = 1e-4, 1e-9


def _em(program: Program, case: tuple[int, int, int, int], repetitions: int) -> tuple[Row, str]:
    from bayesgmm import GaussianMixture

    n_rows, n_features, K, long = case
    X, _ = simulate(n_rows, n_features, K, SPREAD)
    start = _start(X, K, "full", seed=1)
    arrays = {
        "X": X,
        "weights": start["weights_init"],
        "means": start["means_init"],
        "covariances": np.linalg.inv(start["precisions_init"]),
    }
    with (
        limited_threads(1),
        foreign.session(program, "em", 1, (n_rows, n_features, K, SHORT, long), **arrays) as peer,
    ):
        ours = _fit(GaussianMixture(K, max_iter=long, **start), X).score(X) * n_rows
        theirs = peer.ready["log_likelihood"]
        same = math.isclose(ours, theirs, rel_tol=EM_AGREEMENT)
        times = interleaved(
            lambda: _per_iteration(GaussianMixture, X, K, start, long), lambda: peer.measure()["seconds"], repetitions
        )
    note = f"likelihoods differ by {abs(ours - theirs) / abs(theirs):.0e}" + ("" if same else " NOT THE SAME FIT")
    row = speed_row(
        f"EM iteration {size(n_rows, n_features, K)}",
        "1 | 1",
        *times,
        None,
        note=note,
        valid=same,
        against=program.name,
    )
    return row, peer.ready["ready"]


def _gradient(program: Program, case: tuple[int, int, int], repetitions: int, block: float) -> tuple[Row, str]:
    from bayesgmm import ConjugatePrior
    from bayesgmm.core.kernel import log_density
    from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
    from bayesgmm.inference.compiled import CompiledPosterior

    n_rows, n_features, K = case
    X, truth = simulate(n_rows, n_features, K, 2.5)
    factors = factors_from_covariances(truth.covariances)
    posterior = CompiledPosterior.from_data(X, K, "full", ConjugatePrior().resolve(X, K))
    theta = posterior.unconstrain(truth.weights, truth.means, factors)
    arrays = {"X": X, "weights": truth.weights, "means": truth.means, "covariances": truth.covariances}
    with (
        limited_threads(1),
        foreign.session(program, "gradient", 1, (n_rows, n_features, K, 1, 0, 0), **arrays) as peer,
    ):
        ours = float(log_density(X, MixtureParameters(truth.weights, truth.means, factors)).sum())
        theirs = peer.ready["log_likelihood"]
        times = interleaved(
            seconds_per_call(lambda: posterior.logp_and_grad(theta), block),
            lambda: peer.measure()["seconds"],
            repetitions,
        )
    same, note = True, "likelihood not told by the peer"
    if theirs is not None:
        same = math.isclose(ours, theirs, rel_tol=GRADIENT_AGREEMENT)
        note = f"likelihoods differ by {abs(ours - theirs) / abs(theirs):.0e}" + ("" if same else " NOT THE SAME")
    row = speed_row(f"gradient {size(*case)}", "1 | 1", *times, None, note=note, valid=same, against=program.name)
    return row, f"{peer.ready['ready']}, compiled in {duration(peer.ready['prepared'])}"


def _sampling(program: Program, case: tuple[int, int, int], draws: int, tune: int, kept: int) -> tuple[Row, str]:
    n_rows, n_features, K = case
    X, truth = simulate(n_rows, n_features, K, SPREAD, min_distance=MIN_DISTANCE)
    arrays = {"X": X, "weights": truth.weights, "means": truth.means, "covariances": truth.covariances}
    threads = all_threads()
    _ours(X, truth, draws=50, seed=0)
    with foreign.session(program, "sampling", threads, (n_rows, n_features, K, CHAINS, tune, kept), **arrays) as peer:
        ours, told = _ours(X, truth, draws, seed=1), peer.measure()
        shape = (CHAINS, kept, K)
        weights = peer.array("draws_weights", *shape)
        means = peer.array("draws_means", *shape, n_features)
        covariances = peer.array("draws_covariances", *shape, n_features, n_features)
    ess = smallest_bulk_ess(weights, means, covariances, truth)
    # Its warm-up is counted once, at the price of as many draws; more draws are longer and have more effective ones in proportion.
    more, seconds = draws / kept, told["seconds"]
    carried = seconds * (tune + more * kept) / (tune + kept)
    rate = max(ess / seconds, more * ess / carried)
    distance = _worst_distance(ours.means, means.mean(axis=(0, 1)))
    same = distance < 0.2
    note = f"posterior means at most {distance:.2g} sd apart" + ("" if same else " NOT THE SAME MODE")
    row = Row(
        f"NUTS {size(*case)}",
        f"{CHAINS} chains on {threads} cores each",
        f"{ours.rate:.4g} ESS/s",
        f"{rate:.3g} ESS/s",
        f"{ours.rate / rate:.3g}×",
        "–",
        None,
        note,
        {"ratio": ours.rate / rate, "ours": [ours.seconds, ours.ess], "peer": [seconds, ess], "peer_carried_on": rate},
        program.name,
    )
    version = f"{peer.ready['ready']}, compiled in {duration(peer.ready['prepared'])}"
    told_more = (
        f"{CHAINS} × {kept} draws after {tune}, ESS {ess:.0f} in {duration(seconds)}, {told['divergences']} divergent"
    )
    return row, f"{version}; {told_more}; ours ESS {ours.ess:.0f} in {duration(ours.seconds)}"


def run(quick: bool) -> Section:
    """Measure every case beside every peer that there is."""
    em = [(2_000, 2, 3, 24)] if quick else EM_CASES
    gradient = GRADIENT_CASES[:1] if quick else GRADIENT_CASES
    sampling, draws, tune, kept = (
        ((500, 2, 2), 200, 100, 100) if quick else (SAMPLING_CASE, 1000, PEER_TUNE, PEER_DRAWS)
    )
    repetitions, block = (1, 0.02) if quick else (3, 0.2)
    tasks: list[tuple[Program, Callable[[], tuple[Row, str]]]] = [
        *(
            (program, lambda p=program, c=case: _em(p, c, repetitions))
            for program in (MCLUST, POMEGRANATE)
            for case in em
        ),
        *(
            (program, lambda p=program, c=case: _gradient(p, c, repetitions, block))
            for program in (NUMPYRO, STAN)
            for case in gradient
        ),
        *((program, lambda p=program: _sampling(p, sampling, draws, tune, kept)) for program in (NUMPYRO, STAN)),
    ]
    rows: list[Row] = []
    remarks: dict[str, None] = {}
    with warnings.catch_warnings():
        # An EM that is stopped early warns of it.
        warnings.simplefilter("ignore")
        for program, task in tasks:
            try:
                row, remark = task()
            except Missing as missing:
                remarks[str(missing)] = None
                continue
            except RuntimeError as error:
                remarks[f"{program.name}: failed: {error}"] = None
                continue
            rows.append(row)
            remarks[f"{row.case}: {remark}"] = None
    return Section(
        "EM, gradient and NUTS beside other programs",
        "each row's own peer, in a process of its own that times itself; its compilation apart",
        tuple(rows),
        tuple(remarks),
    )
