"""Mixtures in the manner of scikit-learn, one class a file."""
