"""Cascades: the bounds of the audit, which depend on neither batches nor interruptions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom

from glitchrun.events import ProbeResult, Token, Verified
from glitchrun.search.base import Scores, Space
from glitchrun.search.cascade import Cascade, by_score
from glitchrun.search.recall import (
    Audit,
    Recall,
    at_most,
    cheapest_sample,
    most_missed,
    recall,
    sample_size,
)

N = 6000


def population(seed: int, sharpness: float) -> tuple[NDArray[np.bool_], Scores]:
    """Tokens, about 4 % of them glitch tokens, and scores that separate them to a given degree."""
    rng = np.random.default_rng(seed)
    glitch = rng.random(N) < 0.04
    log_p = rng.normal(size=N) - sharpness * glitch
    return glitch, Scores(log_p.round(4), -log_p)


def search(scores: Scores, seed: int, share: float = 0.9) -> Cascade:
    table = torch.zeros(len(scores.gap), 1)
    space = Space(
        ids=torch.arange(len(table)),
        embeddings=table,
        input_embeddings=table,
        vocabulary=None,  # type: ignore[arg-type]
        seed=seed,
        gradient=lambda token_id: (0.0, table[0]),
        limit=0.01,
        scores=scores,
    )
    return Cascade(space, share, 0.95)


def verdicts(ids: Sequence[int], glitch: NDArray[np.bool_]) -> list[Verified]:
    probe = {"repeat": ProbeResult(0.1, 2, 1.0, 0, 1.0, False, "float32")}
    return [Verified(Token(i, "x", "x", "normal", 1.0), probe, bool(glitch[i]), None) for i in ids]


def verified_by(cascade: Cascade, glitch: NDArray[np.bool_], n: int) -> list[int]:
    order: list[int] = []
    while ids := cascade.propose(n):
        order += ids
        cascade.update(verdicts(ids, glitch))
    return order


def test_the_size_of_an_audit_is_known_and_that_of_the_front_is_not() -> None:
    glitch, scores = population(0, 6.0)
    cascade = search(scores, 0)
    planned: list[int | None] = []
    verified = {"front": 0, "audit": 0}
    while ids := cascade.propose(64):
        stage, left = cascade.stage
        assert (left is None) == (stage == "front")
        planned += [left] if stage == "audit" and not verified["audit"] else []
        verified[stage] += len(ids)
        cascade.update(verdicts(ids, glitch))
    assert planned == [verified["audit"]]
    assert verified["front"] > 0


def test_bounds_hold_with_their_stated_confidence() -> None:
    rng = np.random.default_rng(0)
    rest, sample, hits = 3000, 400, 45
    drawn = hypergeom.rvs(rest, hits, sample, size=400, random_state=rng)
    audits = [Audit(rest, sample, int(h)) for h in drawn]
    assert sum(audit.most(0.05) >= hits for audit in audits) >= 0.92 * len(audits)
    assert sum(audit.least(0.05) <= hits for audit in audits) >= 0.92 * len(audits)
    assert sum(audit.most(0.05) < 3 * hits for audit in audits) > 0.9 * len(audits)
    assert np.mean([audit.expected for audit in audits]) == pytest.approx(hits, rel=0.1)


def test_probabilities_are_those_of_the_hypergeometric_distribution() -> None:
    for rest, glitches, sample in ((50, 7, 20), (48_000, 78, 1944), (3000, 900, 2500), (9, 9, 4)):
        for hits in (-1, 0, 1, 3, 70, 750, 2400):
            expected = hypergeom.cdf(hits, rest, glitches, sample)
            assert at_most(hits, rest, glitches, sample) == pytest.approx(expected, rel=1e-6)


def test_bounds_of_a_full_and_of_an_empty_sample() -> None:
    assert Audit(50, 50, 3).most(0.05) == Audit(50, 50, 3).least(0.05) == 3
    assert Audit(50, 0, 0).most(0.05) == 50
    found = recall(7, Audit(50, 50, 3), 0.05, 0.95)
    assert found is not None
    assert (found.low, found.estimate, found.high) == (1.0, 1.0, 1.0)
    assert recall(0, Audit(50, 50, 0), 0.05, 0.95) is None


def test_sample_sizes_are_minimal() -> None:
    size = sample_size(360, 4000, 0.9, 0.05)  # 40 may be missed
    assert Audit(4000, size, 0).most(0.05) <= 40 < Audit(4000, size - 1, 0).most(0.05)
    size = sample_size(360, 4000, 0.9, 0.05, hits=2)
    assert Audit(4000, size, 2).most(0.05) - 2 <= 40 < Audit(4000, size - 1, 2).most(0.05) - 2


def test_an_audit_is_larger_where_hits_are_likely_and_its_failure_is_expensive() -> None:
    least = sample_size(1600, 45_000, 0.9, 0.04)
    clean = cheapest_sample(1600, 45_000, 0.9, 0.04, missed=1, failure=4000)
    likely = cheapest_sample(1600, 45_000, 0.9, 0.04, missed=60, failure=4000)
    costly = cheapest_sample(1600, 45_000, 0.9, 0.04, missed=60, failure=40_000)
    assert least == clean < likely < costly < 45_000
    assert cheapest_sample(1, 500, 0.9, 0.04, missed=0, failure=0) == 481  # none may be missed
    assert cheapest_sample(900, 50, 0.9, 0.04, missed=9, failure=0) == 0  # all may be missed


def test_an_audit_cannot_show_more_than_its_sample() -> None:
    """One token more is missed than allowed, at random places: a claim without a hit is wrong."""
    rng = np.random.default_rng(0)
    seen, missed, size = 40, 11, 1000  # of 51, 40 are less than 80 %
    glitch, wrong = np.zeros(size, bool), 0
    log_p = rng.normal(size=size)
    log_p[:seen] -= 20  # the screen sees these perfectly, and the others not at all
    for seed in range(60):
        glitch[:] = np.arange(size) < seen
        glitch[seen + rng.choice(size - seen, missed, replace=False)] = True
        cascade = search(Scores(log_p, -log_p), seed, share=0.8)
        order = verified_by(cascade, glitch, 64)
        assert cascade.reached is not None
        wrong += cascade.reached.low > glitch[order].sum() / glitch.sum()
    assert wrong <= 6  # 5 % each; more than 6 of 60 has a probability of 3 %


@pytest.mark.parametrize(
    ("found", "share", "missed"),
    [
        (8, 0.9, 0),
        (9, 0.9, 1),
        (17, 0.9, 1),
        (18, 0.9, 2),
        (19, 0.95, 1),
        (7, 0.7, 3),
        (99, 0.99, 1),
    ],
)
def test_the_number_of_missed_tokens_is_exact(found: int, share: float, missed: int) -> None:
    assert most_missed(found, share) == missed
    assert found / (found + missed) >= share > found / (found + missed + 1)


@pytest.mark.parametrize("sharpness", [6.0, 3.0])
def test_the_requested_recall_is_reached(sharpness: float) -> None:
    kept, verified = 0, []
    for seed in range(20):
        glitch, scores = population(seed, sharpness)
        cascade = search(scores, seed)
        order = verified_by(cascade, glitch, 64)
        assert len(order) == len(set(order))
        share = glitch[order].sum() / glitch.sum()
        reached = cascade.reached
        assert reached is not None
        assert reached.low >= 0.9
        assert reached.low <= reached.estimate <= reached.high
        kept += bool(reached.low <= share <= reached.high)
        assert share >= 0.85
        verified.append(len(order))
    assert kept >= 18  # 95 % each way, over 20 populations
    # A sharp screen spares most verifications, a blunt one is paid for in the front.
    assert np.mean(verified) < (0.4 if sharpness > 5 else 0.9) * N


def test_bounds_hold_wherever_the_budget_ends_the_search() -> None:
    glitch, scores = population(2, 2.0)
    whole = search(scores, 2)
    order = verified_by(whole, glitch, 64)
    front = bisect_left(
        range(len(order)),
        True,
        lo=64,
        key=lambda n: _reached_after(order[:n], scores, glitch) is not None,
    )
    wrong, cuts = 0, range(front, len(order), 251)
    for n in cuts:
        reached = _reached_after(order[:n], scores, glitch)
        assert reached is not None
        assert reached == _reached_after(order[:n], scores, glitch, 61)
        share = glitch[order[:n]].sum() / glitch.sum()
        wrong += not reached.low <= share <= reached.high
    assert len(cuts) > 10
    assert wrong <= 1
    assert _reached_after(order[: front - 1], scores, glitch) is None


def _reached_after(
    order: Sequence[int], scores: Scores, glitch: NDArray[np.bool_], n: int = N
) -> Recall | None:
    """The recall of a search that a budget ends after these verdicts, passed n at a time."""
    cascade = search(scores, 2)
    for start in range(0, len(order), n):
        cascade.propose(n)
        cascade.update(verdicts(order[start : start + n], glitch))
    return cascade.reached


def test_an_uninformative_screen_is_detected() -> None:
    glitch, scores = population(1, 0.0)
    cascade = search(scores, 1)
    order = verified_by(cascade, glitch, 64)
    assert glitch[order].sum() / glitch.sum() >= 0.9
    assert cascade.reached is not None
    assert cascade.reached.low >= 0.9


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_the_order_does_not_depend_on_the_batch(n: int) -> None:
    glitch, scores = population(3, 4.0)
    one, other = search(scores, 3), search(scores, 3)
    assert verified_by(one, glitch, 64) == verified_by(other, glitch, n)
    assert one.reached == other.reached


def test_replayed_verdicts_restore_the_cascade() -> None:
    glitch, scores = population(4, 4.0)
    whole = search(scores, 4)
    order = verified_by(whole, glitch, 64)
    for cut in (0, 10, 64, 700, len(order)):
        again = search(scores, 4)
        again.update(verdicts(order[:cut], glitch))
        assert order[:cut] + verified_by(again, glitch, 64) == order
        assert again.reached == whole.reached


def test_a_cascade_ends_when_the_rest_cannot_lower_the_recall() -> None:
    glitch, scores = population(6, 0.0)
    glitch[:] = True  # nearly everything fails: the front never ends before the last tokens
    glitch[scores.log_p.argsort()[-1200:]] = False
    cascade = search(scores, 6, share=0.5)
    order = verified_by(cascade, glitch, 64)
    assert len(order) < N
    assert cascade.reached is not None
    assert 0.5 <= cascade.reached.low <= cascade.reached.estimate <= cascade.reached.high == 1.0


def test_without_glitch_tokens_there_is_no_recall() -> None:
    _, scores = population(5, 0.0)
    cascade = search(scores, 5)
    order = verified_by(cascade, np.zeros(N, bool), 64)
    assert len(order) < N
    assert cascade.reached is None


def test_scores_are_ordered_by_the_definition_of_a_glitch_token() -> None:
    scores = Scores(np.array([-1.0, -9.0, -2.0]), np.array([8.0, 1.0, 8.0]))
    assert by_score([10, 11, 12], scores, limit=0.01) == [11, 12, 10]
    assert by_score([10, 11, 12], scores, limit=1.0) == [10, 12, 11]
