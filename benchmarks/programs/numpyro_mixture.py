"""A marginalised mixture in NumPyro (JAX on the CPU, float64): log posterior and gradient, or NUTS."""

import json
import math
import os
import sys
import time
from pathlib import Path

task, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if threads == 1 and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["JAX_PLATFORMS"] = "cpu"

import numpyro  # noqa: E402

N, D, K, chains, tune, draws = map(int, (folder / "sizes.txt").read_text().split())
numpyro.enable_x64()
numpyro.set_host_device_count(chains)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.infer import MCMC, NUTS, init_to_value  # noqa: E402
from numpyro.infer.util import initialize_model  # noqa: E402


def read(name, *shape):
    return np.fromfile(folder / f"{name}.bin").reshape(shape)


X = read("X", N, D)
weights, means, covariances = read("weights", K), read("means", K, D), read("covariances", K, D, D)
center, deviation = jnp.asarray(X.mean(axis=0)), jnp.asarray(X.std(axis=0))
factors = np.linalg.cholesky(covariances)
scales = np.linalg.norm(factors, axis=2)
truth = {"weights": weights, "means": means, "scales": scales, "correlations": factors / scales[:, :, None]}
truth = {name: jnp.asarray(value) for name, value in truth.items()}


def mixture(weights, means, scales, correlations):
    components = dist.MultivariateNormal(means, scale_tril=scales[..., None] * correlations)
    return dist.MixtureSameFamily(dist.Categorical(probs=weights), components)


def model(X):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    means = numpyro.sample("means", dist.Normal(center, 2.5 * deviation).expand([K, D]).to_event(2))
    scales = numpyro.sample("scales", dist.HalfNormal(deviation).expand([K, D]).to_event(2))
    correlations = numpyro.sample("correlations", dist.LKJCholesky(D, 2.0).expand([K]).to_event(1))
    with numpyro.plate("rows", N):
        numpyro.sample("x", mixture(weights, means, scales, correlations), obs=X)


def answer(**values):
    print(json.dumps(values), flush=True)


start = init_to_value(values=truth)
begin = time.perf_counter()
if task == "gradient":
    info = initialize_model(jax.random.PRNGKey(0), model, init_strategy=start, model_args=(jnp.asarray(X),))
    theta = info.param_info.z
    function = jax.jit(jax.value_and_grad(info.potential_fn))
    jax.block_until_ready(function(theta))
    log_likelihood = float(jnp.sum(mixture(**truth).log_prob(X)))

    def measure():
        calls, total = 0, 0.0
        begin = time.perf_counter()
        while total < 0.2 or calls < 3:
            jax.block_until_ready(function(theta))
            calls += 1
            total = time.perf_counter() - begin
        answer(seconds=total / calls)
else:
    mcmc = MCMC(
        NUTS(model, init_strategy=start),
        num_warmup=tune,
        num_samples=draws,
        num_chains=chains,
        chain_method="parallel",
        progress_bar=False,
    )
    # The second run of one object compiles nothing.
    mcmc.run(jax.random.PRNGKey(0), jnp.asarray(X))
    log_likelihood, seed = math.nan, 0

    def measure():
        global seed
        seed += 1
        begin = time.perf_counter()
        mcmc.run(jax.random.PRNGKey(seed), jnp.asarray(X), extra_fields=("num_steps", "diverging"))
        found = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        seconds = time.perf_counter() - begin
        factors = np.asarray(found["scales"])[..., None] * np.asarray(found["correlations"])
        for name, values in (
            ("draws_weights", found["weights"]),
            ("draws_means", found["means"]),
            ("draws_covariances", factors @ np.swapaxes(factors, -1, -2)),
        ):
            np.ascontiguousarray(values, dtype=np.float64).tofile(folder / f"{name}.bin")
        fields = mcmc.get_extra_fields()
        answer(seconds=seconds, steps=int(fields["num_steps"].sum()), divergences=int(fields["diverging"].sum()))


version = f"NumPyro {numpyro.__version__}, JAX {jax.__version__}"
answer(
    ready=version,
    prepared=time.perf_counter() - begin,
    log_likelihood=None if math.isnan(log_likelihood) else log_likelihood,
)
for _ in sys.stdin:
    measure()
