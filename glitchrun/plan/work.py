"""The work of each step, bounded and likely, and its forward passes.

Each strategy states its own bounds (`Strategy.work`, `Strategy.workloads`) and what it usually does
(`Strategy.likely_work`). The functions here collect them for a spec, and compute what several
strategies share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from glitchrun.errors import GlitchrunError
from glitchrun.spec.probes import Probe, Probes, probe_names, probes_of
from glitchrun.spec.schema import TOKEN_SOURCES, step_with_defaults
from glitchrun.spec.strategy import STRATEGIES, Expectation, Work, Workload
from glitchrun.spec.token_ids import token_ids
from glitchrun.spec.types import Spec, Step

PAIRS = 100
"""Pairs of incomplete tokens that a step examines if the spec gives no limit."""
_MAX_NAMED = 5
"""Ids that a message names."""
MOST_PHRASES = 1_000_000
_PHRASE = 8
"""Tokens of the greedy answer to a phrase: the phrase in its longer tokenization, and two more."""
_BYTES_PER_TOKEN = 2
"""Fewest bytes per token assumed for a text. Tokens of ordinary text are rarely shorter."""
CONTROLS_EACH = 2
"""Largest number of controls verified for each one requested. A control of a doubtful script gets a
second one from another script."""


_GLITCH_SHARES = ((1e-3, 0.0064), (1e-2, 0.034), (1.0, 0.25))
"""(thresholds.probability, share of SmolLM2's normal tokens that are glitch tokens by it), from the
scan in docs/engine.md."""
_AMOUNTS = ("tokens", "prompts", "screens", "gradients", "continuations", "new_tokens")
"""The fields of `Work` that are amounts of work."""


@dataclass(frozen=True, slots=True)
class StepWork(Work):
    """The bounds of one step of a spec, and what it usually does."""

    step: str = ""
    """Id of the step."""
    strategy: str = ""
    likely: Work | None = None
    """None where no bound is known."""
    passes: frozenset[str] = frozenset()
    """The kinds of the step's forward passes."""

    def to_json(self) -> dict[str, Any]:
        """The amounts by name, and those of the likely work under `likely`."""
        amounts = {name: getattr(self, name) for name in _AMOUNTS}
        likely = self.likely and {name: getattr(self.likely, name) for name in _AMOUNTS}
        return {
            "step": self.step,
            "strategy": self.strategy,
            **amounts,
            "repeats": self.repeats,
            **({"positions": self.positions} if self.positions else {}),
            "unit": self.unit,
            "caveat": self.caveat,
            "likely": likely,
        }


def step_work(
    spec: Spec, vocab: int, scopes: Mapping[str, int] | None = None
) -> tuple[StepWork, ...]:
    """The work of each step of a spec.

    Args:
        spec: The spec.
        vocab: Entries of the model's vocabulary.
        scopes: By step, the number of tokens in scope that it may examine, where it is known.
    """
    earlier: dict[str, int | None] = {}
    likely: dict[str, Work] = {}
    found = []
    for step in spec.steps:
        strategy = STRATEGIES[step.strategy]
        config = _limited(_with_phrases(spec, step), spec.limit)
        size = (scopes or {}).get(step.id, vocab)
        if spec.limit is not None and strategy.takes_scope(config):
            size = min(size, spec.limit)
        work = strategy.work(config, earlier, size)
        expected = Expectation(dict(likely), size, glitch_share(spec.thresholds.probability))
        usual = work if work.tokens is None else strategy.likely_work(config, work, expected)
        earlier[step.id], likely[step.id] = work.tokens, usual
        found.append(
            StepWork(
                **asdict(work),
                step=step.id,
                strategy=step.strategy,
                likely=None if work.tokens is None else usual,
                passes=frozenset(load.kind for load in strategy.workloads(config, step.id, 0)),
            )
        )
    return tuple(found)


def _with_phrases(spec: Spec, step: Step) -> Any:
    """The Config of a step, whose `tokens` name the phrases themselves if it takes them from other
    steps."""
    config = STRATEGIES[step.strategy].config_of(step)
    tokens = getattr(config, "tokens", None)
    found = _phrases_behind(spec, step)
    if not found or not isinstance(tokens, Mapping) or "from" not in tokens:
        return config
    source = found[0]
    if len(found) > 1:  # only their number matters
        source = {"pairs": "reachable", "limit": sum(map(named_phrases, found))}
    return replace(config, tokens={**tokens, "phrases": source})


def _phrases_behind(spec: Spec, step: Step) -> list[Mapping[str, Any]]:
    """What `tokens.phrases` of a step names, or of the steps from which it takes phrases."""
    tokens = step.params.get("tokens")
    if not isinstance(tokens, Mapping):
        return []
    if "phrases" in tokens:
        return [tokens["phrases"]]
    names = _steps(tokens) if "from" in tokens else []
    return [
        source
        for earlier in spec.steps
        if earlier.id in names and earlier.id != step.id
        for source in _phrases_behind(spec, earlier)
    ]


def _limited(config: Any, limit: int | None) -> Any:
    """The Config, whose `tokens` name no more than `limit`; see `named_tokens`."""
    if limit is None or not isinstance(getattr(config, "tokens", None), Mapping):
        return config
    return replace(config, tokens={**config.tokens, "limit": limit})


def workloads(spec: Spec, work: Sequence[StepWork] = ()) -> tuple[Workload, ...]:
    """The forward passes of each step that may need the most memory.

    Args:
        spec: The spec.
        work: The bounds of its steps; a batch of continuations has no more rows than they allow.
    """
    system = text_positions(spec.system or "")
    rows = {bounds.step: bounds.rows for bounds in work}
    return tuple(
        replace(load, rows=rows.get(step.id)) if load.grows else load
        for step in spec.steps
        for strategy in (STRATEGIES[step.strategy],)
        for load in strategy.workloads(_with_phrases(spec, step), step.id, system)
    )


def glitch_share(probability: float) -> float:
    """The share of the scope that are probably glitch tokens by `thresholds.probability`.

    Interpolated in the logarithms between the shares measured on SmolLM2.
    """
    (low, share), *others = _GLITCH_SHARES
    for high, next_share in others:
        if low < probability <= high:
            part = math.log(probability / low) / math.log(high / low)
            return float(share * (next_share / share) ** part)
        if probability > high:
            low, share = high, next_share
    return share


def parameters(step: Step) -> dict[str, Any]:
    """A step's parameters, with the schema's defaults for those not given."""
    return step_with_defaults({"id": step.id, "strategy": step.strategy, **step.params})


def text_positions(text: str) -> int:
    """An estimate of the most positions that a text takes."""
    return len(text.encode()) // _BYTES_PER_TOKEN


def probe_positions(probes: Probes) -> int:
    """Positions of the longest prompt among `probes`."""
    return max(probe.positions for probe in probes_of(probes))


def generated_positions(probes: Probes) -> tuple[int, ...]:
    """For each of `probes` that is answered greedily, about how many positions follow the first."""
    return tuple(probe.generated for probe in probes_of(probes) if not probe.is_plain)


class VerificationConfig(Protocol):
    """The parameters of a step that verifies tokens, as far as `probe_pass` reads them."""

    @property
    def probes(self) -> str | tuple[str | Probe, ...]:
        """Names or definitions of probes, or a protocol."""

    @property
    def batch_size(self) -> int | str:
        """Rows of a forward pass, or `auto`."""

    @property
    def controls(self) -> int:
        """Number of controls requested."""


def probe_pass(config: VerificationConfig, step: str, system: int) -> Workload:
    """The forward pass of a step that verifies tokens in batches of its `batch_size`."""
    batch = config.batch_size if isinstance(config.batch_size, int) else None
    positions = probe_positions(config.probes) + system
    generated = generated_positions(config.probes)
    return Workload(step, batch, positions, controls=bool(config.controls), generated=generated)


def verification(tokens: int, probes: Probes, gradients: int = 0, screens: int = 0) -> Work:
    """The work of verifying `tokens` tokens.

    Args:
        tokens: Tokens verified.
        probes: As in a Config.
        gradients: Gradients computed as well.
        screens: Tokens screened as well.
    """
    found = probes_of(probes)
    prompts = tokens * len(found)
    positions = 0 if all(one.is_usual for one in found) else sum(one.cost for one in found)
    return Work(
        tokens,
        prompts=prompts,
        screens=screens,
        gradients=gradients,
        repeats=prompts,
        positions=positions,
    )


def sampling(tokens: int, rows: int, prompts: int, new_tokens: int) -> Work:
    """The work of sampling continuations.

    Args:
        tokens: Tokens in the prompts.
        rows: Continuations of each prompt.
        prompts: Prompts that each token is put into.
        new_tokens: Tokens of each continuation.
    """
    continuations = rows * prompts
    return Work(
        tokens,
        continuations=continuations,
        new_tokens=continuations * new_tokens,
        repeats=continuations,
        rows=rows,
    )


def phrase_work(
    source: Mapping[str, Any], probes: Probes, attempts: int = 0, new_tokens: int = 0
) -> Work:
    """The work of examining the phrases that a step's `tokens` names, each in two tokenizations.

    Args:
        source: The parameter `tokens`.
        probes: As in a Config.
        attempts: Attempts on each tokenization; 0 for one greedy answer and its probabilities.
        new_tokens: Tokens of each sampled continuation.
    """
    count, prompts = named_tokens(source, {}, MOST_PHRASES), len(probe_names(probes))
    rows = 2 * count * max(1, attempts)
    work = sampling(count, rows, prompts, new_tokens or _PHRASE)
    # Of each tokenization, the probability of the text in both.
    scored = 0 if attempts else 4 * count * prompts
    caveat = only_if_found(source, count)
    return replace(work, prompts=scored, caveat=caveat, unit="phrase")


def phrases_refusal(params: Mapping[str, Any]) -> str | None:
    """Why a step cannot run on a streamed model: it names phrases. None for single tokens."""
    tokens = params.get("tokens")
    if not isinstance(tokens, Mapping) or "phrases" not in tokens:
        return None
    return "for phrases it would read the whole model for every token of an answer"


def usual_length(limit: int, mean: int) -> int:
    """Tokens of a continuation of at most `limit`, on average, where texts end at random.

    Args:
        limit: `max_new_tokens`.
        mean: Mean tokens of a text without limit.
    """
    return max(1, round(mean * (1 - math.exp(-limit / mean))))


def named_tokens(source: Mapping[str, Any], earlier: Mapping[str, int | None], vocab: int) -> int:
    """The most tokens that a step's `tokens` can name, limited to the vocabulary's size and, in a
    smoke run, to `limit`."""
    vocab = min(vocab, source.get("limit", vocab))
    if "phrases" in source:
        return min(named_phrases(source["phrases"]), int(source.get("limit", MOST_PHRASES)))
    if "file" in source:
        named = _ids_in_file(source["file"])
        return vocab if named is None else min(vocab, len(named))
    if "from" in source:
        counts = [earlier.get(step) for step in _steps(source)]
        return vocab if None in counts else min(vocab, sum(filter(None, counts)))
    return min(vocab, len(set(source.get("ids") or source.get("texts") or ())))


def named_phrases(source: Mapping[str, Any]) -> int:
    """The most phrases that `tokens.phrases` names."""
    if "pairs" in source:
        return int(source.get("limit", PAIRS))
    count = len(source.get("texts") or source.get("ids") or ())
    return min(count, int(source.get("limit", count)))


def phrase_positions(source: Mapping[str, Any], probes: Probes) -> int:
    """An estimate of the most positions that the phrases named by a step's `tokens` take in the
    places of one token; 0 for single tokens."""
    phrases = source.get("phrases")
    if phrases is None:
        return 0
    named = phrases.get("texts") or phrases.get("ids") or ()
    # The control may have a token for each character.
    longest = max((len(one) * (1 if isinstance(one, str) else 2) for one in named), default=_PHRASE)
    return longest * max(probe.slots for probe in probes_of(probes))


def expected_tokens(source: Mapping[str, Any], expected: Expectation) -> int:
    """The tokens that a step's `tokens` will probably name."""
    counts: dict[str, int | None] = {}
    for step, work in expected.earlier.items():
        every = source.get("select") == "all" or work.found is None
        counts[step] = work.tokens if every else work.found
    return named_tokens(source, counts, expected.size)


def only_if_found(source: Mapping[str, Any], tokens: int) -> str | None:
    """The caveat of a step that reads the tokens found by other steps: when it would come near its
    bounds."""
    if "phrases" in source:
        phrases = f"{tokens:,} phrases, each in two tokenizations."
        if "from" not in source or source.get("select") == "all":
            return phrases
        names = " and ".join(_steps(source))
        return f"{phrases} The bound assumes that all phrases of {names} fail."
    if "from" not in source or source.get("select") == "all":
        return None
    names = " and ".join(_steps(source))
    return f"The bound assumes that all {tokens:,} tokens of {names} are glitch tokens."


def _steps(source: Mapping[str, Any]) -> list[str]:
    return [source["from"]] if isinstance(source["from"], str) else list(source["from"])


def ids_outside_vocabulary(spec: Spec, vocab: int) -> str | None:
    """Why the spec's token ids, those of its files and of its reference rows included, do not fit a
    vocabulary of `vocab` entries; None if they do."""
    ids = [
        f"{token_id} ({spec.origins[path]})"
        for path, token_id in token_ids(spec)
        if token_id >= vocab
    ]
    ids += [
        f"{one} ({spec.origins.get(f'tokens.unused.ids[{place}]', 'tokens.unused')})"
        for place, one in enumerate(spec.tokens.unused or ())
        if one >= vocab
    ]
    for step in spec.steps:
        for source in filter(None, (step.params.get(name) for name in TOKEN_SOURCES)):
            found = _ids_in_file(source["file"]) if "file" in source else None
            ids += [f"{one} ({source['file']})" for one in found or () if one >= vocab]
    if not ids:
        return None
    more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
    return (
        f"token ids outside the model's vocabulary, 0 to {vocab - 1}: {', '.join(ids[:_MAX_NAMED])}"
        f"{more}; correct them, or set model.path to the model that they belong to"
    )


def _ids_in_file(path: str) -> tuple[int, ...] | None:
    """The ids of the tokens that a step takes from a file; below 0 for those named by their text
    alone. None if the file cannot be read yet."""
    if not os.path.isfile(path):  # noqa: PTH113 - Path may raise
        return None
    status = os.stat(path)  # noqa: PTH116 - as above
    return _ids(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _ids(path: str, changed_ns: int, size: int) -> tuple[int, ...] | None:
    """Reads a file once for all cells of a matrix. The run reports a file that is not readable."""
    from glitchrun.imports import read  # takes 20 ms, which most plans do not need

    try:
        return tuple(token.id for token in read(Path(path)).tokens if token.selected)
    except GlitchrunError:
        return None
