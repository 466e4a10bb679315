"""Probabilities after sequences equal those of one prompt at a time, whatever their batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glitchrun.probing.sequence_scoring import SequenceScorer
from glitchrun.prompts.render import Slot
from glitchrun.strategies.context import Context
from tests.support.engine import context, one_at_a_time
from tests.support.tiny_models import tiny_gpt2

SEQUENCES = [(40,), (41, 300), (5, 6, 7), (42,), *[(i, i + 1) for i in range(60, 71)]]


def slot(prefix: tuple[int, ...]) -> Slot:
    return Slot(prefix, (70, 71, 72), "", "", None)


@pytest.mark.parametrize("prefix", [(0, 30, 31), ()])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_scores_equal_those_of_one_prompt_at_a_time(
    shape: str, prefix: tuple[int, ...], llama_folder: Path, tmp_path: Path
) -> None:
    probed = context(llama_folder if shape == "llama" else tiny_gpt2(tmp_path))
    scorer = SequenceScorer(probed.backend, slot(prefix), (9, 80))
    for sequence, scores in zip(SEQUENCES, scorer.score(SEQUENCES), strict=True):
        p = one_at_a_time(probed, scorer.slot.ids(sequence)).softmax(-1)
        assert scores == pytest.approx((float(p[9]), float(p[80])), rel=1e-4)
    alone = one_at_a_time(probed, scorer.slot.ids(())).softmax(-1)
    assert torch.allclose(scorer.distribution(()), alone, rtol=1e-4, atol=1e-8)


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder)


def test_a_score_does_not_depend_on_its_batch(llama: Context) -> None:
    def score(sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[float, ...]]:
        scorer = SequenceScorer(llama.backend, slot((0, 30)), (9,))
        return dict(zip(sequences, scorer.score(sequences), strict=True))

    whole = score(SEQUENCES)
    assert score(SEQUENCES[::-1]) == whole
    for sequence in SEQUENCES:
        assert score([sequence])[sequence] == whole[sequence]
    assert len(score([SEQUENCES[0]] * 3)) == 1


def test_passes_are_counted_and_grouped_by_length(llama: Context) -> None:
    scorer = SequenceScorer(llama.backend, slot((0, 30)), (9,))
    scorer.score(SEQUENCES)  # 2, 12 and 1 sequences of lengths 1, 2 and 3, 8 at a time
    assert scorer.counters["forwards"] == 1 + 2 + 1


def test_scoring_continues_with_half_the_rows_when_memory_runs_out(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = SequenceScorer(llama.backend, slot((0, 30)), (9,))
    expected = scorer.score(SEQUENCES)
    scorer.counters.clear()
    inner = llama.backend.last_logits

    def small(prefix: tuple[int, ...], ids: torch.Tensor) -> torch.Tensor:
        if len(ids) > 2:
            raise torch.OutOfMemoryError
        return inner(prefix, ids)

    monkeypatch.setattr(llama.backend, "last_logits", small)
    assert [p for (p,) in scorer.score(SEQUENCES)] == pytest.approx([p for (p,) in expected])
    assert scorer.counters["batch_halvings"] == 2
