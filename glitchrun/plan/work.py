"""Upper bounds on the work of each step, and its forward passes.

Each strategy states its own bounds (`Strategy.work`, `Strategy.workloads`). The functions here
collect them for a spec, and compute the bounds that several strategies share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from glitchrun.spec.defaults import step_with_defaults
from glitchrun.spec.probes import PROBES, probe_names
from glitchrun.spec.strategy import STRATEGIES, Work, Workload
from glitchrun.spec.types import Spec, Step

_BYTES_PER_TOKEN = 2
"""Fewest bytes per token assumed for a text. Tokens of ordinary text are rarely shorter."""
CONTROLS_EACH = 2
"""Most controls verified for each one requested. A control of a doubtful script gets a second one
from another script."""


@dataclass(frozen=True, slots=True)
class StepWork(Work):
    """The bounds of one step of a spec."""

    step: str = ""
    """Id of the step."""
    strategy: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        fields = asdict(self)
        return {"step": fields.pop("step"), "strategy": fields.pop("strategy"), **fields}


def step_work(spec: Spec, vocab: int) -> tuple[StepWork, ...]:
    """The bounds of each step of a spec, for a vocabulary of `vocab` entries."""
    earlier: dict[str, int | None] = {}
    found = []
    for step in spec.steps:
        strategy = STRATEGIES[step.strategy]
        work = strategy.work(strategy.configure(step.params), earlier, vocab)
        earlier[step.id] = work.tokens
        found.append(StepWork(**asdict(work), step=step.id, strategy=step.strategy))
    return tuple(found)


def workloads(spec: Spec) -> tuple[Workload, ...]:
    """The forward passes of each step that may need the most memory."""
    system = text_positions(spec.system or "")
    return tuple(
        load
        for step in spec.steps
        for strategy in (STRATEGIES[step.strategy],)
        for load in strategy.workloads(strategy.configure(step.params), step.id, system)
    )


def parameters(step: Step) -> dict[str, Any]:
    """A step's parameters, with the schema's defaults for those not given."""
    return step_with_defaults({"id": step.id, "strategy": step.strategy, **step.params})


def text_positions(text: str) -> int:
    """An estimate of the most positions that a text takes."""
    return len(text.encode()) // _BYTES_PER_TOKEN


def probe_positions(probes: str | Sequence[str]) -> int:
    """Positions of the longest prompt among `probes`."""
    return max(PROBES[name].positions for name in probe_names(probes))


class VerificationConfig(Protocol):
    """The parameters of a step that verifies tokens, as far as `probe_pass` reads them."""

    @property
    def probes(self) -> str | tuple[str, ...]:
        """Names of probes, or `strict`."""

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
    return Workload(step, batch, positions, controls=bool(config.controls))


def verification(
    tokens: int, probes: str | Sequence[str], gradients: int = 0, screens: int = 0
) -> Work:
    """The bounds of verifying `tokens` tokens.

    Args:
        tokens: Tokens verified at most.
        probes: As in the spec: names, or `strict`.
        gradients: Gradients computed as well.
        screens: Cost of the screen, in prompts.
    """
    prompts = tokens * len(probe_names(probes)) + screens
    return Work(tokens, prompts=prompts, gradients=gradients, repeats=prompts)


def sampling(tokens: int, continuations: int, max_new_tokens: int) -> Work:
    """The bounds of sampling `continuations` of up to `max_new_tokens` tokens each."""
    return Work(
        tokens,
        continuations=continuations,
        new_tokens=continuations * max_new_tokens,
        repeats=continuations,
    )


def named_tokens(source: Mapping[str, Any], earlier: Mapping[str, int | None], vocab: int) -> int:
    """The most tokens that a step's `tokens` can name, limited to the vocabulary's size."""
    if "file" in source:
        # An id and its separator take two bytes or more, unless the file is compressed. The run
        # reports a file that does not exist yet.
        path = Path(source["file"])
        if path.suffix == ".gz" or not os.path.isfile(path):  # noqa: PTH113 - Path may raise
            return vocab
        return min(vocab, path.stat().st_size // 2 + 1)
    if "from" in source:
        steps = [source["from"]] if isinstance(source["from"], str) else source["from"]
        counts = [earlier.get(step) for step in steps]
        return vocab if None in counts else min(vocab, sum(filter(None, counts)))
    return min(vocab, len(set(source.get("ids") or source.get("texts") or ())))
