"""Arrays in, arrays out: the one pass, covariance structures, priors, seeding and EM on NumPy, SciPy and Numba alone."""
