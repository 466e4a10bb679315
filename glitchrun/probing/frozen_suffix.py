"""Frozen-suffix screening: scores of tokens from two positions of the prompt.

The suffix between the token and the last position is not run: its keys and values are frozen at
their mean over a few calibration tokens. That is 2 positions instead of about 17, and it ranks
severe tokens (probability below 1e-3) almost as verification does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glitchrun.errors import RunError
from glitchrun.probing.backend import Backend
from glitchrun.probing.logit_statistics import ROUNDING
from glitchrun.probing.memory_limits import screening_rows
from glitchrun.prompts.render import Prompt

CALIBRATION = 64
"""Tokens over which the frozen keys and values are averaged."""
_DIGITS = 4
"""Decimals kept of scores, which only order tokens. A rounded score does not depend on the batch,
unless it lies on the edge between two."""


class Screener:
    """Scores tokens with one probe's prompt, whose suffix is frozen.

    Raises:
        RunError: The prompt or the model does not allow it.
    """

    def __init__(
        self,
        backend: Backend,
        prompt: Prompt,
        scope: Sequence[int],
        seed: int,
        free_bytes: int,
        rows: int | None = None,
    ) -> None:
        """`rows` are those of every pass; None for as many as fit into `free_bytes`."""
        if not prompt.prefix_ids or not prompt.suffix_ids:
            raise RunError(
                "search: screen and cascade need a prompt with text before and after the token; "
                "this template has none on one side: use search: surrogate"
            )
        refuse_unscreened(backend)
        self._backend = backend
        positions = len(prompt.prefix_ids) + 1 + len(prompt.suffix_ids)
        fitting = rows or screening_rows(backend.model, positions, free_bytes)
        self.rows = backend.screen_rows or fitting
        """Rows of every pass."""
        drawn = np.random.default_rng(seed).permutation(np.asarray(scope))[:CALIBRATION]
        self._frozen = backend.freeze(
            prompt.prefix_ids, prompt.suffix_ids, torch.from_numpy(np.sort(drawn)), coarse=True
        )

    def screen(self, token_ids: Sequence[int]) -> tuple[list[float], list[float]]:
        """Returns each token's log-probability (nats) and gap (largest logit minus the token's).

        Every pass has the same shape; the last one is padded with its first token.
        """
        scored = [
            self._score(token_ids[start : start + self.rows])
            for start in range(0, len(token_ids), self.rows)
        ]
        log_p = [value for part, _ in scored for value in part]
        return log_p, [value for _, part in scored for value in part]

    def _score(self, chunk: Sequence[int]) -> tuple[list[float], list[float]]:
        rows = len(chunk) if self._backend.screen_rows else self.rows
        padded = torch.tensor([*chunk, *[chunk[0]] * (rows - len(chunk))])
        log_p, gap = self._backend.screen_scores(self._frozen, padded, len(chunk))
        return _rounded(log_p), _rounded(gap)


def _rounded(column: Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in column.tolist()]


def refuse_unscreened(backend: Backend) -> None:
    """Refuses a model that cannot be screened.

    Raises:
        RunError: Says why, and which search to use instead.
    """
    reason = why_not_screenable(backend.trial)
    if reason is not None:
        raise RunError(
            f"search: screen and cascade cannot screen {backend.model.architecture}: {reason}; use "
            "search: surrogate"
        )


def why_not_screenable(backend: Backend) -> str | None:
    """Returns why a model cannot be screened, or None if it can.

    This is tried: with the suffix frozen at the keys and values of the token itself, the screen's
    logits must be those of the whole prompt.
    """
    size = backend.model.vocab_size
    prefix, token, *suffix = (number * 7919 % size for number in range(1, 7))
    try:
        frozen = backend.freeze([prefix], suffix, torch.tensor([token]))
        screened = backend.screen(frozen, torch.tensor([token, token]))
    except RunError as error:
        return str(error)
    ids = [prefix, token, *suffix]
    whole = backend.logits_alone(ids, float32=backend.arithmetic == torch.float32)
    whole = whole.to(screened.device)
    difference = (screened - whole).abs().max() / whole.abs().max().clamp(min=1.0)
    if bool(difference < ROUNDING[backend.arithmetic]):
        return None
    return "its logits change where a part of the prompt is frozen"
