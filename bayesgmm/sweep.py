"""One fit after another over the number of components and the covariance structure, with what each fit's criteria come to.

EM's fits come first, several models at a time where a pass over the data is short; the starts of one K serve all structures. Then
come the posteriors, one after the other. On a cluster each worker takes EM and posterior of a model at a time. Each finished model is
kept, in memory and (if there is one) in a folder, before the next.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm import __version__, criteria
from bayesgmm.core import blocked, em, kernel, seeding
from bayesgmm.core.blocked import Survey
from bayesgmm.core.blocks import RowBlocks
from bayesgmm.core.covariance import STRUCTURES, structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.distributed import OnWorkers
from bayesgmm.estimators.gaussian_mixture import GaussianMixture
from bayesgmm.exceptions import DataError, DataWarning, warn_user
from bayesgmm.io import atomic_path, write_text
from bayesgmm.persistence import data_hash

if TYPE_CHECKING:
    from distributed import Client

Key = tuple[str, int]
"""Covariance structure and number of components: ``("full", 2)``."""

MANIFEST, MODELS, ROW, POINTWISE = "selection.json", "models", "row.json", "pointwise.npz"
OUTPUTS = (MANIFEST, "selection.csv", "selection.png", "report.html", "WARNING.txt")
FORMAT, FORMAT_VERSION = "bayesgmm selection", 1

SHORT_PASS, LONG_PASS = 5e5, 3e7
"""Costs of a pass (operations) between which EM's models are fitted several at a time, one thread each."""

REHEARSAL_ROWS = 2500
"""Rows that EM's starts are made from and first climbed on, where there are at least twice as many."""

STARTS = 2
"""Starts for each one asked for: those that will not do are left before they have cost much. Ten alone miss Old Faithful's K = 3 by 9.5 in
BIC two times in five."""

REFITS = 10
"""Rows at most that LOO refits a posterior without, where their importance weights are not reliable."""

WORTH_A_REFIT = 5.0
"""Nats behind the most probable model within which one is fitted anew under a varied prior that its draws do not reach. The others have
less than 1 % of the probability: what their draws tell of their evidence will do."""

EM_TOL = 1e-7
"""Change of the mean log-likelihood per row at which EM ends, unless the user has another."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be fitted, checked at the door.

    Parameters
    ----------
    X : array-like of shape (N, D)
        As it was given, with its column names.
    table : ndarray of shape (N, D)
    sample_weight : ndarray of shape (N,) or None
    feature_names : ndarray of str or None
    labels : array-like of shape (N,) or None
    keys : tuple of (str, int)
    method : {"em", "laplace", "nuts"}
    criteria : tuple of str
    prior : ConjugatePrior, HierarchicalPrior or SeparationPrior
    entropy : int
        Every model's random numbers come from this and the model's own name, whatever else is fitted.
    em_options, posterior_options : mapping
        Arguments of the estimators.
    n_jobs : int
        EM's models at a time.
    log_prior_of_components : mapping of int to float
        log p(K), of every K of the sweep.
    sensitivity : bool
        Whether evidences are looked at under varied priors too.
    loo_refits : int
        Rows of a model that LOO leaves out by sampling again at most.
    blocks : RowBlocks, optional
        All rows, where they do not stand in memory; ``table`` and ``sample_weight`` are then a sample of them.
    survey : Survey, optional
        Of the blocks.
    """

    X: Any
    table: FloatArray
    sample_weight: FloatArray | None
    feature_names: np.ndarray | None
    labels: ArrayLike | None
    keys: tuple[Key, ...]
    method: str
    criteria: tuple[str, ...]
    prior: Any
    entropy: int
    em_options: Mapping[str, Any]
    posterior_options: Mapping[str, Any]
    n_jobs: int
    log_prior_of_components: Mapping[int, float] = field(default_factory=dict)
    sensitivity: bool = True
    loo_refits: int = REFITS
    blocks: RowBlocks | None = None
    survey: Survey | None = None

    @property
    def n_rows(self) -> int:
        """N."""
        return len(self.table) if self.survey is None else self.survey.moments.n_rows

    @property
    def total_weight(self) -> float:
        """Number of rows, or the sum of their weights."""
        if self.survey is not None:
            return self.survey.moments.weight
        return float(len(self.table)) if self.sample_weight is None else float(self.sample_weight.sum())

    def seed(self, key: Key, part: int) -> np.random.SeedSequence:
        """Random numbers of one part of a model's work."""
        return np.random.SeedSequence([self.entropy, key[1], list(STRUCTURES).index(key[0]), part])

    def integer_seed(self, key: Key, part: int) -> int:
        """The same as an int, for estimators that keep it among their settings."""
        return int(self.seed(key, part).generate_state(1)[0] >> 1)

    def _moments_hash(self) -> str:
        """What stands for the hash of rows in blocks: that of their moments."""
        assert self.survey is not None
        found = self.survey.moments
        digest = hashlib.sha256(repr((found.n_rows, found.weight)).encode())
        for part in (found.mean, found.scatter, found.low, found.high):
            digest.update(part.tobytes())
        return "moments:" + digest.hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        """What two sweeps must share to go into one table: everything but the grid and the criteria."""
        return {
            "data_hash": data_hash(self.table, self.sample_weight) if self.survey is None else self._moments_hash(),
            "labels_hash": None
            if self.labels is None
            else hashlib.sha256(repr(list(np.asarray(self.labels, dtype=object))).encode()).hexdigest(),
            "settings": _plain(
                {
                    "method": self.method,
                    "prior": None if self.method == "em" else describe_prior(self.prior),
                    "em_options": dict(self.em_options),
                    "posterior_options": dict(self.posterior_options),
                }
            ),
        }


