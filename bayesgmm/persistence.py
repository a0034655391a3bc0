"""Fits saved and loaded: ``fit.json`` with everything small, ``posterior.nc`` with the draws. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm import __version__, garbage
from bayesgmm.core.covariance import structure
from bayesgmm.core.em import EMRun, Mode
from bayesgmm.core.function_prior import FunctionPrior
from bayesgmm.core.hierarchical import Prior, prior_from_values
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.exceptions import DataError
from bayesgmm.io import atomic_path, reserve, sole_writer, write_text

if TYPE_CHECKING:
    from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
    from bayesgmm.estimators.gaussian_mixture import GaussianMixture
    from bayesgmm.inference.diagnostics import Diagnostics
    from bayesgmm.inference.modes import ModeWeight

FORMAT = "bayesgmm fit"
FORMAT_VERSION = 1
MANIFEST, DRAWS = "fit.json", "posterior.nc"


def data_hash(X: FloatArray, sample_weight: FloatArray | None = None) -> str:
    """SHA-256 of a table and its weights."""
    digest = hashlib.sha256(repr(X.shape).encode())
    digest.update(np.ascontiguousarray(X).data)
    if sample_weight is not None:
        digest.update(np.ascontiguousarray(sample_weight).data)
    return digest.hexdigest()


def hash_of_blocks(blocks: Iterable[FloatArray], n_rows: int, n_features: int) -> str:
    """:func:`data_hash` of rows in blocks."""
    digest = hashlib.sha256(repr((n_rows, n_features)).encode())
    for rows in blocks:
        digest.update(np.ascontiguousarray(rows, dtype=np.float64).data)
    return digest.hexdigest()


def provenance(
    source: str, columns: Sequence[str], notes: Sequence[str], data_hash: str, in_blocks: bool = False
) -> dict[str, Any]:
    """Where the rows of a fit come from, for its report.

    Parameters
    ----------
    source : str
        A path, or words.
    columns : sequence of str
        That were read.
    notes : sequence of str
        What the reader decided or left out.
    data_hash : str
        Of the rows.
    in_blocks : bool, default False
        Whether they were read in blocks, and never stood in memory.

    Returns
    -------
    dict
        With the hash of the rows, by which it is known whether they are still those.
    """
    found = {"source": source, "columns": list(columns), "notes": list(notes), "data_hash": data_hash}
    return found | ({"in_blocks": True} if in_blocks else {})


def save(estimator: GaussianMixture | BayesianGaussianMixture, path: str | Path) -> Path:
    """Write a fit to a folder: whoever loads it finds the whole fit, or the one before, whenever the writing is stopped.

    Parameters
    ----------
    estimator : GaussianMixture or BayesianGaussianMixture
        Fitted.
    path : str or path
        Folder; made if needed.

    Returns
    -------
    path

    Raises
    ------
    OSError
        If the folder cannot be written, or another process writes to it.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bayesgmm import GaussianMixture, load, save
    >>> from bayesgmm.datasets import load_faithful
    >>> X = load_faithful()
    >>> em = GaussianMixture(2, random_state=0).fit(X)
    >>> with TemporaryDirectory() as folder:
    ...     path = save(em, folder)
    ...     again = load(folder)
    >>> bool((again.predict(X) == em.predict(X)).all())
    True
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    names = getattr(estimator, "feature_names_in_", None)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "estimator": type(estimator).__name__,
        "settings": _settings(estimator),
        "n_features": int(estimator.n_features_in_),
        "feature_names": None if names is None else [str(n) for n in names],
        "prior": _prior_to_json(getattr(estimator, "prior_", None)),
        "modes": [_mode_to_json(mode) for mode in getattr(estimator, "modes_", ())],
        "provenance": getattr(estimator, "_provenance", None),
    }
    if manifest["estimator"] == "GaussianMixture":
        manifest["fit"] = _plain(
            {
                "parameters": _parameters_to_json(estimator._parameters),
                "covariances": estimator.covariances_,
                "converged": estimator.converged_,
                "n_iter": estimator.n_iter_,
                "lower_bounds": getattr(estimator, "lower_bounds_", None),
            }
        )
    with sole_writer(folder), previous_kept(folder):
        if "fit" in manifest:
            _write_manifest(manifest, folder / MANIFEST)
        else:
            # Both files stand whole under temporary names before either takes its own: the draws first.
            with atomic_path(folder / MANIFEST) as text, atomic_path(folder / DRAWS) as draws:
                _write_manifest(manifest | _save_draws(estimator, draws), text)
    return folder


