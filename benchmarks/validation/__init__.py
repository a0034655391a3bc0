"""Studies over simulated data sets whose truth is known, one module each; ``python -m benchmarks.validate`` runs them."""
