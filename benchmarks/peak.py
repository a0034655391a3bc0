"""Peak memory of one job, in a process of its own: ``python -m benchmarks.peak JOB FILE.npy DRAWS`` prints JSON.

The baseline is taken after imports, compilation and, for the posterior, its fit to a sample; X is loaded after it, so
the peak above the baseline includes X itself. On Linux the kernel keeps the exact peak; elsewhere the process is
sampled every millisecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SAMPLE_ROWS = 2000


class PeakMemory:
    """Largest resident memory above that at entry, bytes, while the block runs."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        # Memory that was freed but not handed back would hide what the block needs.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._process = psutil.Process()
        self._baseline = self._process.memory_info().rss
        self.exact = False
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            high = self._high_water()
            # Where the reset is not carried out the mark stays above what is resident.
            self.exact = high is not None and high < self._baseline + 2**20
        self._sampled = self._baseline
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        high = self._high_water() if self.exact else None
        self.bytes = (self._sampled if high is None else high) - self._baseline

    def _sample(self) -> None:
        interval = 0.1 if self.exact else 0.001
        while not self._done.wait(interval):
            self._sampled = max(self._sampled, self._process.memory_info().rss)

    @staticmethod
    def _high_water() -> int | None:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None


def em_fit(sample: np.ndarray, draws: int) -> Callable[[np.ndarray], Any]:
    """Default fit of GaussianMixture(3), seeding included."""
    from bayesgmm import GaussianMixture

    GaussianMixture(3, random_state=0).fit(sample)
    return GaussianMixture(3, random_state=0).fit


def em_score(sample: np.ndarray, draws: int) -> Callable[[np.ndarray], Any]:
    """score_samples of a GaussianMixture(3) fitted to the sample."""
    from bayesgmm import GaussianMixture

    mixture = GaussianMixture(3, random_state=0).fit(sample)
    mixture.score_samples(sample)
    return mixture.score_samples


def posterior_score(sample: np.ndarray, draws: int) -> Callable[[np.ndarray], Any]:
    """score_samples averaged over the draws of a BayesianGaussianMixture(3) fitted to the sample."""
    from bayesgmm import BayesianGaussianMixture

    post = BayesianGaussianMixture(3, draws=draws, chains=4, random_state=0, progressbar=False).fit(sample)
    post.score_samples(sample)
    return post.score_samples


def sklearn_fit(sample: np.ndarray, draws: int) -> Callable[[np.ndarray], Any]:
    """Default fit of scikit-learn's GaussianMixture(3), for comparison."""
    from sklearn.mixture import GaussianMixture

    GaussianMixture(3, random_state=0).fit(sample)
    return GaussianMixture(3, random_state=0).fit


def sklearn_score(sample: np.ndarray, draws: int) -> Callable[[np.ndarray], Any]:
    """score_samples of scikit-learn's GaussianMixture(3), for comparison."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(3, random_state=0).fit(sample)
    mixture.score_samples(sample)
    return mixture.score_samples


JOBS = {job.__name__: job for job in (em_fit, em_score, posterior_score, sklearn_fit, sklearn_score)}


def main(job: str, path: str, draws: int) -> dict[str, Any]:
    """Run one job and report its peak."""
    # A copy of the first rows: the file itself must not stay mapped.
    sample = np.array(np.load(path, mmap_mode="r")[:SAMPLE_ROWS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = JOBS[job](sample, draws)
        with PeakMemory() as peak:
            X = np.load(path)
            begin = time.perf_counter()
            result = task(X)
            seconds = time.perf_counter() - begin
    del result
    return {"job": job, "bytes": peak.bytes, "X": X.nbytes, "exact": peak.exact, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
