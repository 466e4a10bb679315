"""How many attempts are sampled side by side, so that a kill loses little work on any machine."""

from __future__ import annotations

LOST_SECONDS = 20.0
"""Time in which a token should get all of its answers. A kill loses what was sampled for tokens
without all of them, and on average they have half."""
_LEAST = 48
"""Attempts that run side by side even if that takes longer. Fewer hardly save time, because a pass
reads the same weights: on SmolLM2, 16 rows took a sixth of the time of 256."""
_CHANGE = 1.25


class Pace:
    """A number of attempts that follows the measured time of passes. It changes no result."""

    def __init__(self, passes: int) -> None:
        """`passes` is the number of passes that a token usually takes."""
        self._target = LOST_SECONDS / passes
        self._limit = float(_LEAST)

    def limit(self, most: int) -> int:
        """Attempts to run side by side, at most `most`."""
        return min(most, int(self._limit))

    def measure(self, attempts: int, seconds: float) -> None:
        """Takes a pass into account.

        Args:
            attempts: How many the pass had.
            seconds: The time it took.
        """
        if seconds > self._target:
            self._limit = max(_LEAST, min(self._limit, attempts / _CHANGE))
        elif seconds * _CHANGE < self._target and attempts >= self._limit / _CHANGE:
            self._limit *= _CHANGE
