"""The number of tokens that `validate` samples in one batch, chosen so that a kill loses little
work on any machine."""

from __future__ import annotations

from collections.abc import Iterable

BATCH_SECONDS = 20.0
"""Time that a batch should take, which a kill loses. Passes of few rows are expensive: on SmolLM2,
one of 48 rows took 1.7 times as long as one of 16, and one of 256 rows 5 times as long. Tokens that
fail every probe take several times as long as others, so single batches take longer."""
_GROWTH = 2


class Pace:
    """Sizes of batches that follow the measured time of the batches before.

    The first batch has one token. A batch has at most twice as many as the one before, and no more
    than fit into `BATCH_SECONDS` at the slower rate of the last two. Sizes change no result: an
    attempt depends on its token and number alone.
    """

    def __init__(
        self, most: int, measured: Iterable[tuple[int, float]] = (), *, whole: bool = False
    ) -> None:
        """Starts from earlier batches.

        Args:
            most: Most tokens of a batch.
            measured: Tokens and seconds of each batch so far, as of an interrupted run.
            whole: Whether every batch takes the most tokens: a streamed model is read once for each
                position of a batch, however many tokens it has.
        """
        self.most = max(1, most)
        self._whole = whole
        self._measured = [one for one in measured if one[0]]

    def measure(self, tokens: int, seconds: float) -> None:
        """Adds a batch of some tokens and the time that it took; nothing for no tokens."""
        if tokens:
            self._measured.append((tokens, seconds))

    @property
    def size(self) -> int:
        """Tokens of the next batch: at least one, at most `most`."""
        if self._whole:
            return self.most
        if not self._measured:
            return 1
        seconds_per_token = max(seconds / tokens for tokens, seconds in self._measured[-2:])
        fitting = BATCH_SECONDS / seconds_per_token if seconds_per_token > 0 else self.most
        return max(1, int(min(self.most, fitting, _GROWTH * self._measured[-1][0])))