@dataclass(eq=False)
class Model:
    """One model of the sweep: its numbers by the table's column, its fits, and what is to be said of it."""

    key: Key
    values: dict[str, float] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    flags: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    em: Any = None
    posterior: Any = None
    elpd: Any = None
    row_weights: FloatArray | None = None
    """Of the rows of ``elpd``; None where all are 1."""
    varied: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By variation of the prior: ``change`` of the log evidence, its ``standard_error``, ``pareto_k``, and whether it is ``refitted``."""

    @property
    def name(self) -> str:
        """``full-2``: the model's folder, and its name in :func:`arviz.compare`."""
        return f"{self.key[0]}-{self.key[1]}"

    def flag(self, flag: str) -> None:
        """Note a flag once."""
        if flag not in self.flags:
            self.flags.append(flag)


def describe_prior(prior: Any) -> Any:
    """A prior in words of JSON: its class and fields."""
    return {"class": type(prior).__name__} | _plain({k: v for k, v in vars(prior).items() if not k.startswith("_")})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


class Folder:
    """The folder of a sweep: a manifest that says whose it is, and a folder for each finished model.

    Parameters
    ----------
    path : path
    plan : Plan
    seed_given : bool, default True
        False where the user left the random numbers open: those of a sweep that is gone on with are taken.
    overwrite : bool, default False
        Begin anew, removing what a selection wrote there before; other files are left alone.

    Raises
    ------
    FileExistsError
        If the folder holds something, but no selection.
    DataError
        If it holds a selection of other data or with other settings.
    """

    def __init__(self, path: str | Path, plan: Plan, seed_given: bool = True, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"cannot write to {self.path}: it exists and is not a folder")
        ours = plan.fingerprint()
        file = self.path / MANIFEST
        if overwrite:
            self._clear()
        if file.exists():
            self.entropy = self._continue(ours, plan.entropy if seed_given else None)
            return
        if self.path.is_dir() and any(self.path.iterdir()) and not overwrite:
            raise FileExistsError(
                f"{self.path} exists, is not empty and holds no selection to go on with; name another folder, or use overwrite=True "
                "(--force at the command line)"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.entropy = plan.entropy
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "package_version": __version__}
        write_text(file, json.dumps(manifest | ours | {"entropy": str(plan.entropy)}, indent=1) + "\n")

    def _clear(self) -> None:
        if (self.path / MANIFEST).exists():
            shutil.rmtree(self.path / MODELS, ignore_errors=True)
        for name in OUTPUTS:
            (self.path / name).unlink(missing_ok=True)

    def _continue(self, ours: dict[str, Any], entropy_given: int | None) -> int:
        manifest = read_manifest(self.path)
        if manifest.get("data_hash") != ours["data_hash"]:
            raise DataError(
                f"{self.path} holds a selection of other data (or with other weights): fits on different data cannot be "
                "compared; name another folder"
            )
        if manifest.get("labels_hash") != ours["labels_hash"]:
            raise DataError(f"{self.path} holds a selection with other labels; name another folder")
        theirs = manifest.get("settings", {})
        different = sorted(
            name for group in ours["settings"] for name in _differing(group, ours["settings"][group], theirs.get(group))
        )
        if different:
            raise DataError(
                f"{self.path} holds a selection with another setting of {', '.join(different)}; name another folder, or use "
                "the settings it was begun with"
            )
        entropy = int(manifest["entropy"])
        if entropy_given not in (entropy, None):
            raise DataError(f"{self.path} holds a selection with another random_state ({entropy}); name another folder")
        return entropy

    def save(self, model: Model) -> None:
        """Write a model's fits, its pointwise values and, last, its row: a row stands for a whole model."""
        from bayesgmm.persistence import save

        folder = self.path / MODELS / model.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, estimator in (("em", model.em), ("posterior", model.posterior)):
            if estimator is not None and not (folder / name / "fit.json").exists():
                save(estimator, folder / name)
        if model.elpd is not None and hasattr(model.elpd, "p_loo_i") and not hasattr(model.elpd, "subsampling_se"):
            elpd_i, p_loo_i, pareto_k = (np.asarray(getattr(model.elpd, n)) for n in ("elpd_i", "p_loo_i", "pareto_k"))
            weights: dict[str, Any] = {} if model.row_weights is None else {"row_weights": model.row_weights}
            with atomic_path(folder / POINTWISE) as temporary:
                np.savez(temporary, elpd_i=elpd_i, p_loo_i=p_loo_i, pareto_k=pareto_k, **weights)
        row = {
            "values": model.values,
            "done": sorted(model.done),
            "flags": model.flags,
            "reasons": model.reasons,
            "n_samples": None if model.elpd is None else int(model.elpd.n_samples),
            "varied": model.varied,
        }
        write_text(folder / ROW, json.dumps(_plain(row), indent=1) + "\n")

    def load(self, model: Model) -> bool:
        """As :func:`load_model`."""
        return load_model(self.path, model)


