"""Mixtures in the manner of scikit-learn, one class a file."""

from bayesgmm.estimators.deferred import import_sklearn_base

import_sklearn_base()
