"""The protocol of a search, and its inputs. `strategies/mine/run.py` drives searches: it calls
`propose`, verifies the tokens, and calls `update` with the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glitchrun.events import Verified
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import Indicators


@dataclass(frozen=True, eq=False, slots=True)
class Scores:
    """Scores of N tokens from the frozen-suffix screen."""

    log_p: NDArray[np.float64]
    """(N,) log-probability of the token, in nats."""
    gap: NDArray[np.float64]
    """(N,) largest logit minus the token's."""


@dataclass(frozen=True, slots=True)
class Space:
    """The tokens to search, and what a search may know of the model."""

    ids: Tensor
    """(N,) token ids in scope, ascending."""
    embeddings: Tensor
    """(V, H) output embeddings, in which the distances between tokens are taken."""
    input_embeddings: Tensor
    """(V, H); the same as `embeddings` where the two are tied."""
    vocabulary: Vocabulary
    seed: int
    gradient: Callable[[int], tuple[float, Tensor]]
    """Maps a token id to the next-token entropy in nats after the first probe's prompt, and to its
    gradient `(H,)` with respect to the token's embedding."""
    limit: float = 1.0
    """thresholds.probability: a token whose probability reaches it is no glitch token."""
    scores: Scores | None = None
    """The screen's scores of `ids`, if the search is `screened`."""
    indicators: Indicators | None = None
    """The indicators of the model; None to compute them from the embeddings."""

    @property
    def tied(self) -> bool:
        """Whether input and output embeddings are the same tensor."""
        return self.input_embeddings.data_ptr() == self.embeddings.data_ptr()


class Parameters(Protocol):
    """The parameters that searches read. `strategies.mine.Config` has all of them."""

    @property
    def recall(self) -> float:
        """Share of the glitch tokens in scope that the search must find."""

    @property
    def confidence(self) -> float:
        """Confidence of the bounds on recall."""

    @property
    def k(self) -> int:
        """Nearest neighbours considered in each round."""

    @property
    def start(self) -> int | None:
        """Token id at which a walk starts; None for the token of least norm."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]] | None:
        """Spans of token ids, both ends included."""

    @property
    def groups(self) -> Sequence[str] | None:
        """Groups of writing systems or kinds of character."""

    @property
    def patterns(self) -> Sequence[str] | None:
        """Regular expressions for the text of tokens."""

    @property
    def sample_rate(self) -> float | None:
        """Share of each range, group or pattern to verify; None for all."""

    @property
    def sample_size(self) -> int | None:
        """Number of tokens of each range, group or pattern to verify, at most; None for all."""

    @property
    def own(self) -> Mapping[str, Any]:
        """The parameters that the search declares in its `SearchEntry`, defaults included."""


class Search(Protocol):
    """Chooses the tokens to verify next from the verdicts so far.

    The state depends only on the verdicts passed to `update`, in order: a search resumes by taking
    the earlier verdicts again.
    """

    counters: Counter[str]
    """Work and events since it was last cleared, such as `gradients` and `walk_ties`."""

    def propose(self, n: int) -> list[int]:
        """Up to n token ids that are not verified yet; empty when the search has ended."""

    def update(self, verdicts: Sequence[Verified]) -> None:
        """Takes the verdicts on one proposed batch."""


class Foreseeable(Search, Protocol):
    """A search whose next rounds can be guessed, so that several workers verify them at once."""

    def expect(self, ids: Sequence[int]) -> Self | None:
        """A copy that has taken the likely verdicts on a proposed batch; None if what follows
        cannot be guessed."""


def foreseen(search: Search, ids: Sequence[int], rows: int, left: int) -> Iterator[list[int]]:
    """Yields a round, and those that a `Foreseeable` search is likely to propose after it.

    Args:
        search: The search, which has proposed the round and has not taken its verdicts.
        ids: The round.
        rows: The most tokens of a round.
        left: The most tokens of all rounds, this one included.
    """
    guess: Foreseeable | None = search if hasattr(search, "expect") else None  # type: ignore[assignment]
    return _foreseen(guess.expect(ids) if guess else None, list(ids), rows, left)


def _foreseen(
    guess: Foreseeable | None, ids: list[int], rows: int, left: int
) -> Iterator[list[int]]:
    while ids:
        yield ids
        left -= len(ids)
        ids = guess.propose(min(rows, left)) if guess and left > 0 else []
        guess = guess.expect(ids) if guess else None