@contextmanager
def previous_kept(folder: Path) -> Iterator[None]:
    """Keep the fit in a folder readable while a block replaces its files one after the other, ``fit.json`` last.

    Its draws get a second name until the block ends; :func:`load` looks there if they are no longer under their own.
    """
    try:
        digest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["draws_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        digest = None
    kept = None
    if digest is not None and (folder / DRAWS).exists():
        kept = _kept(folder, digest)
        if not kept.exists():
            _second_name(folder / DRAWS, kept)
    try:
        yield
    except BaseException:
        if kept is not None and kept.samefile(folder / DRAWS):
            kept.unlink()
        raise
    for old in folder.glob(f".{DRAWS}-*"):
        old.unlink(missing_ok=True)


def _second_name(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:
        # A file system without second names.
        with atomic_path(name) as copy:
            shutil.copyfile(file, copy)


def _kept(folder: Path, digest: str) -> Path:
    return folder / f".{DRAWS}-{str(digest)[:16]}"


def _write_manifest(manifest: dict[str, Any], file: Path) -> None:
    write_text(file, json.dumps(manifest | {"manifest_hash": _manifest_hash(manifest)}, indent=1) + "\n")


def _manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of everything in the manifest but the hash itself."""
    content = {name: value for name, value in manifest.items() if name != "manifest_hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _save_draws(estimator: BayesianGaussianMixture, file: Path) -> dict[str, Any]:
    import xarray as xr

    tree, scale = estimator.idata_.copy(), estimator._draws.scale_factors
    tree["precision_factors"] = xr.DataTree(
        xr.Dataset(
            {"precision_factors": (("chain", "draw", "component", "row", "column"), estimator._draws.precision_factors)}
            | ({} if scale is None else {"scale_factors": (("chain", "draw", "row", "column"), scale)})
        )
    )
    # A little more than the numbers: headers of a few kilobytes for each variable.
    n_variables = sum(len(node.dataset.variables) for node in tree.subtree)
    reserve(file, sum(node.dataset.nbytes for node in tree.subtree) + 4096 * n_variables)
    tree.to_netcdf(file, engine="h5netcdf")
    X = getattr(estimator, "_X", None)
    return {
        "data_hash": None if X is None else data_hash(X, estimator._sample_weight),
        "n_rows": None if X is None else len(X),
        "draws_hash": _file_hash(file),
        "map": _parameters_to_json(estimator.map_),
        "diagnostics": _diagnostics_to_json(estimator.diagnostics_),
    }


def load(path: str | Path) -> GaussianMixture | BayesianGaussianMixture:
    """Read a fit that :func:`save` wrote.

    Parameters
    ----------
    path : str or path
        Folder with ``fit.json`` (and ``posterior.nc`` for a posterior).

    Returns
    -------
    GaussianMixture or BayesianGaussianMixture

    Raises
    ------
    DataError
        If a file is missing, truncated or altered, or the format is newer than this version reads.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bayesgmm import GaussianMixture, load
    >>> from bayesgmm.datasets import load_faithful
    >>> with TemporaryDirectory() as folder:
    ...     path = GaussianMixture(2, random_state=0).fit(load_faithful()).save(folder)
    ...     em = load(folder)
    >>> em.weights_.round(2)
    array([0.64, 0.36])
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    try:
        return _from_manifest(manifest, folder)
    except (DataError, FileNotFoundError):
        # Another process may have written a new fit meanwhile.
        again = _read_manifest(folder)
        if again == manifest:
            raise
        return _from_manifest(again, folder)


def _from_manifest(manifest: dict[str, Any], folder: Path) -> GaussianMixture | BayesianGaussianMixture:
    try:
        prior = _prior_from_json(manifest["prior"])
        kind = manifest["settings"]["covariance_type"]
        estimator = _empty_estimator(manifest, prior)
        estimator.n_features_in_ = D = manifest["n_features"]
        shape = (estimator.n_components, D)
        if (names := manifest["feature_names"]) is not None:
            _need(len(names) == D and all(isinstance(name, str) for name in names), "names of features")
            estimator.feature_names_in_ = np.array(names, dtype=object)
        estimator.prior_ = prior
        if manifest.get("provenance") is not None:
            estimator._provenance = manifest["provenance"]
        estimator.modes_ = tuple(_mode_from_json(mode, kind, shape) for mode in manifest["modes"])
        if "fit" in manifest:
            fit = manifest["fit"]
            estimator.converged_, estimator.n_iter_ = fit["converged"], fit["n_iter"]
            if fit["lower_bounds"] is not None:
                estimator.lower_bounds_, estimator.lower_bound_ = fit["lower_bounds"], fit["lower_bounds"][-1]
            packed = np.array(fit["covariances"], dtype=float)
            _need(packed.shape == structure(kind).shape(*shape) and np.isfinite(packed).all(), "covariances")
            estimator._set(_parameters_from_json(fit["parameters"], shape), packed)
        else:
            _load_draws(estimator, manifest, folder, shape)
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        # Hashes that are right say that nothing was damaged, and not that whoever wrote this knew what a fit is.
        raise DataError(f"{folder / MANIFEST} is not a complete fit: {error!r}") from None
    return estimator


def _need(condition: Any, what: str) -> None:
    if not condition:
        raise ValueError(f"the {what} are not those of a fit")


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} holds no saved fit: {MANIFEST} is missing") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is truncated or altered: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{file} is not a fit saved by bayesgmm")
    version = manifest.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise DataError(
            f"{file} has format version {version}, written by bayesgmm {manifest.get('package_version')}; "
            f"this version reads up to {FORMAT_VERSION}: upgrade bayesgmm"
        )
    if manifest.get("manifest_hash") != _manifest_hash(manifest):
        raise DataError(f"{file} was altered after it was written, or is not complete")
    return manifest


