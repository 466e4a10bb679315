"""What a search is, and what it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glitchrun.events import Verified
from glitchrun.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False, slots=True)
class Scores:
    """What the frozen-suffix screen made of N tokens."""

    log_p: NDArray[np.float64]
    """(N,) log-probability of the token, in nats."""
    gap: NDArray[np.float64]
    """(N,) largest logit minus the token's."""


@dataclass(frozen=True, slots=True)
class Space:
    """The tokens to search, and what may be asked of the model about them."""

    ids: Tensor
    """(N,) token ids in scope, ascending."""
    embeddings: Tensor
    """(V, H) output embeddings: the space in which neighbours are near."""
    input_embeddings: Tensor
    """(V, H); the same as `embeddings` where the two are tied."""
    vocabulary: Vocabulary
    seed: int
    gradient: Callable[[int], tuple[float, Tensor]]
    """Entropy after the first probe's prompt for a token, and its gradient `(H,)` at the token."""
    limit: float = 1.0
    """thresholds.probability: a token that is as likely as that is no glitch."""
    scores: Scores | None = None
    """What the screen made of `ids`, for searches that ask for it."""

    @property
    def tied(self) -> bool:
        """Whether input and output embeddings are one table."""
        return self.input_embeddings.data_ptr() == self.embeddings.data_ptr()


class Parameters(Protocol):
    """The parameters of `mine` that searches read; `strategies.mine.Config` has them all."""

    @property
    def recall(self) -> float: ...
    @property
    def confidence(self) -> float: ...
    @property
    def k(self) -> int: ...
    @property
    def start(self) -> int | None: ...
    @property
    def ranges(self) -> Sequence[tuple[int, int]] | None: ...
    @property
    def groups(self) -> Sequence[str] | None: ...
    @property
    def patterns(self) -> Sequence[str] | None: ...
    @property
    def sample_rate(self) -> float | None: ...
    @property
    def sample_size(self) -> int | None: ...
    @property
    def own(self) -> Mapping[str, Any]: ...


class Search(Protocol):
    """Says which tokens to verify next, from the verdicts so far.

    The state is a function of the verdicts given to `update`, in order, so that a search resumes by
    being told again what was found.
    """

    counters: Counter[str]
    """Work and oddities since it was last cleared: gradients, walk_ties."""

    def propose(self, n: int) -> list[int]:
        """Up to n token ids not verified yet; none when the search has come to its end."""

    def update(self, verdicts: Sequence[Verified]) -> None:
        """Takes in the verdicts on one proposed batch."""