def _differing(group: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict) and group.endswith("options"):
        return [name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)]
    return [] if ours == theirs else [group]


def load_model(path: str | Path, model: Model) -> bool:
    """Read a model that was finished before into ``model``; False where there is none.

    Raises
    ------
    DataError
        If its files are truncated or altered.
    """
    from bayesgmm.persistence import load

    folder = Path(path) / MODELS / model.name
    if not (folder / ROW).exists():
        return False
    try:
        row = json.loads((folder / ROW).read_text(encoding="utf-8"))
        model.values = {str(k): v for k, v in row["values"].items()}
        model.done, model.flags, model.reasons = set(row["done"]), list(row["flags"]), dict(row["reasons"])
        n_samples, model.varied = row["n_samples"], dict(row.get("varied", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / ROW} is truncated or altered ({error}): remove its folder") from None
    if (folder / "em").exists():
        model.em = load(folder / "em")
    if (folder / "posterior").exists():
        model.posterior = load(folder / "posterior")
    if "loo" in model.done:
        if (folder / POINTWISE).exists():
            model.elpd = _stored_elpd(folder / POINTWISE, model, n_samples)
        else:
            model.done.discard("loo")
    return True


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a folder of a sweep.

    Raises
    ------
    DataError
        If it is missing, truncated, or newer than this version reads.
    """
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} holds no selection: {MANIFEST} is missing") from None
    except ValueError as error:
        raise DataError(f"{file} is truncated or altered: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{file} is not a selection by bayesgmm")
    if not isinstance(manifest.get("format_version"), int) or manifest["format_version"] > FORMAT_VERSION:
        raise DataError(f"{file} was written by a later version of bayesgmm: upgrade")
    return manifest


def _stored_elpd(file: Path, model: Model, n_samples: int) -> Any:
    from arviz_stats.utils import ELPDDataLOO

    from bayesgmm.elpd import pointwise_array
    from bayesgmm.pointwise import good_k

    with np.load(file, allow_pickle=False) as arrays:
        elpd_i, p_i, pareto_k = arrays["elpd_i"], arrays["p_loo_i"], arrays["pareto_k"]
        model.row_weights = arrays.get("row_weights")
    threshold = good_k(n_samples)
    return ELPDDataLOO(
        elpd=model.values["elpd_loo"],
        se=model.values["se"],
        p=model.values["p_loo"],
        n_samples=n_samples,
        n_data_points=len(elpd_i),
        scale="log",
        warning=bool(np.any(pareto_k > threshold)),
        good_k=threshold,
        elpd_i=pointwise_array(elpd_i),
        pareto_k=pointwise_array(pareto_k, name="pareto_k"),
        p_loo_i=pointwise_array(p_i, name="p_loo_i"),
    )


class Stopped(Exception):
    """A worker was told to stop."""


def run(
    plan: Plan,
    models: Mapping[Key, Model],
    save: Callable[[Model], None],
    progressbar: bool = False,
    client: Client | None = None,
) -> str | None:
    """Fit every model and evaluate its criteria.

    Parameters
    ----------
    plan : Plan
    models : mapping of (str, int) to Model
        What is done already is not done again.
    save : callable
        Called with each model that is finished.
    progressbar : bool, default False
    client : distributed.Client, optional
        Whose workers fit rows that stand in memory here, each a model at a time.

    Returns
    -------
    str or None
        What an interrupt left; None where all models are finished.
    """
    todo = [
        models[key]
        for key in plan.keys
        if not set(steps(plan)) <= models[key].done and "failed" not in models[key].flags
    ]
    with _progress(len(plan.keys), len(plan.keys) - len(todo), progressbar) as tell:
        try:
            if client is None or plan.blocks is not None:
                begun = [m for m in todo if "em" not in m.done]
                _run_em(plan, begun, tell, save if plan.method == "em" else lambda _: None)
                left = [m for m in todo if m not in begun] if plan.method == "em" else todo
                done = _finished_here(plan, left, tell)
            else:
                done = _finished_on_workers(client, plan, todo)
            for model in done:
                save(model)
                tell(1, f"{model.key[0]}, K = {model.key[1]}")
            _refit_varied(plan, list(models.values()), tell, save)
        except KeyboardInterrupt:
            finished = sum(set(steps(plan)) <= m.done or "failed" in m.flags for m in models.values())
            return f"stopped by the user: {finished} of {len(models)} models are finished"
    return None


def _finished_here(plan: Plan, todo: Sequence[Model], tell: Callable[[int, str], None]) -> Iterator[Model]:
    """The models, each when it is finished."""
    for model in todo:
        if "failed" not in model.flags:
            tell(0, f"{model.key[0]}, K = {model.key[1]}")
            _finish(plan, model)
        yield model


def _finished_on_workers(client: Client, plan: Plan, todo: Sequence[Model]) -> Iterator[Model]:
    """The models, EM and posterior, as the workers of a cluster finish them; the rows travel to each worker once."""
    # Large K first: they take longest, and at the end all workers should have something to do.
    order = sorted(todo, key=lambda model: -model.key[1])
    for place, (found, said) in OnWorkers(client, plan).evaluated(_finished, order, "bayesgmm-model"):
        for message in said:
            warn_user(message, DataWarning)
        vars(order[place]).update(vars(found))
        yield order[place]


def _finished(plan: Plan, model: Model) -> tuple[Model, list[str]]:
    """A model with all that was left to do for it, and what was said of the data."""
    with quiet() as caught:
        if "failed" not in model.flags and "em" not in model.done:
            some = _some_rows(plan)
            _try_em(plan, model, lambda: _assignments(plan, model.key[1], *some), some, threading.Event())
        if "failed" not in model.flags:
            _finish(plan, model)
    return model, [str(each.message) for each in caught if issubclass(each.category, DataWarning)]


def steps(plan: Plan) -> tuple[str, ...]:
    """What has to be done for each model."""
    labelled = any(name in plan.criteria for name in ("ari", "accuracy", "log_loss"))
    wanted = ["em"] + ["posterior"] * (plan.method != "em")
    wanted += [name for name in ("waic", "loo", "evidence") if name in plan.criteria]
    wanted += ["sensitivity"] * ("evidence" in plan.criteria and plan.sensitivity)
    return tuple(wanted + ["labelled"] * labelled)


def _run_em(plan: Plan, todo: Sequence[Model], tell: Callable[[int, str], None], save: Callable[[Model], None]) -> None:
    by_k: dict[int, list[Model]] = {}
    for model in todo:
        by_k.setdefault(model.key[1], []).append(model)
    stop = threading.Event()
    some = _some_rows(plan)

    def one(K: int) -> int:
        starts = cache(lambda: _assignments(plan, K, *some))
        for model in by_k[K]:
            if stop.is_set():
                return K
            try:
                _try_em(plan, model, starts, some, stop)
            except Stopped:
                return K
            if plan.method == "em":
                tell(0, f"{model.key[0]}, K = {K}")
                _finish(plan, model)
                save(model)
                tell(1, "")
        return K

    # Large K first: they take longest, and at the end all workers should have something to do.
    order = sorted(by_k, reverse=True)
    if plan.n_jobs == 1 or len(order) == 1:
        for K in sorted(by_k):
            one(K)
        return
    with ThreadPoolExecutor(min(plan.n_jobs, len(order)), thread_name_prefix="bayesgmm-select") as pool:
        try:
            for done in as_completed([pool.submit(one, K) for K in order]):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _try_em(
    plan: Plan,
    model: Model,
    starts: Callable[[], Sequence[np.ndarray]],
    some: tuple[FloatArray, FloatArray | None],
    stop: threading.Event,
) -> None:
    """EM of a model from the starts of its K, or why it failed."""
    try:
        if plan.blocks is not None:
            _fit_em_blocks(plan, model)
        else:
            _fit_em(plan, model, starts(), some, stop)
    except Stopped:
        raise
    except Exception as error:
        _failed(model, "em", f"EM failed: {error}")


def _some_rows(plan: Plan) -> tuple[FloatArray, FloatArray | None]:
    """The rows that starts are made from, with their weights: all of them where they are few."""
    N, v = len(plan.table), plan.sample_weight
    if N < 2 * REHEARSAL_ROWS:
        return plan.table, v
    if v is not None and np.count_nonzero(v) < 2 * REHEARSAL_ROWS:
        return plan.table, v
    rng = np.random.default_rng(np.random.SeedSequence([plan.entropy, 0]))
    available = np.arange(N) if v is None else np.flatnonzero(v)
    rows = np.sort(rng.choice(available, size=REHEARSAL_ROWS, replace=False))
    return np.ascontiguousarray(plan.table[rows]), None if v is None else v[rows]


def _assignments(plan: Plan, K: int, X: FloatArray, v: FloatArray | None) -> list[np.ndarray]:
    """Partitions (or responsibilities) that the starts of every structure with K components are made from."""
    n_starts = STARTS * int(plan.em_options.get("n_init", 10))
    methods = seeding.mixed_starts(plan.em_options.get("init_params", "kmeans"), n_starts, X.shape[1])
    if K == 1:
        methods = methods[:1]
    seeds = np.random.default_rng(np.random.SeedSequence([plan.entropy, K])).spawn(len(methods))
    return [seeding.initial_assignment(method, X, K, v, seed) for method, seed in zip(methods, seeds, strict=True)]


def _em_estimator(plan: Plan, model: Model) -> GaussianMixture:
    """EM's estimator of a model, not fitted."""
    options = {"tol": EM_TOL} | dict(plan.em_options)
    return GaussianMixture(
        model.key[1], covariance_type=model.key[0], **options, random_state=plan.integer_seed(model.key, 0)
    )


def _fit_em_blocks(plan: Plan, model: Model) -> None:
    """EM of rows in blocks: from a sample of them, then all at each step."""
    assert plan.blocks is not None
    assert plan.survey is not None
    estimator = _em_estimator(plan, model)
    settings = {"reg_covar": estimator.reg_covar, "tol": estimator.tol, "max_iter": estimator.max_iter}
    problem = blocked.problem_of(plan.blocks, plan.survey, model.key[0], None, **settings)
    rng = np.random.default_rng(plan.seed(model.key, 1))
    n_starts = 1 if model.key[1] == 1 else STARTS * estimator.n_init
    found = blocked.fit(problem, model.key[1], n_init=n_starts, init_params=estimator.init_params, rng=rng)
    _keep_em(plan, model, estimator, found)
    model.values["icl"] = estimator._icl_of(plan.blocks)
    model.done.add("em")


def _keep_em(plan: Plan, model: Model, estimator: GaussianMixture, found: em.EMFit) -> None:
    estimator.n_features_in_ = plan.table.shape[1]
    if plan.feature_names is not None:
        estimator.feature_names_in_ = plan.feature_names
    estimator.prior_ = None
    estimator._keep(found)
    model.em = estimator
    _em_criteria(plan, model, found)


def _fit_em(
    plan: Plan,
    model: Model,
    assignments: Sequence[np.ndarray],
    some: tuple[FloatArray, FloatArray | None],
    stop: threading.Event,
) -> None:
    kind, K = structure(model.key[0]), model.key[1]
    estimator = _em_estimator(plan, model)
    problem = em.Problem(
        plan.table,
        kind,
        None,
        plan.sample_weight,
        estimator.reg_covar,
        estimator.tol,
        estimator.max_iter,
        1 if plan.n_jobs > 1 else None,
    )

    def check(*_: Any) -> None:
        if stop.is_set():
            raise Stopped

    small = problem if len(some[0]) == len(plan.table) else replace(problem, X=some[0], sample_weight=some[1])
    starts = [
        em.start_from_labels(small, found.astype(np.int32, copy=False), K)
        if found.ndim == 1
        else em.start_from_responsibilities(small, found.astype(np.float64, copy=False))
        for found in assignments
    ]
    rng = np.random.default_rng(plan.seed(model.key, 1))
    found = em.race(problem, starts, rng, callback=check, rehearsal=None if small is problem else small)
    _keep_em(plan, model, estimator, found)
    responsibilities = kernel.responsibilities(plan.table, found.modes[0].run.parameters, problem.n_threads)[0]
    best, p = found.modes[0], model.values["n_parameters"]
    model.values["icl"] = criteria.icl(
        best.run.log_likelihood, p, plan.total_weight, responsibilities, plan.sample_weight
    )
    model.done.add("em")


def _em_criteria(plan: Plan, model: Model, found: em.EMFit) -> None:
    """What the maximum itself tells."""
    best, total = found.modes[0], plan.total_weight
    L, p = best.run.log_likelihood, structure(model.key[0]).n_parameters(*best.run.parameters.means.shape)
    model.values |= {
        "n_parameters": p,
        "log_likelihood": L,
        "aic": criteria.aic(L, p),
        "bic": criteria.bic(L, p, total),
        "smallest_component": best.smallest_count,
    }
    corrected = criteria.aicc(L, p, total)
    if np.isfinite(corrected):
        model.values["aicc"] = corrected
    else:
        model.reasons["aicc"] = f"{p} parameters are too many for {total:g} rows"
    if best.spurious:
        model.flag("near-singular")
    if not best.run.converged:
        model.flag("EM not converged")


def _finish(plan: Plan, model: Model) -> None:
    """The posterior of a model whose EM fit is there, and all criteria but EM's own."""
    tasks: dict[str, tuple[set[str], Callable[[Plan, Model], None]]] = {
        "posterior": ({"posterior"}, _posterior),
        "loo": ({"loo", "waic"}, _loo),
        "evidence": ({"evidence"}, _evidence),
        "sensitivity": ({"sensitivity"}, _sensitivity),
        "labelled": ({"labelled"}, _labelled),
    }
    wanted = steps(plan)
    for name, (serves, task) in tasks.items():
        if not (serves & set(wanted)) - model.done or "failed" in model.flags:
            continue
        if name in ("loo", "evidence", "sensitivity") and model.posterior is None:
            continue
        try:
            task(plan, model)
        except Exception as error:
            if name == "labelled" or model.posterior is not None:
                model.reasons[name] = f"{name} failed: {error}"
                model.flag(f"{name} failed")
            else:
                # EM's row stands; what needs the posterior has a reason.
                model.reasons["posterior"] = f"the posterior failed: {error}"
                model.flag("posterior failed")
    model.done |= set(wanted)


def _posterior(plan: Plan, model: Model) -> None:
    from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
    from bayesgmm.inference.diagnostics import PARETO_K_LIMIT, R_HAT_LIMIT

    estimator = BayesianGaussianMixture(
        model.key[1],
        covariance_type=model.key[0],
        method=plan.method,
        prior=plan.prior,
        random_state=plan.integer_seed(model.key, 2),
        progressbar=False,
        **plan.posterior_options,
    )
    rows: tuple[Any, Any] = (plan.X, plan.sample_weight) if plan.blocks is None else (plan.blocks, None)
    estimator.fit(rows[0], sample_weight=rows[1])
    model.posterior = estimator
    diagnostics = estimator.diagnostics_
    if plan.method == "nuts":
        model.values["divergences"] = diagnostics.n_divergent
        r_hat = float(diagnostics.invariants["r_hat"].max())
        if np.isfinite(r_hat):
            model.values["max_rhat"] = r_hat
        if not r_hat <= R_HAT_LIMIT:
            model.flag("modes disagree" if len(set(diagnostics.chain_modes)) > 1 else "not converged")
    else:
        model.reasons["max_rhat"] = "independent draws have no R-hat"
        if diagnostics.pareto_k is None or not diagnostics.pareto_k <= PARETO_K_LIMIT:
            model.flag("Laplace k-hat high")
    if not diagnostics.labels_identified:
        model.flag("labels not identified")
    elif not diagnostics.ok:
        model.flag("not converged")


def _loo(plan: Plan, model: Model) -> None:
    from bayesgmm.inference.blocked_loo import loo_of_blocks
    from bayesgmm.inference.diagnostics import PARETO_K_LIMIT
    from bayesgmm.inference.loo import loo_posterior

    # Draws that do not stand for the posterior are not worth the care of matching and refits.
    pareto_k = model.posterior.diagnostics_.pareto_k
    sound = pareto_k is None or pareto_k <= PARETO_K_LIMIT
    # The same seed for all: where the rows are subsampled, they are the same rows.
    settings: dict[str, Any] = {"moment_matching": sound, "random_state": plan.entropy % 2**31}
    if plan.blocks is None:
        found = loo_posterior(model.posterior, refits=plan.loo_refits if sound else 0, **settings)
    else:
        found = loo_of_blocks(model.posterior, plan.blocks, **settings)
    if found.waic is not None and "waic" in plan.criteria:
        model.values |= {"elpd_waic": found.waic.elpd, "p_waic": found.waic.p}
    if "loo" not in plan.criteria:
        return
    model.elpd, model.row_weights = found.loo, found.sample_weight
    tails = np.asarray(found.loo.pareto_k, dtype=float)
    model.values |= {"elpd_loo": found.loo.elpd, "se": found.loo.se, "p_loo": found.loo.p}
    largest = float(np.nanmax(tails))
    if np.isfinite(largest):
        model.values["max_pareto_k"] = largest
    else:
        model.reasons["max_pareto_k"] = (
            "the importance weights of a row have a tail to which no Pareto distribution fits"
        )
    if largest > found.loo.good_k:
        model.flag("k-hat high")
    how = [note for note in found.notes if "reliable for all" not in note]
    if how:
        model.reasons["loo"] = "; ".join(how)


def _evidence(plan: Plan, model: Model) -> None:
    from bayesgmm.inference.evidence import log_evidence

    found = log_evidence(model.posterior, plan.blocks, random_state=plan.integer_seed(model.key, 3))
    model.values["log_evidence"] = found.log_evidence
    if np.isfinite(found.standard_error):
        model.values["log_evidence_se"] = found.standard_error
    if not found.converged:
        model.flag("evidence doubtful")
        model.reasons["evidence"] = "; ".join(found.notes)


def _sensitivity(plan: Plan, model: Model) -> None:
    """What the draws tell of the evidence under varied priors."""
    from bayesgmm.inference.sensitivity import evidence_change, varied_priors

    if "log_evidence" not in model.values:
        return
    model.varied = {
        name: vars(evidence_change(model.posterior, prior)) | {"refitted": False}
        for name, prior in varied_priors(model.posterior.prior_).items()
    }


def log_joint(plan: Plan, model: Model, variation: str | None = None) -> float:
    """Log of evidence times p(K), under the prior or a variation of it; −inf without an evidence."""
    if "log_evidence" not in model.values or (variation is not None and variation not in model.varied):
        return -np.inf
    change = 0.0 if variation is None else float(model.varied[variation]["change"])
    return model.values["log_evidence"] + change + plan.log_prior_of_components.get(model.key[1], 0.0)


def _refit_varied(
    plan: Plan, models: Sequence[Model], tell: Callable[[int, str], None], save: Callable[[Model], None]
) -> None:
    """Fit anew, under a varied prior, the models that matter there and whose draws do not reach it."""
    from bayesgmm.inference.diagnostics import PARETO_K_LIMIT
    from bayesgmm.inference.sensitivity import VARIATIONS, change_by_refit, varied_priors

    if "sensitivity" not in steps(plan):
        return
    for place, variation in enumerate(VARIATIONS):
        best = max(log_joint(plan, model, variation) for model in models)
        for model in models:
            if not log_joint(plan, model, variation) >= best - WORTH_A_REFIT or model.posterior is None:
                continue
            found = model.varied.get(variation)
            if found is None or found["pareto_k"] <= PARETO_K_LIMIT or found["refitted"]:
                continue
            if plan.blocks is not None:
                model.reasons["sensitivity"] = (
                    f"the draws do not reach another prior ({variation}), and rows in blocks are not refitted"
                )
                continue
            tell(0, f"{model.key[0]}, K = {model.key[1]}: {variation}")
            try:
                prior = varied_priors(model.posterior.prior_)[variation]
                seed = plan.integer_seed(model.key, 4 + place)
                model.varied[variation] = vars(change_by_refit(model.posterior, prior, seed)) | {"refitted": True}
            except Exception as error:
                model.reasons["sensitivity"] = f"the refit under another prior ({variation}) failed: {error}"
            save(model)


def _labelled(plan: Plan, model: Model) -> None:
    from bayesgmm.crossvalidation import known_labels, labelled_scores

    assert plan.labels is not None
    known = known_labels(plan.labels)[1]
    fitted = model.em if model.posterior is None else model.posterior
    scores = labelled_scores(
        fitted,
        plan.X,
        plan.labels,
        n_splits=min(5, int(known.sum())),
        random_state=plan.entropy % 2**31,
        sample_weight=plan.sample_weight,
    )
    found = {"ari": scores.adjusted_rand, "accuracy": scores.accuracy, "log_loss": scores.log_loss}
    model.values |= {name: value for name, value in found.items() if name in plan.criteria}


def _failed(model: Model, step: str, why: str) -> None:
    model.flag("failed")
    model.reasons[step] = " ".join(why.split())


@contextmanager
def _progress(total: int, done: int, shown: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar over the models on standard error; gives a function that moves it on and says what is being fitted."""
    if not shown:
        yield lambda step, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("models"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=total, completed=done)

        def tell(step: int, text: str) -> None:
            bars.update(task, advance=step, description=text or None)

        yield tell


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings: what they say of a model stands in its row."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