def _empty_estimator(manifest: dict[str, Any], prior: Prior | None) -> Any:
    import bayesgmm

    settings = dict(manifest["settings"])
    if settings.get("prior") == "resolved":
        settings["prior"] = prior
    for name in ("weights_init", "means_init", "precisions_init"):
        if settings.get(name) is not None:
            settings[name] = np.array(settings[name])
    classes = {
        "GaussianMixture": bayesgmm.GaussianMixture,
        "BayesianGaussianMixture": bayesgmm.BayesianGaussianMixture,
    }
    estimator = classes[manifest["estimator"]](**settings)
    estimator._validate_params()
    return estimator


def _load_draws(estimator: Any, manifest: dict[str, Any], folder: Path, shape: tuple[int, int]) -> None:
    import xarray as xr

    from bayesgmm.inference.posterior import PosteriorDraws

    file = _draws_file(folder, manifest["draws_hash"])
    with xr.open_datatree(file, engine="h5netcdf") as stored:
        tree = stored.load()
    stored_factors = tree["precision_factors"]
    factors = stored_factors["precision_factors"].values
    scale = stored_factors["scale_factors"].values if "scale_factors" in stored_factors else None
    posterior = tree["posterior"]
    draws = PosteriorDraws(posterior["weights"].values, posterior["means"].values, factors, scale)
    if not all(np.isfinite(a).all() for a in (draws.weights, draws.means, draws.precision_factors)):
        raise DataError(f"{file} has draws that are not finite")
    _check_parameters(draws.weights, draws.means, draws.precision_factors, (*draws.weights.shape[:2], *shape))
    del tree["precision_factors"]
    estimator.idata_ = tree
    garbage.made(tree.nbytes)
    estimator._draws = draws
    if manifest["data_hash"] is not None:
        constant = tree["constant_data"]
        weights = constant["sample_weight"].values if "sample_weight" in constant else None
        estimator._X = np.ascontiguousarray(tree["observed_data"]["x"].values)
        estimator._sample_weight = weights
        if data_hash(estimator._X, estimator._sample_weight) != manifest["data_hash"]:
            raise DataError(f"{file} holds other data than the fit was made with")
    estimator.map_ = _parameters_from_json(manifest["map"], shape)
    estimator.diagnostics_ = _diagnostics_from_json(manifest["diagnostics"])
    estimator._set_point_estimates()


def _draws_file(folder: Path, digest: str) -> Path:
    """The file with the draws that a manifest was written with."""
    file = folder / DRAWS
    if not file.exists():
        raise DataError(f"{folder} holds no draws: {DRAWS} is missing")
    for found in (file, _kept(folder, digest)):
        with suppress(FileNotFoundError):
            if _file_hash(found) == digest:
                return found
    raise DataError(f"{file} is truncated or altered: it is not the file that {MANIFEST} was written with")


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    return value


def _settings(estimator: Any) -> dict[str, Any]:
    settings = estimator.get_params(deep=False)
    if isinstance(settings["prior"], Prior | FunctionPrior) or callable(settings["prior"]):
        settings["prior"] = "resolved"
    if not isinstance(settings["random_state"], (int, np.integer)):
        settings["random_state"] = None
    return {
        name: _plain(np.asarray(v) if name.endswith("_init") and v is not None else v) for name, v in settings.items()
    }


def _prior_to_json(prior: Prior | None) -> dict[str, Any] | None:
    if prior is None:
        return None
    values: dict[str, Any] = {name: value.tolist() for name, (value, _) in prior.constants().items()}
    values |= prior.choices
    return values if prior.for_em is prior else values | {"em_prior": _prior_to_json(prior.for_em)}


