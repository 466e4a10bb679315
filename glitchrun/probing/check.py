"""Holds backends against a model's plain forward pass over whole prompts, on the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend
from glitchrun.probing.states import Keeping

TOKENS = 16
Logits = list[Tensor]
"""After each of several passes, `(B, V)` each, float32 on the CPU."""


@dataclass(frozen=True, slots=True)
class Course:
    """Ids as a run asks for them: a prefix, a suffix a row, and tokens that follow one by one."""

    rows: int
    prefix: int
    suffix: int
    chosen: tuple[int, ...]
    """The rows that go on after the suffix: left out, repeated and reordered."""
    steps: int

    def ids(self, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix `(P,)`, suffixes `(B, S)` and following tokens `(R, steps)`, spread over the
        vocabulary."""
        each = self.suffix + self.steps
        spread = torch.arange(self.prefix + self.rows * each) * 7919 % vocab
        rows = spread[self.prefix :].view(self.rows, each)
        chosen = list(self.chosen)
        return spread[: self.prefix], rows[:, : self.suffix], rows[chosen, self.suffix :]


FIRST = Course(rows=TOKENS, prefix=6, suffix=5, chosen=(TOKENS - 1, 3, 3), steps=1)
SHORT = Course(rows=3, prefix=2, suffix=2, chosen=(2, 0, 2, 2, 1), steps=2)
"""Shorter than the windows of convolutions."""


def run(backend: Backend, course: Course) -> Logits:
    """What a backend makes of a course in float32."""
    prefix, suffixes, following = course.ids(backend.model.vocab_size)
    cache = backend.start(prefix.tolist(), course.rows, float32=True)
    logits, cache = backend.step(suffixes, cache, float32=True)
    found = [logits.cpu()]
    cache = backend.select(cache, torch.tensor(course.chosen))
    for step in range(course.steps):
        logits, cache = backend.step(following[:, step : step + 1], cache, float32=True)
        found.append(logits.cpu())
    return found


def at_once(backend: Backend, course: Course) -> Tensor:
    """What a backend makes of a course's suffixes where nothing is to follow them, `(B, V)`."""
    prefix, suffixes, _ = course.ids(backend.model.vocab_size)
    return backend.last_logits(prefix.tolist(), suffixes, float32=True).cpu()


def plain(model: LoadedModel, course: Course) -> Logits:
    """What the model's plain forward pass makes of the same whole prompts, without a cache.

    The first prompt is run alone as well: its logits may not depend on the others.
    """
    backend = Backend(model, Keeping.NOTHING)
    found = run(backend, course)
    prefix, suffixes, _ = course.ids(model.vocab_size)
    alone = backend.logits_alone([*prefix.tolist(), *suffixes[0].tolist()], float32=True)
    found[0][0] = alone.cpu()
    return found


def apart(ours: Logits, theirs: Logits) -> float:
    """How far two lie apart at most, as a share of the largest logit."""
    scale = max(float(part.abs().max()) for part in theirs)
    pairs = zip(ours, theirs, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / max(scale, 1.0)


def in_its_own_arithmetic(backend: Backend, courses: Sequence[Course]) -> None:
    """Runs courses in the arithmetic of the weights, for the errors alone.

    Raises:
        RunError: the model's forward pass failed.
    """
    for course in courses:
        prefix, suffixes, following = course.ids(backend.model.vocab_size)
        cache = backend.start(prefix.tolist(), course.rows)
        _, cache = backend.step(suffixes, cache)
        cache = backend.select(cache, torch.tensor(course.chosen))
        backend.step(following[:, :1], cache)


def looks_ahead(model: LoadedModel) -> bool:
    """Whether logits at a position change with the tokens after it: then they are no prediction."""
    call, device = Backend(model)._call, model.input_embeddings.device
    first, second = (
        torch.tensor([[*range(3, 9), *tail]], device=device) % model.vocab_size
        for tail in ((11, 12), (17, 19))
    )
    with torch.no_grad():
        (one, _), (other, _) = (call(ids, every=True) for ids in (first, second))
    scale = one.abs().max().clamp(min=1.0)
    return bool((one[:, :6] - other[:, :6]).abs().max() > 1e-2 * scale)
