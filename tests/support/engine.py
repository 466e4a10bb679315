"""Strategy contexts on tiny models, and the plain forward pass that results are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.model import load
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.prompts.detect import detect
from glitchrun.spec.types import ModelSpec, Spec
from glitchrun.strategies.context import Context
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import row_norms

CACHE = cache_folder()


def context(
    path: Path | str,
    *,
    quantization: str = "none",
    device: str = "cpu",
    generic: bool = False,
    **settings: Any,
) -> Context:
    """Returns the context of a strategy on the model at `path`; other settings go to the Spec."""
    settings.setdefault("template", "chatml")
    model_spec = ModelSpec(path=str(path), quantization=quantization, device=device)
    spec = Spec(name="test", model=model_spec, steps=(), **settings)
    model = load(spec.model, CACHE)
    return Context(
        spec=spec,
        backend=Backend(model) if generic else best_backend(model)[0],
        vocabulary=Vocabulary(model.tokenizer, row_norms(model.embedding_blocks())),
        template=detect(spec.template, model.tokenizer, model.config, spec.model.path),
        free_bytes=1 << 30,
        earlier={},
    )


@torch.no_grad()
def one_at_a_time(context: Context, ids: Sequence[int]) -> torch.Tensor:
    """Returns next-token logits `(V,)` after one whole prompt, as a user of transformers would."""
    module = context.backend.model.module
    return module(input_ids=torch.tensor([list(ids)])).logits[0, -1].float()
