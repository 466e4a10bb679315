"""The search that learns: what it finds, from which signal, and that it resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from glitchrun.events import ProbeResult, Token, Verified
from glitchrun.search.base import Space
from glitchrun.search.surrogate import NOISES, Features, Surrogate, fit_ridge

SIZE, WIDTH = 1200, 24
TEXTS = [
    ("", " ")[i % 2] + ("word", "Word", "WORD", "w0rd", "слово", "字", "...")[i % 7] + "x" * (i % 5)
    for i in range(SIZE)
]
Verdicts = Callable[[Sequence[int]], list[Verified]]


class Words:
    """A vocabulary whose last ten rows are unused."""

    def __init__(self, table: torch.Tensor) -> None:
        self.norms = table.norm(dim=1)
        self.frequency_ranks = tuple(range(SIZE))

    def text(self, token_id: int) -> str:
        return TEXTS[token_id]

    def ids(self, categories: Sequence[str]) -> list[int]:
        return list(range(SIZE - 10, SIZE)) if "unused" in categories else []


def table(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = 1 + torch.rand(SIZE, 1, generator=generator)
    return lengths * torch.nn.functional.normalize(
        torch.randn(SIZE, WIDTH, generator=generator), dim=1
    )


def space(inputs: torch.Tensor, outputs: torch.Tensor | None = None, seed: int = 1) -> Space:
    return Space(
        ids=torch.arange(SIZE - 10),
        embeddings=inputs if outputs is None else outputs,
        input_embeddings=inputs,
        vocabulary=Words(inputs),  # type: ignore[arg-type]
        seed=seed,
        gradient=lambda token_id: pytest.fail("the surrogate takes no gradients"),
    )


def oracle(p: torch.Tensor, limit: float = 0.5) -> Verdicts:
    """Verdicts where token i is repeated with probability p[i], a glitch below `limit`."""

    def verdicts(ids: Sequence[int]) -> list[Verified]:
        return [
            Verified(
                Token(i, TEXTS[i], TEXTS[i], "normal", 1.0),
                {"repeat": ProbeResult(float(p[i]), 1, 1.0, 0, 0.0, False, "float32")},
                glitch=bool(p[i] < limit),
                emitted=None,
            )
            for i in ids
        ]

    return verdicts


def mined(search: Surrogate, verdicts: Verdicts, budget: int, batch: int = 16) -> list[int]:
    found: list[int] = []
    while len(found) < budget and (ids := search.propose(min(batch, budget - len(found)))):
        search.update(verdicts(ids))
        found += ids
    assert len(set(found)) == len(found)
    return found


def share_found(failing: torch.Tensor, found: Sequence[int]) -> float:
    return float(failing[list(found)].sum() / failing[: SIZE - 10].sum())


@pytest.mark.parametrize("sign", [1, -1])
def test_it_learns_the_sign_of_the_norm(sign: int) -> None:
    inputs = table()
    order = (sign * inputs.norm(dim=1)).argsort()
    p = torch.full((SIZE,), 0.9)
    p[order[:120]] = 0.01
    found = mined(Surrogate(space(inputs)), oracle(p), 240)
    assert share_found(p < 0.5, found) > 0.9


def test_it_learns_a_direction_of_the_embedding() -> None:
    inputs = table()
    along = torch.nn.functional.normalize(inputs, dim=1)[:, 3]
    p = torch.sigmoid(-20 * (along - along.quantile(0.9)))
    assert share_found(p < 0.5, mined(Surrogate(space(inputs)), oracle(p), 300)) > 0.8


def test_it_learns_from_output_embeddings_that_are_not_tied() -> None:
    inputs, outputs = table(), table(5)
    along = torch.nn.functional.normalize(outputs, dim=1)[:, 3]
    p = torch.sigmoid(-20 * (along - along.quantile(0.9)))
    found = mined(Surrogate(space(inputs, outputs)), oracle(p), 300)
    assert share_found(p < 0.5, found) > 0.75


def test_it_learns_from_features_of_the_text() -> None:
    p = torch.tensor([0.01 if "字" in text else 0.9 for text in TEXTS])
    assert share_found(p < 0.5, mined(Surrogate(space(table())), oracle(p), 260)) > 0.75


def test_probability_orders_tokens_before_the_first_glitch_token() -> None:
    """Five glitches among 1,190, at the low end of a slope that all verdicts show."""
    inputs = table()
    along = torch.nn.functional.normalize(inputs, dim=1)[:, 0]
    p = torch.sigmoid(-4 * along)
    limit = float(p[: SIZE - 10].sort().values[4:6].mean())
    assert share_found(p < limit, mined(Surrogate(space(inputs)), oracle(p, limit), 200)) >= 0.8


def test_uninformative_verdicts_leave_a_random_order() -> None:
    constant = oracle(torch.full((SIZE,), 0.9))
    found = [mined(Surrogate(space(table(), seed=s)), constant, SIZE) for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert sorted(found[0]) == list(range(SIZE - 10))


def test_a_resumed_search_refits_at_the_same_points() -> None:
    inputs = table()
    verdicts = oracle(torch.sigmoid(-9 * inputs[:, 3]))
    whole = mined(Surrogate(space(inputs)), verdicts, 200, batch=8)
    for cut in (40, 64, 72, 136):
        resumed = Surrogate(space(inputs))
        for start in range(0, cut, 8):
            resumed.update(verdicts(whole[start : start + 8]))
        assert mined(resumed, verdicts, 200 - cut, batch=8) == whole[cut:]


def test_refits_are_counted_and_become_rarer() -> None:
    search = Surrogate(space(table()))
    mined(search, oracle(torch.full((SIZE,), 0.9)), 640, batch=8)
    assert 25 < search.counters["refits"] < 40  # of 73 batches; (1 + 1/16) ** 38 = 10


def test_features_are_centred_blocks_whose_products_match_their_rows() -> None:
    features = Features(space(table(), table(5)))
    rows = features.rows(np.arange(SIZE - 10))
    assert np.abs(rows.mean(axis=0)).max() < 1e-5
    assert (rows**2).sum(axis=1).mean() == pytest.approx(4, rel=1e-3)  # four blocks
    weights = np.random.default_rng(0).normal(size=rows.shape[1])
    assert features.times(weights) == pytest.approx(rows @ weights, abs=1e-3)


@pytest.mark.parametrize("n", [20, 80])
def test_ridge_agrees_between_both_forms_and_maximizes_the_likelihood(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(n, 40))
    target = rows @ rng.normal(size=40) + rng.normal(size=n) * 3
    target -= target.mean()
    weights = fit_ridge(rows, target)
    by_evidence = [_evidence(rows, target, noise) for noise in NOISES]
    noise = NOISES[int(np.argmax(by_evidence))]
    plain = np.linalg.solve(rows.T @ rows + noise * np.eye(40), rows.T @ target)
    assert weights == pytest.approx(plain, abs=1e-8)


def _evidence(rows: np.ndarray, target: np.ndarray, noise: float) -> float:
    """Log evidence with the scale profiled out, written down directly."""
    covariance = rows @ rows.T + noise * np.eye(len(rows))
    misfit = target @ np.linalg.solve(covariance, target)
    return -0.5 * (len(rows) * np.log(misfit) + np.linalg.slogdet(covariance)[1])
