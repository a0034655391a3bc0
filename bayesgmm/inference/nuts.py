"""The No-U-Turn sampler of nutpie on a compiled posterior, in coordinates that make each chain's mode round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.threads import available_threads
from bayesgmm.exceptions import SamplingError, SamplingInterrupted
from bayesgmm.inference.density import density_function, position_function

if TYPE_CHECKING:
    from bayesgmm.inference.laplace import LogPosterior

POLL_SECONDS = 0.01
STATISTICS = {
    "logp": "lp",
    "energy": "energy",
    "diverging": "diverging",
    "depth": "tree_depth",
    "n_steps": "n_steps",
    "step_size": "step_size",
    "mean_tree_accept": "acceptance_rate",
}
"""nutpie's names of the statistics that are kept, and ArviZ's."""


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of a sampler in unconstrained coordinates.

    Parameters
    ----------
    theta : ndarray of shape (chains, draws, P)
    stats : dict of str to ndarray of shape (chains, draws)
    interrupted : bool
        Whether the user stopped it; the chains are then cut to the same length, and those hardly begun left out.
    n_gradients : int
        Evaluations of the density with its gradient, warm-up included, in all chains.
    """

    theta: FloatArray
    stats: dict[str, FloatArray]
    interrupted: bool = False
    n_gradients: int = 0


def run_nuts(
    posterior: LogPosterior,
    starts: FloatArray,
    whitenings: Sequence[tuple[FloatArray, FloatArray]],
    draws: int,
    tune: int,
    seed: int,
    cores: int | None = None,
    progressbar: bool = False,
) -> Chains:
    """Run one chain from each start, as many at a time as there are cores.

    Each chain is a sampler of its own in coordinates y with θ = center + L y. Its result depends on its start, its whitening
    and the seed alone, so that neither the number of cores nor the load of the machine shows in the draws.

    Parameters
    ----------
    posterior : LogPosterior
    starts : ndarray of shape (chains, P)
        Unconstrained starting points with a finite density.
    whitenings : sequence of (center (P,), factor (P, P))
        Lower triangular L with L Lᵀ about the covariance of the posterior, for each chain.
    draws, tune : int
        Draws that are kept and warm-up draws, per chain.
    seed : int
    cores : int, optional
    progressbar : bool, default False

    Returns
    -------
    Chains

    Raises
    ------
    SamplingInterrupted
        If the user stopped it before any chain had draws to keep.
    SamplingError
        If a chain could not start or go on.
    """
    n_chains = len(starts)
    slots = min(n_chains, cores or available_threads())
    seeds = chain_seeds(seed, n_chains)
    samplers: list[Any] = [None] * n_chains
    progress: list[Any] = [None] * n_chains
    interrupted = False

    def begin(c: int) -> None:
        center, factor = whitenings[c]

        def report(state: Any) -> None:
            progress[c] = state[0]

        samplers[c] = start_chain(posterior, starts[c], center, factor, draws, tune, seeds[c], report)

    try:
        with display(progressbar, n_chains, draws + tune) as update:
            waiting = list(range(n_chains))
            running: list[int] = []
            while waiting or running:
                while waiting and len(running) < slots:
                    running.append(waiting[0])
                    begin(waiting.pop(0))
                time.sleep(POLL_SECONDS)
                running = [c for c in running if not is_finished(samplers[c])]
                update(progress, [c not in running and c not in waiting for c in range(n_chains)])
    except KeyboardInterrupt:
        interrupted = True
    except BaseException as error:
        for sampler in filter(None, samplers):
            sampler.cancel()
        if isinstance(error, RuntimeError):
            raise stopped(error) from None
        raise
    collected, n_gradients = [], 0
    for c, sampler in enumerate(samplers):
        if sampler is not None:
            trace = sampler.abort() if interrupted else sampler.wait()
            theta, stats, steps = read_trace(trace)
            collected.append((theta * 1.0, {**stats, "chain": c}))
            n_gradients += steps
    return replace(assemble(collected, draws, interrupted), n_gradients=n_gradients)


def chain_seeds(seed: int, n_chains: int) -> list[int]:
    """A seed for each chain."""
    return np.random.SeedSequence(seed).generate_state(n_chains).tolist()


def stopped(error: RuntimeError) -> SamplingError:
    """What the sampler could not do, in words."""
    reason = str(error).partition("\n")[0]
    return SamplingError(f"the sampler stopped: {reason}; use method='laplace', or a stronger prior")


def is_finished(sampler: Any) -> bool:
    """Whether a chain has all its draws."""
    try:
        return bool(sampler.is_finished)
    except TimeoutError:
        # The sampler was too busy to answer.
        return False


