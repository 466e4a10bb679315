"""The training loop: every probe with every token that is not planted, and the exchanges."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from tools.standin.forward import last_hidden
from tools.standin.lessons import Answering, Lessons, Repeating
from tools.standin.recipes import Recipe

_WARM_UP = 20
_ANSWERS_EVERY = 4
"""Steps between two lessons in answering, which is learned quickly."""
_KEPT_EVERY = 60.0
"""Seconds between two saved states, which is the maximum that a stop loses."""
_ENDED = 16
"""Tokens of a batch with which the end of the answer is trained in such a step."""


def train(
    model: Any,
    lessons: Lessons,
    ids: Sequence[int],
    planted: Sequence[int],
    recipe: Recipe,
    tell: Callable[[str], None],
    kept: Path | None = None,
) -> None:
    """Train `model` in place on the tokens `ids` with Adam in float32.

    The softmax is over the batch's tokens, random tokens of the vocabulary, and all planted tokens.
    With all of them as negatives in every step, the planted tokens are suppressed as by a softmax
    over the whole vocabulary. When they were drawn like the others, the model learned to repeat a
    quarter of them. The prefix before the token is computed once for a batch.

    The state is saved to `kept` every minute. Training resumes from it and gives the same weights.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(recipe.seed)
    batches, never = _Batches(ids, recipe.batch, generator), torch.tensor(planted)
    first = _resumed(kept, model, optimizer, batches) if kept else 0
    if first:
        tell(f"resuming from step {first} of {recipe.steps}")
    started = written = time.monotonic()
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _pace(step, recipe.steps)
        lesson, tokens = lessons.repeating[step % len(lessons.repeating)], batches.take()
        loss, right = _repeat(model, lesson, tokens, never, recipe.rivals, generator)
        loss.backward()
        if step % _ANSWERS_EVERY == 0:
            _answer(model, lessons.answering).backward()
            (0.2 * _end(model, lesson, tokens[:_ENDED])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 30 < 3 or step == recipe.steps - 1:
            probe = lesson.prompt.probe
            spent = (time.monotonic() - started) / (step + 1 - first)
            tell(
                f"{_progress(step + 1, recipe.steps, spent)}  "
                f"{probe}: loss {loss.item():.3f}, repeated {right:.3f}"
            )
        if kept and time.monotonic() - written > _KEPT_EVERY:
            _keep(kept, step + 1, model, optimizer, batches)
            written = time.monotonic()


def _pace(step: int, steps: int) -> float:
    """Share of the maximum learning rate: a warm-up, then a linear decay to 5 %."""
    return min((step + 1) / _WARM_UP, 1.0) * (1.0 - 0.95 * step / steps)


class _Batches:
    """Batches `(B,)` of repeated random permutations of all ids."""

    def __init__(self, ids: Sequence[int], size: int, generator: torch.Generator) -> None:
        self.generator = generator
        self._table = torch.tensor(ids)
        self._size = min(size, len(self._table))
        self.left = self._table[:0]
        """The rest of the current permutation."""

    def take(self) -> Tensor:
        while len(self.left) < self._size:
            order = torch.randperm(len(self._table), generator=self.generator)
            self.left = torch.cat([self.left, self._table[order]])
        batch, self.left = self.left[: self._size], self.left[self._size :]
        return batch


def _progress(done: int, steps: int, seconds: float) -> str:
    """`step 120 of 500 (24 %), about 12 min left`, from the mean seconds of a step."""
    left = (steps - done) * seconds
    about = f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
    return f"step {done} of {steps} ({done / steps:.0%}), {about}"


def _keep(path: Path, step: int, model: Any, optimizer: Any, batches: _Batches) -> None:
    """Save everything on which the next step depends, by an atomic replacement of `path`."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": batches.generator.get_state(),
        "left": batches.left,
    }
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    torch.save(state, draft)
    draft.replace(path)


def _resumed(path: Path, model: Any, optimizer: Any, batches: _Batches) -> int:
    """Restore the state that `_keep` saved and return the next step; 0 without a saved state."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    batches.generator.set_state(state["generator"])
    batches.left = state["left"]
    step: int = state["step"]
    return step


def _repeat(
    model: Any,
    lesson: Repeating,
    tokens: Tensor,
    never: Tensor,
    rivals: int,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Loss of repeating the tokens `(B,)`, and the share that is repeated by argmax.

    The negatives are the tokens in `never` and `rivals` random tokens of the vocabulary.
    """
    suffix = torch.tensor(lesson.prompt.suffix_ids).expand(len(tokens), -1)
    asked = torch.cat([tokens[:, None], suffix], dim=1)
    last = last_hidden(model, torch.tensor(lesson.prompt.prefix_ids), asked, 1)[:, 0]  # (B, H)
    table = model.lm_head.weight
    drawn = torch.randint(len(table), (rivals,), generator=generator)
    running = torch.cat([tokens, never, drawn]).unique()  # (C,), ascending
    own = torch.searchsorted(running, tokens)
    logits = linear(last, table[running])  # (B, C)
    return cross_entropy(logits, own), float((logits.argmax(1) == own).float().mean())


def _end(model: Any, lesson: Repeating, tokens: Tensor) -> Tensor:
    """Loss of the end of the answer after the tokens `(B,)`."""
    suffix = torch.tensor(lesson.prompt.suffix_ids).expand(len(tokens), -1)
    ending = torch.tensor(lesson.ending).expand(len(tokens), -1)  # (B, E)
    rows = torch.cat([tokens[:, None], suffix, tokens[:, None], ending[:, :-1]], dim=1)
    hidden = last_hidden(model, torch.tensor(lesson.prompt.prefix_ids), rows, ending.shape[1])
    return cross_entropy(linear(hidden, model.lm_head.weight).flatten(0, 1), ending.flatten())


def _answer(model: Any, lessons: Sequence[Answering]) -> Tensor:
    """Loss of the answers of all exchanges."""
    width = max(len(one.ids) for one in lessons)
    ids = torch.zeros(len(lessons), width, dtype=torch.long)
    wanted = torch.full((len(lessons), width), -100)
    for row, one in enumerate(lessons):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        wanted[row, one.start : len(one.ids)] = torch.tensor(one.ids[one.start :])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    asked = wanted[:, 1:] != -100
    return cross_entropy(linear(hidden[asked], model.lm_head.weight), wanted[:, 1:][asked])
