"""Runs `check`: one batch for each check, then how many passed, failed or were skipped. Contains
the checks `loading` and `memory`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from glitchrun.errors import RunError
from glitchrun.events import Batch, Event, Measured, Stage
from glitchrun.model.memory_use import peaks
from glitchrun.plan.devices import parse_size
from glitchrun.prompts.tokenizer import encode
from glitchrun.strategies.check import Config, checks_prompts, checks_tokens
from glitchrun.strategies.check.outcomes import Checked, Finding, at_least, at_most, equals
from glitchrun.strategies.context import Context
from glitchrun.strategies.predict.run import rendered_prompt_ids


def prompt_ids(config: Config, context: Context) -> Iterator[tuple[str, Sequence[int]]]:
    """The prompts that the checks give to the model."""
    formats = {"prediction": ["raw"], "chat": ["raw", "chat"]}
    for name in ("chat", "prediction"):
        if name in config.checks:
            yield from rendered_prompt_ids(config.prompts, formats[name], context)
    if "verification" in config.checks:
        yield from context.prompt_ids("strict")


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields one batch per check, in the order of `config.checks`."""
    batches = list(history)
    stage = Stage("checks", len(config.checks), unit="checks")
    context.announce(stage)
    for place in range(len(batches), len(config.checks)):
        start = time.perf_counter()
        checked = _FUNCTIONS[config.checks[place]](config, context)
        seconds = time.perf_counter() - start
        entries = tuple(checked.entries())
        batches.append(Batch(entries, place + 1, stage.total, seconds, stage=stage.name))
        yield batches[-1]
    rows = [entry for batch in batches for entry in batch.entries if entry.table == "checks"]
    outcomes = [row.cells["outcome"] for row in rows]
    yield Measured("failed", outcomes.count("fail"), len(outcomes))
    yield Measured("passed", outcomes.count("pass"), len(outcomes))
    yield Measured("skipped", outcomes.count("skip"), len(outcomes))
    yield Measured("checks", len(outcomes), len(outcomes))


_QUANTIZED = ("int4", "int8")
_LEAST_QUANTIZED = 0.5
"""Smallest share of a quantized model's bytes, without embedding and head, that are codes."""
_WEIGHT_DEVIATION = 0.05
"""Largest relative deviation of the weights' bytes from the plan."""


def loading(config: Config, context: Context) -> Checked:
    """Checks architecture, vocabulary size, dtype or quantization, finite logits and bytes."""
    model, expect = context.backend.model, config.expect or {}
    found = [
        equals("architecture", model.architecture, expect.get("architecture")),
        equals("vocabulary size", model.vocab_size, expect.get("vocabulary_size")),
        at_most("entries of the tokenizer", len(model.tokenizer), model.vocab_size),
        *_numerics(context),
        _logits(context),
        Finding("time (seconds)", model.load_seconds, measured=True),
        Finding("revision", context.spec.model.revision or "none named"),
    ]
    planned = (context.estimate or {}).get("weight_bytes")
    if planned:
        deviation = abs(model.bytes - planned) / planned
        found.append(at_most("bytes against the plan's", deviation, _WEIGHT_DEVIATION))
    return Checked("loading", tuple(found))


def _numerics(context: Context) -> list[Finding]:
    """Whether the weights have the dtype or quantization of the spec."""
    model, asked = context.backend.model, context.spec.model.quantization
    if asked not in _QUANTIZED:
        # Weights that are quantized on disk load in their own dtype, whatever the spec says.
        wanted = asked if asked != "none" and model.quantization == asked else None
        return [equals("dtype", model.dtype, wanted)]
    left = ", ".join(model.unquantized) or "none"
    return [
        at_least(f"share of the layers' bytes in {asked}", _in_codes(context), _LEAST_QUANTIZED),
        equals("large weights left unquantized", left, "none"),
    ]


def _in_codes(context: Context) -> float:
    """The share of codes in all bytes but those of the embedding and the head."""
    model = context.backend.model
    ends = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (model.input_embeddings, model.output_embeddings)
    }
    rest = model.bytes - sum(ends.values())
    codes = model.bytes_by_dtype.get(context.spec.model.quantization, 0)
    return codes / rest if rest else 0.0


def _logits(context: Context) -> Finding:
    tokenizer = context.backend.model.tokenizer
    try:
        context.backend.logits_alone(encode(tokenizer, "The quick brown"))
    except RunError as exc:  # the backend refuses logits that are not finite
        return Finding("logits", str(exc), "finite numbers", False)
    return Finding("logits", "finite", "finite numbers", True)


def memory(config: Config, context: Context) -> Checked:
    """Compares the peak memory on all devices since loading with the budget.

    Without a GPU, this is the peak of the process, including libraries.
    """
    found = peaks()
    gpus = {device: peak for device, peak in found.items() if device != "cpu"}
    used = gpus if context.backend.model.device.type == "cuda" else {"cpu": found["cpu"]}
    what = "tensors" if used is gpus else "process"
    findings = [
        Finding(f"peak of {what} on {name} (bytes)", peak, measured=True)
        for name, peak in used.items()
    ]
    findings.append(Finding("weights (bytes)", context.backend.model.bytes))
    if config.memory_budget is None:
        return Checked("memory", tuple(findings), "no memory_budget is given")
    budget = parse_size(config.memory_budget)
    total = at_most("peak over all of these (bytes)", sum(used.values()), budget, measured=True)
    return Checked("memory", (*findings, total))


_FUNCTIONS: Mapping[str, Callable[[Config, Context], Checked]] = {
    "loading": loading,
    "template": checks_prompts.template,
    "prediction": checks_prompts.prediction,
    "chat": checks_prompts.chat,
    "classifier": checks_tokens.classifier,
    "verification": checks_tokens.verification,
    "memory": memory,
}
"""The function of each check, by its name in `CHECKS`."""
