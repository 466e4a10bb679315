"""The rule that stops a token's attempts once its verdict against `thresholds.asr` is settled."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import betainc, betaincc, betaln


@dataclass(frozen=True, slots=True)
class Stopping:
    """A sequential test of each token's ASR against a threshold, evaluated after every attempt.

    Attempts stop where either

    - the verdict of all `attempts` is certain already (curtailment: never an error), or
    - the attempts so far are evidence enough: the likelihood of the rates on one side of the
      threshold, averaged evenly, over that of the threshold itself exceeds 1 / error_rate. If
      the true rate lies on the other side, this ever happens with a probability of at most
      `error_rate` (mixtures of Robbins 1970 with Ville's inequality; a one-sided case of the
      beta-binomial mixture of Howard, Ramdas, McAuliffe, Sekhon 2021, arXiv 1810.08240).

    So a token is stopped by evidence on the wrong side of the threshold with a probability of at
    most `error_rate`. In both cases failures / attempts lies on the side that was found.
    """

    threshold: float
    attempts: int
    error_rate: float

    @property
    def theta(self) -> float:
        """The rate that confirms a token; a threshold of 0 requires one failed attempt."""
        return self.threshold or 1 / self.attempts

    def needed(self, made: int, failures: int) -> int:
        """The fewest further attempts that can settle the verdict; 0 if the attempts may stop."""
        if self._settled(made, failures):
            return 0
        left = range(1, self.attempts - made + 1)
        # Nothing settles sooner than failures alone, or successes alone.
        return next(
            n
            for n in left
            if self._settled(made + n, failures + n) or self._settled(made + n, failures)
        )

    def _settled(self, made: int, failures: int) -> bool:
        if made == 0:
            return False
        left = self.attempts - made
        if failures / self.attempts >= self.theta:
            return True
        if (failures + left) / self.attempts < self.theta:
            return True
        return self._evidence(made, failures)

    def _evidence(self, made: int, failures: int) -> bool:
        theta, successes = self.theta, made - failures
        if self.error_rate == 0 or not 0 < theta < 1:
            return False
        above, below = betaincc, betainc
        share, room = (above, 1 - theta) if failures > theta * made else (below, theta)
        tail = float(share(failures + 1, successes + 1, theta)) / room
        if tail == 0:
            return False
        mixed = math.log(tail) + float(betaln(failures + 1, successes + 1))
        alone = failures * math.log(theta) + successes * math.log1p(-theta)
        return mixed - alone >= -math.log(self.error_rate)
