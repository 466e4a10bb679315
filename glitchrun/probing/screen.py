"""Frozen-suffix screening: what a model makes of a token, from two positions of the prompt.

The suffix between the token and the last position is not run: its keys and values stand frozen at
their mean over a few calibration tokens. That is 2 positions instead of some 17, and it ranks the
tokens that a model all but cannot say (probability below 1e-3) nearly as verification does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glitchrun.errors import RunError
from glitchrun.probing.backend import Backend
from glitchrun.probing.memory_limits import screening_rows
from glitchrun.prompts.render import Prompt

CALIBRATION = 64
"""Tokens whose average the suffix is frozen at."""
_ROWS_MEASURED = 16
"""Rows measured at a time on a CPU: some megabytes, which stay in the cache and in the heap."""
_DIGITS = 4
"""Decimals kept of scores. They only order tokens, and coarse ones do not depend on the batch but
where a score lies on the edge between two."""


class Screener:
    """Scores tokens by one probe's prompt with its suffix frozen."""

    def __init__(
        self, backend: Backend, prompt: Prompt, scope: Sequence[int], seed: int, free_bytes: int
    ) -> None:
        if not prompt.prefix_ids or not prompt.suffix_ids:
            raise RunError(
                "search: screen and cascade need a prompt with text before and after the token; "
                "this template's has none on one side: take search: surrogate"
            )
        refuse_unscreened(backend)
        self._backend = backend
        positions = len(prompt.prefix_ids) + 1 + len(prompt.suffix_ids)
        self.rows = screening_rows(backend.model, positions, free_bytes)
        drawn = np.random.default_rng(seed).permutation(np.asarray(scope))[:CALIBRATION]
        self._frozen = backend.freeze(
            prompt.prefix_ids, prompt.suffix_ids, torch.from_numpy(np.sort(drawn))
        )

    def screen(self, token_ids: Sequence[int]) -> tuple[list[float], list[float]]:
        """Log-probability (nats) and gap (largest logit minus the token's) of each token.

        Every pass has the same shape: one that is not full is filled up with its first token.
        """
        scored = [
            self._score(token_ids[start : start + self.rows])
            for start in range(0, len(token_ids), self.rows)
        ]
        log_p = [value for part, _ in scored for value in part]
        return log_p, [value for _, part in scored for value in part]

    def _score(self, chunk: Sequence[int]) -> tuple[list[float], list[float]]:
        filled = torch.tensor([*chunk, *[chunk[0]] * (self.rows - len(chunk))])
        logits = self._backend.screen(self._frozen, filled)[: len(chunk)]
        own = logits.gather(1, filled[: len(chunk), None].to(logits.device))[:, 0]
        parts = logits.split(_ROWS_MEASURED if logits.device.type == "cpu" else self.rows)
        total = torch.cat([part.logsumexp(dim=1) for part in parts])
        return _listed(own - total), _listed(logits.amax(dim=1) - own)


def refuse_unscreened(backend: Backend) -> None:
    """Raises RunError, naming why and what to take instead, where a model cannot be screened."""
    why = backend.why_no_screen()
    if why is not None:
        raise RunError(
            f"search: screen and cascade cannot screen {backend.model.architecture}: {why}; use "
            "search: surrogate"
        )


def _listed(column: Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in column.tolist()]
