"""Chains of NUTS on the workers of a cluster: the rows travel to each worker once, and the draws come back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from threadpoolctl import threadpool_limits

from bayesgmm.core.parameters import FloatArray
from bayesgmm.distributed import OnWorkers
from bayesgmm.exceptions import SamplingError
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.layout import ModelInputs
from bayesgmm.inference.nuts import (
    POLL_SECONDS,
    Chains,
    assemble,
    chain_seeds,
    display,
    is_finished,
    read_trace,
    start_chain,
    stopped,
)

if TYPE_CHECKING:
    from distributed import Client

REPORT_SECONDS, LISTEN_SECONDS = 0.2, 0.5
"""Between two reports of a chain, and between two looks whether it is to stop."""

Drawn = tuple[FloatArray, dict[str, Any], int]
"""Draws (S, P), their statistics, and the number of steps."""


@dataclass(frozen=True, eq=False)
class Chain:
    """One chain, as a worker gets it; see :func:`bayesgmm.inference.nuts.run_nuts`."""

    start: FloatArray
    center: FloatArray
    factor: FloatArray
    draws: int
    tune: int
    seed: int
    number: int
    run: str
    """Name of the run: what chains report under, and what is set to stop them."""
    told: bool
    """Whether to report."""


class ChainsOnWorkers:
    """The sampler of a posterior whose chains run on the workers of a cluster.

    Parameters
    ----------
    client : distributed.Client
    posterior : CompiledPosterior
    """

    def __init__(self, client: Client, posterior: CompiledPosterior) -> None:
        self._workers = OnWorkers(client, (posterior.inputs, posterior.covariance_type))

    def run(
        self,
        starts: FloatArray,
        whitenings: Sequence[tuple[FloatArray, FloatArray]],
        draws: int,
        tune: int,
        seed: int,
        progressbar: bool = False,
    ) -> Chains:
        """Run one chain from each start: :func:`bayesgmm.inference.nuts.run_nuts`, the same draws.

        A chain whose worker is lost begins again on another, with the same draws.

        Raises
        ------
        SamplingInterrupted, SamplingError
            As there.
        ClusterError
            If the cluster cannot do it.
        """
        from distributed import Event

        client, run, n_chains = self._workers.client, f"bayesgmm-chains-{uuid4().hex}", len(starts)
        items = [
            Chain(starts[c], *whitenings[c], draws, tune, own, c, run, progressbar)
            for c, own in enumerate(chain_seeds(seed, n_chains))
        ]
        found: dict[int, Drawn] = {}
        states: list[Any] = [None] * n_chains
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            Event(run, client=client).set()

        with display(progressbar, n_chains, draws + tune) as update:

            def hear(event: tuple[float, dict[str, Any]]) -> None:
                said = event[1]
                states[said["chain"]] = SimpleNamespace(**said)
                update(states, [c in found for c in range(n_chains)])

            if progressbar:
                client.subscribe_topic(run, hear)
            try:
                for c, drawn in self._workers.evaluated(_sampled, items, "bayesgmm-chain", interrupt):
                    if isinstance(drawn, SamplingError):
                        raise drawn
                    found[c] = drawn
                    update(states, [c in found for c in range(n_chains)])
            except KeyboardInterrupt:
                interrupted = True
            finally:
                if progressbar:
                    client.unsubscribe_topic(run)
        complete = sorted(found.items())
        collected = [(theta, {**stats, "chain": c}) for c, (theta, stats, _) in complete]
        return replace(assemble(collected, draws, interrupted), n_gradients=sum(each[2] for _, each in complete))


def _sampled(common: tuple[ModelInputs, str], chain: Chain) -> Drawn | SamplingError:
    """Draws of a chain, on the worker; those so far where it was told to stop. An error comes back as a value."""
    from distributed import Event, get_worker

    worker, stop, said, listened = get_worker(), Event(chain.run), 0.0, time.monotonic()

    def report(state: Any) -> None:
        nonlocal said
        if chain.told and time.monotonic() - said > REPORT_SECONDS:
            said, own = time.monotonic(), state[0]
            here = {"tuning": own.tuning, "divergences": own.divergences, "finished_draws": own.finished_draws}
            worker.log_event(chain.run, here | {"chain": chain.number})

    # The products here are small: BLAS threads would only spin beside the chains'.
    with threadpool_limits(limits=1, user_api="blas"):
        sampler = start_chain(
            CompiledPosterior(*common),
            chain.start,
            chain.center,
            chain.factor,
            chain.draws,
            chain.tune,
            chain.seed,
            report,
        )
        try:
            while not is_finished(sampler):
                time.sleep(POLL_SECONDS)
                if time.monotonic() - listened > LISTEN_SECONDS:
                    listened = time.monotonic()
                    if stop.is_set():
                        return _copied(read_trace(sampler.abort()))
            return _copied(read_trace(sampler.wait()))
        except RuntimeError as error:
            sampler.cancel()
            return stopped(error)


def _copied(drawn: Drawn) -> Drawn:
    """Draws in memory of their own."""
    return drawn[0] * 1.0, drawn[1], drawn[2]
