"""Old Faithful, K = 2: EM, then the posterior, side by side. Writes old_faithful.png beside this file (or where told)."""

import sys
from pathlib import Path

from bayesgmm import BayesianGaussianMixture, GaussianMixture, compare
from bayesgmm.datasets import load_faithful
from bayesgmm.plots import mixture


def main() -> None:
    X = load_faithful()
    em = GaussianMixture(n_components=2, random_state=0).fit(X)
    post = BayesianGaussianMixture(n_components=2, random_state=0, progressbar=False).fit(X)
    table = compare(em, post)
    print(table[["em", "em_se", "posterior_median", "lower", "upper"]].round(3).to_string())
    print(post.diagnostics_.verdict)
    figure = mixture(post, X)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
