"""Verdicts and samples that no model gave: the facts of the run folders in `records`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from glitchrun.events import Batch, ProbeResult, Sampled, Token, Verified

WEIRD = (
    " SolidGoldMagikarp",
    " petertodd",
    "<script>document.title='owned'</script>",
    "</script><img src=x onerror=alert(1)>",
    "\u202ertl override\u202c",
    "\u200b\u200d",
    "\x00\x07",
    "\n\n\n",
    "        ",
    "\t|`*_# markdown",
    "\ud800",
    "007",
    "1e5",
    "é\u0301",
    "한국어",
    "ⓘ\ufe0f🏳\u200d🌈",
    "\ufffd",
    '"«',
    "{{ 7 * 7 }}",
    "' OR 1=1 --",
)
"""Token texts that break careless readers."""


def mined(count: int, at_once: int, seed: int, glitch_share: float) -> list[Batch]:
    """Batches of verdicts on `count` invented tokens, some of them from `WEIRD`."""
    chance = random.Random(seed)
    tokens = [_token(place, chance) for place in range(count)]
    facts = [_verified(token, chance, glitch_share) for token in tokens]
    batches = []
    for start in range(0, count, at_once):
        some = tuple(facts[start : start + at_once])
        counters = {
            "forwards": 2,
            "rechecked": sum(fact.probes["repeat"].gap < 0.2 for fact in some if fact.glitch),
            "not_intact": sum(not fact.presented_intact for fact in some),
        }
        done = start + len(some)
        batches.append(Batch(some, done, count, 0.05 * len(some), counters))
    return batches


def _token(place: int, chance: random.Random) -> Token:
    norm = chance.gauss(3.1, 0.25)
    if place % 10 == 3 and place // 10 < len(WEIRD):
        text = WEIRD[place // 10]
    else:
        text = " " + "".join(chance.choice("abdeiklmnorstu") for _ in range(chance.randint(2, 9)))
    category = "normal" if place % 37 else "byte"
    return Token(1000 + 7 * place, text, text.replace(" ", "Ġ"), category, norm)


def _verified(token: Token, chance: random.Random, share: float) -> Verified:
    glitch = chance.random() < share or token.text in WEIRD[:3]
    p = chance.uniform(1e-7, 0.05) if glitch else chance.uniform(0.6, 1.0)
    result = ProbeResult(
        p=p,
        rank=chance.randint(2, 4000) if glitch else 1,
        entropy=chance.uniform(2.5, 6.0) if glitch else chance.uniform(0.01, 1.0),
        argmax=chance.randint(0, 49151) if glitch else token.id,
        gap=chance.uniform(0.01, 9.0) if glitch else 0.0,
        passed=not glitch,
        decided_in="float32",
        intact=bool(token.text.strip()),
    )
    emitted = chance.choice(["prefix", "case_space", "whitespace", "other"]) if glitch else None
    norm = token.norm - (0.9 if glitch else 0.0)
    return Verified(replace(token, norm=norm), {"repeat": result}, glitch, emitted)


def sampled(batches: Sequence[Batch], seed: int) -> list[Batch]:
    """Five attempts on each token that the batches found to be a glitch, five tokens a batch."""
    chance = random.Random(seed)
    found = [fact.token for batch in batches for fact in batch.facts if _is_glitch(fact)]
    facts = [_estimate(token, chance) for token in found]
    return [
        Batch(
            tuple(facts[start : start + 5]),
            min(start + 5, len(facts)),
            len(facts),
            0.8,
            {"forwards": 20, "resampled": start % 2, "not_intact": 0},
        )
        for start in range(0, len(facts), 5)
    ]


def _is_glitch(fact: Verified | Sampled) -> bool:
    return isinstance(fact, Verified) and fact.glitch


def _estimate(token: Token, chance: random.Random) -> Sampled:
    rate = chance.choice([0.1, 0.5, 0.95, 1.0])
    outcomes = tuple(chance.random() < rate for _ in range(5))
    n, share, z = 5, sum(outcomes) / 5, 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Sampled(token, outcomes, share, low, high, share >= 0.8)


def mine_metrics(batches: Sequence[Batch]) -> dict[str, tuple[float | None, int]]:
    """What a `mine` step ends with: value and what it rests on."""
    facts = [fact for batch in batches for fact in batch.facts]
    glitch, n = sum(map(_is_glitch, facts)), len(facts)
    seconds = sum(batch.seconds for batch in batches)
    return {
        "verified": (n, n),
        "glitch": (glitch, n),
        "glitch_rate": (glitch / n, n),
        "tokens_per_second": (n / seconds, n),
        "rechecked": (sum(batch.counters["rechecked"] for batch in batches), n),
        "not_intact": (sum(batch.counters["not_intact"] for batch in batches), n),
    }


def asr_metrics(batches: Sequence[Batch]) -> dict[str, tuple[float | None, int]]:
    """What a `validate` step ends with: value and what it rests on."""
    facts = [fact for batch in batches for fact in batch.facts if isinstance(fact, Sampled)]
    n, attempts = len(facts), sum(fact.attempts for fact in facts)
    return {
        "confirmed": (sum(fact.confirmed for fact in facts), n),
        "asr_mean": (sum(fact.asr for fact in facts) / n if n else None, n),
        "validated": (n, n),
        "attempts": (attempts, n),
        "attempts_per_second": (attempts / (0.8 * len(batches)) if n else None, attempts),
    }
