"""Sampled attempts, and their independence of the batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glitchrun.events import Token
from glitchrun.probing import batch_invariance, continuous_batch, token_choice
from glitchrun.probing.backend import Backend
from glitchrun.probing.batch_invariance import BatchShape
from glitchrun.probing.continuous_batch import Continuation, ContinuousBatch, PlannedAttempt, fork
from glitchrun.probing.sampling import Sampler, StopRule
from glitchrun.probing.token_choice import SamplingParams, choose_tokens, gumbel_noise, rng_key
from glitchrun.strategies.context import Context
from tests.support import tiny_models
from tests.support.engine import context, one_at_a_time

ATTEMPTS = 40


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder)


def _sampler(probed: Context, rows: int, **changes: object) -> Sampler:
    settings: dict[str, object] = {
        "params": SamplingParams(1.0, 0.95),
        "max_new_tokens": 6,
        "rows": rows,
        "seed": 5,
        "decode": probed.backend.model.tokenizer.decode,
        "stop_ids": frozenset({1}),
    }
    return Sampler(probed.backend, probed.prompts("strict"), **settings | changes)  # type: ignore[arg-type]


def _token(token_id: int, text: str = "never matched") -> Token:
    return Token(token_id, text, "x", "normal", 1.0)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def attempted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Context, list[Token], list[tuple[bool, ...]]]:
    """A model, tokens, and the attempts on each token when it is sampled alone."""
    folder = tmp_path_factory.mktemp("sampled") / "m"
    # On most CPUs the fast backend computes bfloat16 in float32; the generic one does not.
    narrow = request.param == torch.bfloat16
    probed = context(tiny_models.tiny_llama(folder, dtype=request.param), generic=narrow)
    tokens = [probed.vocabulary.token(i) for i in range(100, 108)]
    sampler = _sampler(probed, 256)
    return probed, tokens, [sampler.sample([token], ATTEMPTS)[0] for token in tokens]


@pytest.mark.parametrize("rows", [1, 7, 64, 256])
def test_attempts_are_the_same_alone_and_in_any_batch(
    attempted: tuple[Context, list[Token], list[tuple[bool, ...]]], rows: int
) -> None:
    probed, tokens, alone = attempted
    few, most = {1: (2, 4), 7: (4, 10)}.get(rows, (len(tokens), ATTEMPTS))
    order = random.Random(rows).sample(range(len(tokens)), few)
    found = _sampler(probed, rows).sample([tokens[i] for i in order], most)
    assert found == [alone[i][:most] for i in order]
    assert {outcome for outcomes in alone for outcome in outcomes} == {True, False}


def test_attempts_are_the_same_if_every_pass_must_have_one_shape(
    attempted: tuple[Context, list[Token], list[tuple[bool, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed, tokens, _ = attempted
    if probed.backend.arithmetic == torch.float32:
        assert batch_invariance.batch_shape(
            probed.backend, probed.prompts("strict")["repeat"], 99
        ) == BatchShape(99)
        return
    monkeypatch.setattr(batch_invariance, "is_batch_invariant", lambda *_: False)
    sizes: list[int] = []
    whole = Backend.step

    def counted(self: Backend, ids: torch.Tensor, *rest: object, **options: bool) -> object:
        sizes.append(len(ids))
        return whole(self, ids, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Backend, "step", counted)
    wide, narrow = _sampler(probed, 256), _sampler(probed, 7)
    assert wide.sample(tokens, 4) == narrow.sample(tokens[::-1], 4)[::-1]
    assert {*sizes} == {64}
    passes = sum(sampler.counters["sampling_forwards"] for sampler in (wide, narrow))
    assert len(sizes) == passes


@pytest.mark.parametrize("attempts", [13, 25])
def test_requests_that_do_not_fit_are_split_while_rows_run(
    attempts: int, llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [llama.vocabulary.token(i) for i in range(100, 106)]
    expected = _sampler(llama, 512).attempt(tokens, attempts)
    running: list[int] = []
    step = ContinuousBatch._step

    def counted(self: ContinuousBatch[Any]) -> Any:
        running.append(sum(row.size for row in self._rows))
        return step(self)

    monkeypatch.setattr(ContinuousBatch, "_step", counted)
    assert _sampler(llama, 24).attempt(tokens, attempts) == expected
    assert max(running) == 24
    assert np.mean(running) > 0.8 * 24


def test_a_range_of_attempts_equals_that_part_of_all(llama: Context) -> None:
    tokens = [llama.vocabulary.token(i) for i in (100, 110, 120)]
    whole = _sampler(llama, 64).sample(tokens, 9)
    parts = _sampler(llama, 64).sample(tokens, [range(2, 5), range(0), range(8, 9)])
    assert parts == [whole[0][2:5], (), whole[2][8:9]]


def test_rows_that_depend_on_the_batch_are_detected(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = llama.prompts(("repeat",))["repeat"]
    whole = type(llama.backend).step

    def uneven(self: Backend, ids: torch.Tensor, cache: object, **options: bool) -> object:
        logits, cache = whole(self, ids, cache, **options)
        return logits * (1 + 1e-6 * (len(ids) == 17)), cache

    assert batch_invariance.is_batch_invariant(llama.backend, prompt) in (True, False)
    monkeypatch.setattr(type(llama.backend), "step", uneven)
    assert not batch_invariance.is_batch_invariant(llama.backend, prompt)


def test_near_ties_are_drawn_again_from_a_pass_of_their_own(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [llama.vocabulary.token(i) for i in range(100, 106)]
    usual = _sampler(llama, 64).sample(tokens, 3)
    monkeypatch.setattr(continuous_batch, "_FLOAT32_ROUNDING", 1.0)  # everything is a near-tie
    sampler = _sampler(llama, 64)
    assert sampler.sample(tokens, 3) == usual
    assert sampler.counters["resampled"] == sampler.counters["drawn"] > 0


def test_attempts_with_the_same_ids_share_one_row(llama: Context) -> None:
    tokens = [llama.vocabulary.token(i) for i in range(100, 104)]
    sampler = _sampler(llama, 64, params=SamplingParams(0.0), max_new_tokens=5)
    sampler.sample(tokens, 8)
    assert sampler.counters["rows"] <= sampler.counters["drawn"] / 8


def test_sampling_continues_with_half_the_batch_when_memory_runs_out(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [llama.vocabulary.token(i) for i in range(100, 112)]
    expected = _sampler(llama, 64).sample(tokens, 2)
    for name in ("step", "ragged_step"):
        whole = getattr(type(llama.backend), name)

        def too_small(
            self: Backend, ids: torch.Tensor, *rest: object, whole: Any = whole, **options: bool
        ) -> object:
            if len(ids) > 4:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 GiB")
            return whole(self, ids, *rest, **options)

        monkeypatch.setattr(type(llama.backend), name, too_small)
    sampler = _sampler(llama, 16)
    assert sampler.sample(tokens, 2) == expected
    assert sampler.rows == 4
    assert sampler.counters["batch_halvings"] == 2


def test_an_attempt_succeeds_by_id_or_by_text(llama: Context) -> None:
    """Greedy sampling makes the id of every continuation known."""
    prompt = llama.prompts(("repeat",))["repeat"]
    newest = int(one_at_a_time(llama, prompt.ids(150)).argmax())
    greedy = {"params": SamplingParams(0.0), "max_new_tokens": 1}
    assert _sampler(llama, 8, **greedy).sample([_token(150)], 2) == [(True, True)]
    text = llama.backend.model.tokenizer.decode([newest])
    if "\ufffd" not in text and text.strip():
        assert _sampler(llama, 8, **greedy).sample([_token(150, text)], 2) == [(False, False)]


def _check(
    text: str, ids: Sequence[int], token: Token, stop: str | None = None
) -> tuple[bool, bool]:
    return StopRule(lambda _: text, frozenset({2}), stop).check(Continuation(token, tuple(ids), ()))


def test_a_continuation_ends_at_a_match_or_a_stop() -> None:
    token = _token(9, " cat")
    assert _check("a dog", [5, 6], token) == (False, False)
    assert _check("a dog", [5, 2], token) == (True, False)
    assert _check("a cat", [5, 6], token) == (True, True)
    assert _check("", [9], token) == (True, True)
    assert _check("a dog</s> cat", [5, 6], token, "</s>") == (True, False)
    assert _check("a cat</s>", [5, 6], token, "</s>") == (True, True)
    assert _check("a \ufffd", [5], replace(token, text="\ufffd")) == (False, False)
    assert _check("a  b", [5], replace(token, text="  ")) == (True, True)


def test_match_sets_what_counts_as_the_token() -> None:
    text = Continuation(_token(9, " cat"), (5, 6), ())
    by_text = StopRule(lambda _: "a cat", frozenset(), match="text")
    by_id = StopRule(lambda _: "a cat", frozenset(), match="id")
    assert by_text.check(text) == (True, True)
    assert by_id.check(text) == (False, False)
    named = replace(text, ids=(5, 9))
    assert by_id.check(named) == (True, True)
    assert StopRule(lambda _: "a dog", frozenset(), match="text").check(named) == (False, False)


@pytest.mark.parametrize("rows", [3, 256])
def test_distinct_continuations_are_counted_once(llama: Context, rows: int) -> None:
    """However attempts are split into micro-batches; greedy ones are all the same."""
    tokens = [_token(150), _token(151)]
    greedy = _sampler(llama, rows, params=SamplingParams(0.0))
    greedy.sample(tokens, 5)
    assert greedy.counters["distinct"] == 2 * 3  # tokens, probes
    short = _sampler(llama, rows, max_new_tokens=1)
    short.sample(tokens, 5)
    whole = _sampler(llama, rows)
    whole.sample(tokens, 5)
    assert 6 < short.counters["distinct"] <= whole.counters["distinct"] <= 30


def test_continuations_fork_where_attempts_choose_differently() -> None:
    attempts = [[PlannedAttempt(_token(t), i, 0) for i in range(3)] for t in (7, 8)]
    continuations = [Continuation(some[0].token, (), tuple(some)) for some in attempts]
    draws = [(row, a) for row, one in enumerate(continuations) for a in one.attempts]
    found = fork(continuations, draws, [4, 5, 4, 6, 6, 6])
    assert [(row, one.ids, len(one.attempts)) for row, one in found] == [
        (0, (4,), 2),
        (0, (5,), 1),
        (1, (6,), 3),
    ]


def test_gumbel_noise_depends_on_its_key_alone_and_has_its_distribution() -> None:
    key = rng_key(1, 2, "repeat", 3)
    assert key != rng_key(1, 2, "repeat", 4) != rng_key(1, 3, "repeat", 3)
    ids = np.arange(20_000)
    noise = gumbel_noise(key, 0, ids)
    assert np.array_equal(noise[[5, 7]], gumbel_noise(key, 0, np.array([5, 7])))
    both = gumbel_noise(np.array([[key], [key + 1]], dtype=np.uint64), 0, ids)
    assert np.array_equal(both[0], noise)
    assert np.array_equal(both[1], gumbel_noise(key + 1, 0, ids))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.03)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.06)
    assert abs(np.corrcoef(noise, gumbel_noise(key, 1, ids))[0, 1]) < 0.03


def test_sampled_tokens_follow_the_nucleus() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    keys = [rng_key(0, 0, "repeat", i) for i in range(4000)]
    chosen, _ = choose_tokens(
        logits, [0] * 4000, keys, [0] * len(keys), SamplingParams(1.0, 0.9), 0.0
    )
    share = np.bincount(chosen, minlength=4) / 4000
    assert share[3] == 0.0  # the first three already have 0.95
    assert share[:3] == pytest.approx(np.array([0.5, 0.3, 0.15]) / 0.95, abs=0.03)


def test_a_wide_nucleus_reaches_beyond_the_likely_candidates() -> None:
    logits = torch.zeros(200, 2000)
    keys = [rng_key(0, 0, "repeat", i) for i in range(200)]
    chosen, _ = choose_tokens(
        logits, range(200), keys, [0] * len(keys), SamplingParams(1.0, 1.0), 0.0
    )
    assert len(set(chosen)) > 150
    assert max(chosen) > 1500


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("top_p", [0.4, 0.9, 1.0])
def test_draws_equal_those_of_a_plain_loop(
    top_p: float, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares several draws from peaked, ordinary and flat rows with the definition."""
    if at_once:  # as on a GPU
        monkeypatch.setattr(token_choice, "_likely_by_rows", token_choice._likely_at_once)
    spread = torch.tensor([0.0, 1.0, 3.0, 8.0, 20.0]).repeat(4)[:, None]
    logits = torch.randn(20, 900, generator=torch.Generator().manual_seed(1)) * spread
    rows = [row for row in range(20) for _ in range(5)][::-1]
    keys = [rng_key(3, row, "x", i) for i, row in enumerate(rows)]
    chosen, _ = choose_tokens(logits, rows, keys, [4] * len(keys), SamplingParams(0.7, top_p), 0.0)
    for row, key, found in zip(rows, keys, chosen, strict=True):
        p = (logits[row].double() / 0.7).softmax(-1).numpy()
        order = np.lexsort((np.arange(900), -p))
        inside = order[np.cumsum(p[order]) - p[order] < top_p]
        assert found == inside[(np.log(p[inside]) + gumbel_noise(key, 4, inside)).argmax()]