def _prior_from_json(values: dict[str, Any] | None) -> Any:
    if values is None:
        return None
    if "function" in values:
        return FunctionPrior(None, values["function"], _prior_from_json(values["em_prior"]))
    prior = prior_from_values(values)
    prior.constants()  # raises where a value is missing
    return prior


def _parameters_to_json(parameters: MixtureParameters) -> dict[str, Any]:
    return {name: array.tolist() for name, array in vars(parameters).items()}


def _parameters_from_json(values: dict[str, Any], shape: tuple[int, int]) -> MixtureParameters:
    parameters = MixtureParameters(**{name: np.array(array, dtype=float) for name, array in values.items()})
    _check_parameters(parameters.weights, parameters.means, parameters.precision_factors, shape)
    return parameters


def _check_parameters(weights: FloatArray, means: FloatArray, factors: FloatArray, shape: tuple[int, ...]) -> None:
    """Parameters (..., K), (..., K, D) and (..., K, D, D) of mixtures, or else a ValueError."""
    *_, D = shape
    _need(weights.shape == shape[:-1] and means.shape == shape and factors.shape == (*shape, D), "shapes of parameters")
    _need(all(np.isfinite(array).all() for array in (weights, means, factors)), "parameters")
    _need((weights >= 0).all() and np.allclose(weights.sum(axis=-1), 1), "weights")
    _need((np.diagonal(factors, axis1=-2, axis2=-1) > 0).all() and not np.triu(factors, 1).any(), "covariances")


def _mode_to_json(mode: Mode) -> dict[str, Any]:
    run = mode.run
    return _plain(
        {
            "parameters": _parameters_to_json(run.parameters),
            "covariances": run.covariances,
            "objective": run.objective,
            "log_likelihood": run.log_likelihood,
            "counts": run.counts,
            "n_iter": run.n_iter,
            "converged": run.converged,
            "n_reseeded": run.n_reseeded,
            "n_starts": mode.n_starts,
            "smallest_count": mode.smallest_count,
            "smallest_eigenvalue": mode.smallest_eigenvalue,
            "spurious": mode.spurious,
        }
    )


def _mode_from_json(values: dict[str, Any], covariance_type: str, shape: tuple[int, int]) -> Mode:
    parameters = _parameters_from_json(values["parameters"], shape)
    covariances = np.array(values["covariances"]).reshape(structure(covariance_type).shape(*parameters.means.shape))
    run = EMRun(
        parameters,
        covariances,
        values["objective"],
        values["log_likelihood"],
        np.array(values["counts"]),
        (values["objective"],),
        values["n_iter"],
        values["converged"],
        values["n_reseeded"],
    )
    return Mode(run, values["n_starts"], values["smallest_count"], values["smallest_eigenvalue"], values["spurious"])


def _diagnostics_to_json(diagnostics: Diagnostics) -> dict[str, Any]:
    values = {name: v for name, v in vars(diagnostics).items() if name not in ("invariants", "parameters")}
    values["mode_weights"] = [_nan_to_none(_plain(vars(weight))) for weight in diagnostics.mode_weights]
    tables = {
        name: {"index": list(table.index), "columns": {c: table[c].tolist() for c in table.columns}}
        for name, table in (("invariants", diagnostics.invariants), ("parameters", diagnostics.parameters))
    }
    return _plain(values | {name: _nan_to_none(t) for name, t in tables.items()})


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _nan_to_none(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _diagnostics_from_json(values: dict[str, Any]) -> Diagnostics:
    import pandas as pd

    from bayesgmm.inference.diagnostics import Diagnostics

    values = dict(values)
    for name in ("invariants", "parameters"):
        table = values[name]
        values[name] = pd.DataFrame(
            {c: np.array(v, dtype=float) for c, v in table["columns"].items()},
            index=pd.Index(table["index"], name="quantity"),
        )
    for name in ("problems", "notes", "chain_modes", "unvisited_modes", "identified_components"):
        values[name] = tuple(values.get(name, ()))
    values["mode_weights"] = tuple(_mode_weight_from_json(weight) for weight in values.get("mode_weights", ()))
    values["e_bfmi"] = np.array(values["e_bfmi"], dtype=float)
    return Diagnostics(**values)


def _mode_weight_from_json(values: dict[str, Any]) -> ModeWeight:
    from bayesgmm.inference.modes import ModeWeight

    numbers = {name: np.nan if value is None else value for name, value in values.items()}
    return ModeWeight(**numbers | {"chains": tuple(values["chains"])})
