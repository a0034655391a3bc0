"""How many components? Criteria ask different questions, so they may disagree.

AIC, WAIC and LOO ask what predicts new rows best; BIC and the evidence ask which K is most probable; labels of some rows ask
how well components stand for known classes. Differences smaller than their errors decide
nothing, and flags say which numbers cannot be relied on.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from bayesgmm import GaussianMixture, select
from bayesgmm.plots import selection

SHOWN = ["bic", "aic", "elpd_waic", "elpd_loo", "elpd_diff", "dse", "probability", "accuracy", "flags"]


def main() -> None:
    truth = GaussianMixture.from_parameters(
        [0.45, 0.3, 0.25],
        [[0.0, 0.0], [2.6, 1.2], [0.3, 3.6]],
        [[[1.0, 0.4], [0.4, 1.0]], [[0.7, -0.3], [-0.3, 0.7]], [[1.0, 0.0], [0.0, 0.5]]],
        random_state=0,
    )
    values, source = truth.sample(300)
    X = pd.DataFrame(values, columns=["x1", "x2"])
    labels = np.where(np.arange(300) % 3 == 0, source, -1)  # every third row is labelled; -1 is unknown
    found = select(
        X,
        range(1, 6),
        "full",
        method="laplace",
        y=labels,
        criteria=["aic", "bic", "waic", "loo", "evidence", "accuracy"],
        sensitivity=False,
        loo_refits=0,
        random_state=0,
        progressbar=False,
    )
    print("300 rows from three components, 100 of them labelled:")
    print(found.table[SHOWN].droplevel(0).round(2).to_string())
    print(found.summary())
    figure = selection(found)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
