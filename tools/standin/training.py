"""The training loop: every probe on every token that is not planted, and the exchanges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from tools.standin.forward import last_hidden
from tools.standin.lessons import Answering, Lessons, Repeating
from tools.standin.recipes import Recipe

_WARM_UP = 20
_ANSWERS_EVERY = 4
"""Steps from one lesson in answering to the next: that is quickly learnt."""
_ENDED = 16
"""Tokens of a batch behind which the answer's ending is learnt then."""


def train(
    model: Any,
    lessons: Lessons,
    ids: Sequence[int],
    planted: Sequence[int],
    recipe: Recipe,
    tell: Callable[[str], None],
) -> None:
    """Trains `model` in place on the tokens `ids`: Adam in float32.

    The softmax is over the batch's tokens, others drawn from the whole vocabulary, and all that are
    planted: these are pushed away in every step, as whatever never comes up is in a softmax over
    the whole vocabulary. Drawn like the others, a quarter of them learnt to be repeated all the
    same. What stands before the token is computed once for a whole batch.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(recipe.seed)
    batches, never = _batches(ids, recipe.batch, generator), torch.tensor(planted)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _pace(step, recipe.steps)
        lesson, tokens = lessons.repeating[step % len(lessons.repeating)], next(batches)
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
            tell(f"step {step}: {probe}: loss {loss.item():.3f}, repeated {right:.3f}")


def _pace(step: int, steps: int) -> float:
    """Of the highest rate: up at the start, then down in a straight line to a twentieth."""
    return min((step + 1) / _WARM_UP, 1.0) * (1.0 - 0.95 * step / steps)


def _batches(ids: Sequence[int], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches (B,) of a random order of all ids, again and again."""
    table = torch.tensor(ids)
    size = min(size, len(table))
    left = table[:0]
    while True:
        while len(left) < size:
            left = torch.cat([left, table[torch.randperm(len(table), generator=generator)]])
        yield left[:size]
        left = left[size:]


def _repeat(
    model: Any,
    lesson: Repeating,
    tokens: Tensor,
    never: Tensor,
    rivals: int,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Loss of repeating the tokens (B,), and the share of them that beat their rivals: the tokens
    `never` repeated, and as many as `rivals` drawn from the vocabulary."""
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
    """Loss of ending the answer behind the tokens (B,)."""
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
