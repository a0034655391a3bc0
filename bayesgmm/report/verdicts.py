"""The answer in sentences, from the numbers of the tables, and never more of it than the diagnostics allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bayesgmm.report.blocks import Verdict, number, percent, sentence, spelled
from bayesgmm.report.facts import DISCOVERY_RATE, FALSE_ALARM, SURE, FitFacts

if TYPE_CHECKING:
    from bayesgmm.selection import Selection

NAMED_COMPONENTS = 5
"""Components that a sentence names one by one."""

JUDGES = ("loo", "bic", "aicc", "aic", "icl", "waic", "evidence")
"""Criteria in the order in which one of them says which model the report goes on with."""


def counted(n: int, thing: str) -> str:
    """A number with what it counts."""
    return f"{spelled(n)} {thing}{'' if n == 1 else 's'}"


def fit_verdict(facts: FitFacts, number_was_set: bool = True) -> Verdict:
    """Say how many groups, how sure, and whether the fit can be trusted.

    Parameters
    ----------
    facts : FitFacts
    number_was_set : bool, default True
        Whether K was given, and not picked by a criterion.

    Returns
    -------
    Verdict
        "bad" where the diagnostics failed, with what they say and nothing else.
    """
    if not facts.ok:
        return _bad(facts)
    return _posterior(facts, number_was_set) if facts.is_posterior else _em(facts, number_was_set)


def _bad(facts: FitFacts) -> Verdict:
    what = "What follows is shown to find out why; it is no result."
    if not facts.is_posterior:
        if facts.near_singular:
            smallest = facts.fit.modes_[0].smallest_count
            return Verdict(
                "bad",
                "This fit cannot be relied on: every start of EM ended near a singularity",
                (
                    f"The smallest component holds {number(smallest)} rows and its covariance is next to singular, where the likelihood "
                    "has no upper bound. Fit with prior='default', fewer components or a simpler covariance_type.",
                    what,
                ),
            )
        return Verdict(
            "bad",
            f"This fit cannot be relied on: EM did not converge in {counted(facts.fit.n_iter_, 'iteration')}",
            ("Raise max_iter or tol.", what),
        )
    found = facts.fit.diagnostics_
    headline = "This fit cannot be relied on yet: its diagnostics failed"
    if not facts.identified:
        headline = "The components of this fit cannot be told apart: it cannot be relied on component by component"
    return Verdict("bad", headline, (found.verdict, *map(sentence, found.problems), what))


def _posterior(facts: FitFacts, number_was_set: bool) -> Verdict:
    found = facts.fit.diagnostics_
    rows = "" if facts.X is None else f" for {counted(len(facts.X), 'row')}"
    level = "caution" if found.unvisited_modes else "good"
    headline = f"{counted(facts.K, 'component')}{rows}, and the draws can be trusted"
    sentences = [*_weights(facts), *assignment_sentences(facts), *anomaly_sentences(facts), found.verdict]
    if found.unvisited_modes:
        headline = f"{counted(facts.K, 'component')}{rows}, with a reservation"
        modes = ", ".join(map(str, found.unvisited_modes))
        plural = "s" if len(found.unvisited_modes) > 1 else ""
        sentences.append(
            f"EM found the optimum{plural} {modes} nearly as good as the best, and no chain stayed there: the posterior may hold more than "
            "is shown (see Diagnostics)."
        )
    return Verdict(level, headline, (*sentences, *_was_set(facts, number_was_set)))


def _em(facts: FitFacts, number_was_set: bool) -> Verdict:
    rows = "" if facts.X is None else f" for {counted(len(facts.X), 'row')}"
    sentences = [
        *_weights(facts),
        *assignment_sentences(facts),
        *anomaly_sentences(facts),
        "This is a report of EM alone: one best fit, without a posterior. Its intervals are estimate ± standard errors, and nothing here "
        "says whether other parameters explain the rows as well.",
        f"EM converged in {counted(facts.fit.n_iter_, 'iteration')}.",
    ]
    if facts.X is None:
        sentences.append(
            "A fit by EM holds no rows, and none were given: assignment, anomalies, standard errors and most figures are left out."
        )
    return Verdict(
        "plain",
        f"{counted(facts.K, 'component')}{rows} by EM, without a posterior",
        (*sentences, *_was_set(facts, number_was_set)),
    )


def _weights(facts: FitFacts) -> list[str]:
    if facts.K == 1:
        return ["There is one component, which holds everything."]
    components = facts.components
    if facts.K <= NAMED_COMPONENTS:
        return [sentence("; ".join(c.in_words() for c in components))]
    heaviest = max(components, key=lambda c: c.weight.value)
    lightest = min(components, key=lambda c: c.weight.value)
    return [f"The heaviest, {heaviest.in_words()}; the lightest, {lightest.in_words()}."]


def assignment_sentences(facts: FitFacts) -> list[str]:
    """How many rows are sure of their component."""
    if facts.X is None or facts.K == 1 or facts.n_unsure is None:
        return []
    n, unsure = len(facts.X), facts.n_unsure
    rest = f"for {counted(unsure, 'row')} none has" if unsure else "there is no other row"
    return [
        f"For {spelled(n - unsure)} of {counted(n, 'row')} one component has a probability of at least {100 * SURE:.0f} %; {rest}."
    ]


def anomaly_sentences(facts: FitFacts) -> list[str]:
    """How many rows lie where hardly any should."""
    found = facts.anomalies
    if found is None:
        return []
    count = (
        "No row lies"
        if found.flagged == 0
        else f"{counted(found.flagged, 'row')} {'lies' if found.flagged == 1 else 'lie'}"
    )
    anomalies = {0: "no row is an anomaly", 1: "1 row is an anomaly"}.get(
        found.discoveries, f"{spelled(found.discoveries)} rows are anomalies"
    )
    return [
        f"{count} below the density that {100 * FALSE_ALARM:.0f} % of the model's own rows fall below, where about "
        f"{found.expected} would by chance; at a false-discovery rate of {100 * DISCOVERY_RATE:.0f} % {anomalies}."
    ]


def _was_set(facts: FitFacts, number_was_set: bool) -> list[str]:
    if not number_was_set:
        return []
    return [
        f"The number of components was set to {facts.K}; this fit does not say whether another would do "
        f"better. bayesgmm select compares them."
    ]


def judge_of(selection: Selection) -> str | None:
    """The criterion whose model the report goes on with."""
    return next((name for name in JUDGES if name in selection.picks), next(iter(selection.picks), None))


def chances_of_components(selection: Selection) -> dict[int, float]:
    """p(K | data), summed over structures; empty where the evidence was not asked for."""
    chances: dict[int, float] = {}
    for (_, K), probability in selection.table["probability"].dropna().items():
        chances[int(K)] = chances.get(int(K), 0.0) + float(probability)
    return chances


def selection_verdict(selection: Selection, facts: FitFacts | None) -> Verdict:
    """Say which number of components, how sure, and whether the fits can be trusted.

    Parameters
    ----------
    selection : Selection
    facts : FitFacts or None
        Of the model that the report goes on with.

    Returns
    -------
    Verdict
        "bad" where a criterion picks a model whose diagnostics failed, with what speaks against it and nothing else.
    """
    judge = judge_of(selection)
    if judge is None or facts is None:
        return Verdict("bad", "No model could be judged", (selection.summary(),))
    from bayesgmm.tabulation import CRITERIA, in_words

    doubtful = [sentence(text) for text in selection.doubtful]
    ours = in_words(selection.best(judge))
    if not facts.ok or any(text.startswith(f"{ours} ") for text in selection.doubtful):
        own = () if facts.ok else _bad(facts).sentences[:-1]
        return Verdict(
            "bad",
            "The number of components cannot be settled yet: a fit that is picked failed its diagnostics",
            (*doubtful, *own, "What follows is shown to find out why; it is no result."),
        )
    own_verdict = fit_verdict(facts, number_was_set=False)
    numbers = sorted({K for _, K in selection.picks.values()})
    agree = len(numbers) == 1
    level = own_verdict.level if agree or own_verdict.level == "plain" else "caution"
    title = CRITERIA[judge].title
    headline = f"{title[:1].upper()}{title[1:]} picks {ours}"
    if len(selection.picks) > 1:
        headline += (
            ", and so does every other criterion the number of components"
            if agree
            else f"; criteria differ between {numbers[0]} and {numbers[-1]} components"
        )
    sentences = [selection.summary(), *doubtful]
    level = "caution" if doubtful else level
    chances = chances_of_components(selection)
    if len(chances) > 1:
        said = ", ".join(f"{percent(p)} for K = {K}" for K, p in sorted(chances.items()) if p >= 0.0005)
        sentences.append(f"The probability of each number of components, given the data and the prior, is {said}.")
    if selection.interrupted:
        level = "caution"
        sentences.append(sentence(f"The comparison is not complete: {selection.interrupted}"))
    return Verdict(level, headline, (*sentences, *own_verdict.sentences))


def summary_line(estimator: Any) -> str:
    """The verdict of a fit in one sentence, without looking at rows."""
    if hasattr(estimator, "_draws"):
        return str(estimator.diagnostics_.verdict)
    facts = FitFacts(estimator, None)
    if not facts.ok:
        return _bad(facts).headline + "."
    return f"EM converged in {counted(estimator.n_iter_, 'iteration')}; there is no posterior."
