"""From a mode to a posterior: the PyMC model, the Laplace approximation, NUTS, relabelling."""
