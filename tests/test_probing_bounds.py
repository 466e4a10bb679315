"""The engine at its limits: probabilities at the threshold, overflow, wide nuclei."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glitchrun.errors import RunError
from glitchrun.probing import token_choice
from glitchrun.probing.logit_statistics import entropy, measure
from glitchrun.probing.verifier import Verifier
from tests.support import tiny_models
from tests.support.engine import context


def test_a_probability_within_rounding_of_the_threshold_is_a_near_tie() -> None:
    logits = torch.log(torch.tensor([[0.90, 0.0100001, 0.0899999]])).repeat(3, 1)
    found = measure(logits, torch.tensor([1, 2, 0]))
    assert found.near_ties(1e-3, 0.01).tolist() == [True, False, False]
    assert found.near_ties(1e-3).tolist() == [False, False, False]
    assert found.near_ties(1e-3, 0.9).tolist() == [
        False,
        False,
        False,
    ]  # it passed: p is ignored


def test_probabilities_near_the_threshold_are_re_evaluated_in_float32(tmp_path: Path) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "narrow", dtype=torch.bfloat16)
    probed = context(folder, generic=True)  # its first passes are in bfloat16 on any CPU
    prompts = probed.prompts(("repeat",))
    ids = list(range(4, 60))
    first = [r["repeat"] for r in Verifier(probed.backend, prompts, rows=16).verify(ids)]
    at = next(i for i, r in enumerate(first) if r.decided_in == "bfloat16" and not r.passed)
    settled = Verifier(probed.backend, prompts, rows=16, limit=first[at].p).verify(ids)
    assert settled[at]["repeat"].decided_in == "float32"


def test_numbers_that_overflow_are_an_error_not_a_verdict(tmp_path: Path) -> None:
    probed = context(tiny_models.tiny_llama(tmp_path / "m"))
    backend, prompt = probed.backend, probed.prompts(("repeat",))["repeat"]
    backend.model.module.lm_head.weight.data[5] = torch.inf
    with pytest.raises(RunError, match="not finite"):
        Verifier(backend, {"repeat": prompt}, rows=4).verify([30])
    with pytest.raises(RunError, match="not finite"):
        backend.logits_alone(prompt.ids(30), float32=True)
    with pytest.raises(RunError, match="not finite"):
        backend.gradient(prompt.ids(30), prompt.position, entropy)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_a_wide_nucleus_equals_that_of_a_full_sort(top_p: float) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    log_p = logits - logits.logsumexp(0)
    ordered = log_p.sort(descending=True, stable=True)
    before = ordered.values.exp().cumsum(0) - ordered.values.exp()
    inside = int((before < top_p).sum())
    values, ids = token_choice._sorted_candidates(log_p.numpy(), top_p)
    assert inside > 256
    assert ids[:inside].tolist() == ordered.indices[:inside].tolist()
    assert values[:inside].tolist() == ordered.values[:inside].tolist()
