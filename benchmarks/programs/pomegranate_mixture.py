"""EM of a mixture in pomegranate (PyTorch on the CPU, float64)."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pomegranate.distributions import Normal
from pomegranate.gmm import GeneralMixtureModel

_, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
torch.set_default_dtype(torch.float64)
N, D, K, short, long = map(int, (folder / "sizes.txt").read_text().split())


def read(name, *shape):
    return torch.tensor(np.fromfile(folder / f"{name}.bin").reshape(shape))


X, weights, means, covariances = read("X", N, D), read("weights", K), read("means", K, D), read("covariances", K, D, D)


def fit(n_iter):
    components = [Normal(means[k].clone(), covariances[k].clone(), covariance_type="full") for k in range(K)]
    mixture = GeneralMixtureModel(components, priors=weights.clone(), max_iter=n_iter, tol=-1e300)
    begin = time.perf_counter()
    mixture.fit(X)
    return time.perf_counter() - begin, mixture


mixture = fit(long)[1]
log_likelihood = float(mixture.log_probability(X).sum())
print(
    json.dumps(
        {
            "ready": f"pomegranate {version('pomegranate')}, PyTorch {torch.__version__}",
            "prepared": 0.0,
            "log_likelihood": log_likelihood,
        }
    ),
    flush=True,
)
for _ in sys.stdin:
    few, many = fit(short)[0], fit(long)[0]
    print(json.dumps({"seconds": (many - few) / (long - short)}), flush=True)