def test_draws_within_rounding_are_near_ties() -> None:
    logits = torch.log(torch.tensor([[0.6, 0.4], [0.999999, 1e-6]]))
    keys = [rng_key(0, 0, "x", i) for i in range(300)]
    _, near_ties = choose_tokens(
        logits, [0] * 300, keys, [0] * len(keys), SamplingParams(1.0, 1.0), 0.05
    )
    assert 10 < sum(near_ties) < 150  # |noise| and log-odds lie within 0.2 that often
    _, clear = choose_tokens(
        logits, [1] * 300, keys, [0] * len(keys), SamplingParams(1.0, 0.9), 1e-5
    )
    assert not any(clear)
    _, close = choose_tokens(logits, [0, 1], keys[:2], [0, 0], SamplingParams(0.0), 0.5)
    assert close == [True, False]


@pytest.mark.parametrize(
    ("shares", "top_p"), [([0.6, 0.2, 0.2], 0.75), ([0.2] * 5, 0.3), ([0.5, 0.3, 0.15, 0.05], 0.9)]
)
def test_candidates_that_rounding_may_swap_at_the_edge_of_the_nucleus_are_near_ties(
    shares: list[float], top_p: float
) -> None:
    keys = [rng_key(0, 0, "x", i) for i in range(500)]
    found = []
    for raised in (1, 2):
        logits = torch.log(torch.tensor([shares]))
        logits[0, raised] += 1e-6
        params = SamplingParams(1.0, top_p)
        found.append(choose_tokens(logits, [0] * 500, keys, [0] * 500, params, 1e-5))
    (one, tied), (other, _) = found
    changed = [a != b for a, b in zip(one, other, strict=True)]
    assert any(changed) == (len(shares) != 4)  # there the edge is clear
    assert all(flag for flag, is_changed in zip(tied, changed, strict=True) if is_changed)
    assert any(tied) == any(changed)