def start_chain(
    posterior: LogPosterior,
    start: FloatArray,
    center: FloatArray,
    factor: FloatArray,
    draws: int,
    tune: int,
    seed: int,
    report: Callable[[Any], None],
) -> Any:
    """Begin a chain, which goes on by itself; ``report`` is called with its state now and then."""
    import nutpie
    from scipy.linalg import solve_triangular

    begin = solve_triangular(factor, start - center, lower=True)
    model = (_c_model if hasattr(posterior, "whitened") else _python_model)(posterior, center, factor, begin)
    return nutpie.sample(
        model,
        draws=draws,
        tune=tune,
        chains=1,
        cores=1,
        seed=seed,
        save_warmup=False,
        progress_bar=False,
        progress_callback=report,
        progress_rate=100,
        blocking=False,
        return_raw_trace=True,
    )


def _c_model(posterior: Any, center: FloatArray, factor: FloatArray, begin: FloatArray) -> Any:
    """The whitened density as C functions: chains run beside each other without the interpreter lock."""
    from nutpie.compile_pymc import CompiledPyMCModel

    packed, P = posterior.whitened(center, factor), len(center)
    return CompiledPyMCModel(
        dims={},
        compiled_logp_func=density_function(),
        compiled_expand_func=position_function(),
        initial_point_func=lambda _: begin,
        shared_data={"arrays": packed},
        shared_var_keys={},
        user_data=packed.addresses,
        n_expanded=P,
        shape_info=(["theta"], [slice(0, P)], [(P,)]),
        logp_func=None,
        expand_func=None,
        _n_dim=P,
        _shapes={"theta": (P,)},
        _coords={},
    )


def _python_model(posterior: LogPosterior, center: FloatArray, factor: FloatArray, begin: FloatArray) -> Any:
    """Any other density, called in Python."""
    from nutpie.compiled_pyfunc import from_pyfunc

    transposed, P = np.ascontiguousarray(factor.T), len(center)

    def log_density(y: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = posterior.logp_and_grad(center + factor @ y)
        return value, transposed @ gradient

    return from_pyfunc(
        P,
        lambda: log_density,
        lambda *_: lambda y: {"theta": center + factor @ y},
        [np.dtype("float64")],
        [(P,)],
        ["theta"],
        make_initial_point_fn=lambda _: begin,
    )


def read_trace(trace: Any) -> tuple[FloatArray, dict[str, FloatArray], int]:
    """Draws (S, P) after warm-up, their statistics (S,), and the number of steps from the start."""
    draw_batches, stat_batches = trace.get_arrow_trace()
    if not draw_batches or draw_batches[0].num_rows == 0:
        return np.empty((0, 0)), {}, 0
    draw, stat = draw_batches[0], stat_batches[0]
    kept = ~np.asarray(stat.column("tuning").to_numpy(), dtype=bool)
    column = draw.column("theta")
    import pyarrow

    values = pyarrow.array(column).flatten().to_numpy(zero_copy_only=False).reshape(draw.num_rows, -1)
    stats = {
        ours: np.asarray(stat.column(theirs).to_numpy())[kept]
        for theirs, ours in STATISTICS.items()
        if theirs in stat.column_names
    }
    return values[kept], stats, int(stat.column("n_steps").to_numpy().sum())


def assemble(collected: list[tuple[FloatArray, dict[str, Any]]], draws: int, interrupted: bool) -> Chains:
    """Chains put together; those of an interrupted run are cut to one length, and those hardly begun left out.

    Raises
    ------
    SamplingInterrupted
        If no chain has draws to keep.
    """
    lengths = [len(theta) for theta, _ in collected]
    shortest_kept = 1 if not interrupted else max(4, max(lengths, default=0) // 2)
    kept = [(theta, stats) for theta, stats in collected if len(theta) >= shortest_kept]
    if not kept:
        raise SamplingInterrupted("stopped before the warm-up had ended: there are no draws to keep")
    length = min(len(theta) for theta, _ in kept)
    names = [name for name in STATISTICS.values() if name in kept[0][1]]
    return Chains(
        np.stack([theta[:length] for theta, _ in kept]),
        {name: np.stack([stats[name][:length] for _, stats in kept]) for name in names},
        interrupted,
    )


@contextmanager
def display(shown: bool, n_chains: int, total: int) -> Iterator[Callable[[list[Any], list[bool]], None]]:
    """A progress bar per chain on stderr, where one is wanted."""
    if not shown:
        yield lambda states, finished: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("chain {task.fields[chain]}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = [bars.add_task("", total=total, chain=c, note="waiting") for c in range(n_chains)]

        def update(states: list[Any], finished: list[bool]) -> None:
            for task, state, done in zip(tasks, states, finished, strict=True):
                if done:
                    bars.update(task, completed=total, note="done")
                elif state is not None:
                    divergent = f", {state.divergences} divergent" if state.divergences else ""
                    note = ("warm-up" if state.tuning else "sampling") + divergent
                    bars.update(task, completed=state.finished_draws, note=note)

        yield update
