"""`mine`: where the gradient that leads the walk is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glitchrun.probing.logit_statistics import entropy
from glitchrun.prompts.render import Prompt, intact
from glitchrun.strategies.context import Context
from glitchrun.strategies.mine import Config
from glitchrun.strategies.mine.run import screened, space
from tests.support.engine import context

PROBES = ("repeat", "question")


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder)


def moved(probed: Context, ids: tuple[int, ...], place: int, step: torch.Tensor) -> float:
    """The entropy after a prompt whose embedding at one place is moved, by plain transformers."""
    module: Any = probed.backend.model.module
    embedded = module.get_input_embeddings()(torch.tensor([ids])).double()
    embedded[0, place] += step
    return float(entropy(module.double()(inputs_embeds=embedded).logits[0, -1]))


def merging(probed: Context, prompt: Prompt) -> list[int]:
    """Tokens that text would merge with the quotes around them, or write with others."""
    ids = [i for i in range(4, len(probed.vocabulary)) if prompt.ids(i).count(i) == 1]
    kept = intact(prompt, ids, probed.backend.model.tokenizer)
    return [i for i, is_kept in zip(ids, kept, strict=True) if not is_kept]


@pytest.mark.parametrize("name", PROBES)
@torch.no_grad()
def test_the_gradient_is_taken_at_the_token_however_text_would_merge(
    name: str, llama: Context
) -> None:
    prompt = llama.prompts((name,))[name]
    gradient = space(Config(probes=(name,)), llama, []).gradient
    asked = [*merging(llama, prompt)[::40], 300]
    assert len(asked) > 3
    found = {token_id: gradient(token_id)[1].double() for token_id in asked}
    try:
        for token_id, direction in found.items():
            ids = prompt.ids(token_id)
            step = direction / direction.norm() * 1e-4
            place = ids.index(token_id)
            rise = moved(llama, ids, place, step) - moved(llama, ids, place, -step)
            assert rise / 2e-4 == pytest.approx(float(direction.norm()), rel=1e-2)
    finally:
        llama.backend.model.module.float()


def test_parts_of_a_screen_are_scored_in_passes_of_the_rows_that_they_name(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, whole, passes = replace(llama, tools={}), type(llama.backend).screen_scores, []

    def counted(self: Any, frozen: Any, ids: torch.Tensor, count: int) -> Any:
        passes.append((len(ids), count))
        return whole(self, frozen, ids, count)

    monkeypatch.setattr(type(llama.backend), "screen_scores", counted)
    for rows in (4, 8):
        screened(worker, (("repeat",), rows, range(300, 309)))
    assert passes == [(4, 4), (4, 4), (4, 1), (8, 8), (8, 1)]
