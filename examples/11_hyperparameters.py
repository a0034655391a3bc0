"""Covariance structures and hyperparameters: what each changes, seen.

A structure says which shapes a component may have: circle, ellipse along the axes, tilted ellipse, one shape for all. tol says when
EM stops, n_init from how many starts it climbs, init_params where the first begins, reg_covar how thin a component may get, and
warm_start lets a fit go on from the one before. All have scikit-learn's names and meanings.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from bayesgmm import GaussianMixture
from bayesgmm.plots import ellipses
from bayesgmm.plots.style import COLOURS, canvas

STRUCTURES = {"spherical": "circles", "diag": "along the axes", "full": "tilted", "tied": "one shape for all"}
STARTS = ("kmeans", "k-means++", "random_from_data", "random")
RNG = np.random.default_rng(4)
TRUTH = GaussianMixture.from_parameters(
    RNG.dirichlet(np.full(6, 4.0)),
    RNG.uniform(-6, 6, (6, 2)),
    [[[1.2, c], [c, 0.8]] for c in (0.7, -0.6, 0.0, 0.5, -0.7, 0.2)],
    random_state=0,
)


def main() -> None:
    X = pd.DataFrame(TRUTH.sample(600)[0], columns=["x1", "x2"])
    with canvas(figsize=(13, 7), rows=2, columns=4) as c:
        print("structure  parameters     BIC")
        for ax, (kind, words) in zip(c.axes[0], STRUCTURES.items(), strict=True):
            fit = GaussianMixture(n_components=6, covariance_type=kind, random_state=0).fit(X)
            print(f"{kind:9s}  {n_parameters(fit):10d}  {fit.bic(X):7.1f}")
            ellipses(fit, X, levels=(0.9,), ax=ax)
            ax.get_legend().remove()
            ax.set(
                xlabel="$x_1$",
                ylabel="$x_2$",
                title=f"{kind}: {words}\n{n_parameters(fit)} parameters, BIC {fit.bic(X):.0f}",
            )
        show_tol(c.axes[1, 0], X)
        show_starts(c.axes[1, 1], X)
        show_reg_covar(c.axes[1, 2], X)
        show_warm_start(c.axes[1, 3], X)
    c.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


def n_parameters(fit):
    K, D = fit.means_.shape
    shape = {"spherical": K, "diag": K * D, "tied": D * (D + 1) // 2, "full": K * D * (D + 1) // 2}
    return K - 1 + K * D + shape[fit.covariance_type]


def show_tol(ax, X):
    """The climb of a single poor start, and where each tolerance would have ended it."""
    fit = GaussianMixture(n_components=6, n_init=1, init_params="random", tol=1e-10, random_state=1).fit(X)
    bounds = len(X) * np.array(fit.lower_bounds_)
    below = bounds[-1] - bounds + 1e-4
    ax.semilogy(below, color="black")
    for tol, shade in zip((1e-3, 1e-5, 1e-8), COLOURS[1:], strict=False):
        stop = 1 + int(np.argmax(np.abs(np.diff(bounds)) < tol * len(X)))
        ax.plot(stop, below[stop], "o", color=shade, markersize=8, label=f"{tol:g}: {stop} iterations")
        print(
            f"tol {tol:g} ends after {stop} iterations, {bounds[-1] - bounds[stop]:.4f} nats below the end of the same climb"
        )
    ax.set(xlabel="iteration", ylabel="nats below the end of the climb", title="tol: where EM stops")
    ax.legend()


def show_starts(ax, X):
    """How far one start of each kind ends below the best of all, over twenty seeds; and the best of ten starts."""
    ends = {}
    for kind in STARTS:
        ends[kind] = [one_fit(X, n_init=1, init_params=kind, random_state=seed) for seed in range(20)]
    ends["n_init=10"] = [one_fit(X, n_init=10, random_state=seed) for seed in range(20)]
    best = np.nanmax(list(ends.values()))
    for place, (name, values) in enumerate(ends.items()):
        gap = best - np.array(values)
        ax.plot(
            gap,
            place + 0.3 * (np.modf(np.arange(20) * 0.618)[0] - 0.5),
            "o",
            color=COLOURS[place],
            markersize=4,
            alpha=0.7,
        )
        print(
            f"{name}: {np.sum(gap < 0.5)} of 20 seeds end within half a nat of the best, {np.isnan(gap).sum()} near-singular"
        )
    ax.set(
        yticks=range(len(ends)),
        yticklabels=[counted(*each) for each in ends.items()],
        xlabel="nats below the best",
        title="init_params and n_init: where 20 seeds end",
    )
    ax.invert_yaxis()


def counted(name, values):
    singular = np.isnan(values).sum()
    return f"{name}\n({singular} near-singular)" if singular else name


def one_fit(X, **settings):
    """Log-likelihood, or NaN where the fit ended near a singularity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = GaussianMixture(n_components=6, tol=1e-6, **settings).fit(X)
    return np.nan if fit.modes_[0].spurious else fit.lower_bound_ * len(X)


def show_reg_covar(ax, X):
    """Ten copies of one row: how thin their component gets."""
    tied = pd.concat([X[:200], X[:1], *[X[:1]] * 9])
    values, thinnest = np.logspace(-6, 0, 7), []
    for value in values:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = GaussianMixture(
                n_components=2, reg_covar=value, random_state=0, means_init=[X.iloc[0], X[:200].mean()],
                precisions_init=[np.eye(2) * 1e4, np.eye(2) * 0.1], weights_init=[0.05, 0.95],
            ).fit(tied)  # fmt: skip
        thinnest.append(np.sqrt(np.linalg.eigvalsh(fit.covariances_).min()))
    print(f"reg_covar 1e-6, ten equal rows: a component {thinnest[0]:.4f} wide; reg_covar 1: {thinnest[-1]:.2f}")
    ax.loglog(values, thinnest, "o-", color="black")
    ax.loglog(values, np.sqrt(values), color=COLOURS[1], linestyle="--", label="√reg_covar")
    ax.set(
        xlabel="reg_covar",
        ylabel="narrowest standard deviation",
        title="reg_covar: ten equal rows of 210\nno component gets thinner than its root",
    )
    ax.legend()


def show_warm_start(ax, X):
    """Iterations as rows arrive in batches, from scratch and from the fit before."""
    warm = GaussianMixture(n_components=6, covariance_type="tied", warm_start=True, random_state=0)
    sizes, cold, went_on = range(200, 601, 50), [], []
    for size in sizes:
        cold.append(
            GaussianMixture(n_components=6, covariance_type="tied", n_init=1, random_state=0).fit(X[:size]).n_iter_
        )
        went_on.append(warm.fit(X[:size]).n_iter_)
    print(f"warm_start: {sum(went_on[1:])} iterations in {len(sizes) - 1} refits, from scratch {sum(cold[1:])}")
    ax.plot(sizes, cold, "o-", color="black", label="one new start")
    ax.plot(sizes[1:], went_on[1:], "s-", color=COLOURS[1], label="warm_start")
    ax.set(
        xlabel="rows so far",
        ylabel="iterations",
        ylim=(0, None),
        title="warm_start: rows arrive, 50 at a time\n(tied covariances)",
    )
    ax.legend()


if __name__ == "__main__":
    main()
