"""Figures of mixtures and their posteriors, in one style, on matplotlib and ArviZ.

How a figure is made: every function takes a fit (:class:`bayesgmm.GaussianMixture` or :class:`bayesgmm.BayesianGaussianMixture`)
and, where there are rows to show, the table ``X``; a posterior holds its own rows, so ``X`` may be left out there. It returns a
matplotlib ``Figure`` (``trace`` and ``rank``: ArviZ's ``PlotCollection``), ready for ``figure.savefig(path, dpi=120)``:

    import bayesgmm
    figure = bayesgmm.plots.density(post)
    figure.savefig("density.png", dpi=120)

- a fit: :func:`mixture`, :func:`density`, :func:`ellipses`, :func:`responsibilities`, :func:`soft_and_hard`, :func:`coclustering`,
  :func:`modes`
- EM at work (``keep_history=True``): :func:`em_steps`, :func:`animate_em`; what the structures can do: :func:`structures`
- a posterior: :func:`forest`, :func:`posterior`, :func:`trace`, :func:`rank`, :func:`predictive_check`
- an :class:`bayesgmm.AnomalyDetector`: :func:`anomaly_density`, :func:`ranked_scores`, :func:`flagged_share`; it or a fit:
  :func:`assignment`
- a prior, before there is a fit: :func:`prior_predictive`
- the choice of K: :func:`selection`, :func:`number_of_components`

``ax=`` draws a figure of one panel into axes of yours and returns their figure; ``figsize=`` (inches) sets the size of a new one.
New figures are pyplot's, so that ``plt.show()`` shows them: ``plt.close(figure)`` when many are made. The backend and the user's
``rcParams`` are left as they are.
"""

from __future__ import annotations

from bayesgmm.plots.anomalies import anomaly_density, assignment, flagged_share, ranked_scores
from bayesgmm.plots.assignments import responsibilities, soft_and_hard
from bayesgmm.plots.chains import rank, trace
from bayesgmm.plots.checks import coclustering, predictive_check
from bayesgmm.plots.classification import class_probability
from bayesgmm.plots.climb import animate_em, em_steps, modes
from bayesgmm.plots.criteria import number_of_components, selection
from bayesgmm.plots.densities import density
from bayesgmm.plots.parameters import forest, posterior
from bayesgmm.plots.priors import prior_predictive
from bayesgmm.plots.shapes import ellipses, mixture, structures

__all__ = [
    "animate_em",
    "anomaly_density",
    "assignment",
    "class_probability",
    "coclustering",
    "density",
    "ellipses",
    "em_steps",
    "flagged_share",
    "forest",
    "mixture",
    "modes",
    "number_of_components",
    "posterior",
    "predictive_check",
    "prior_predictive",
    "rank",
    "ranked_scores",
    "responsibilities",
    "selection",
    "soft_and_hard",
    "structures",
    "trace",
]
