"""The circumstances of a run, as labelled text: model, scope, memory, time, counters, origin, and
the command that repeats it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glitchrun.events import Batch, Sampled
from glitchrun.ledger.identity import study_spec
from glitchrun.ledger.record import ModelRecord, RunRecord, StepRecord
from glitchrun.report.formatting import MISSING, count, duration, in_one_unit, moment, share, size
from glitchrun.report.totals import NOTES, counters, is_about_tokens, not_finite, thresholds
from glitchrun.spec.nodes import path_text
from glitchrun.terminal import REDACTED

_STAGES = {"front": "verification", "audit": "verification of the audit"}
"""Stages under another name than in progress."""

Pairs = list[tuple[str, str]]
"""Labels with their values."""


def commands(record: RunRecord) -> list[str]:
    """Shell commands that reproduce the run."""
    identity = record.identity
    git = record.environment.get("git")
    commit = git.get("commit") if isinstance(git, Mapping) else None
    return [
        *([f"git checkout {commit}"] if commit else []),
        f"{apply_command(record)} --fresh",
        f"glitchrun report {identity.key[:12]}",
    ]


def setup(record: RunRecord) -> Pairs:
    """The model, the scope and the thresholds of a run, and when it ran."""
    level = thresholds(record)
    meaning = [
        ("Vocabulary in scope", scope(record)),
        *_excluded(record),
        ("Glitch token", f"fails every probe, with p < {level.probability:g} in each"),
        ("Confirmed", f"ASR ≥ {level.asr:g}" if level.asr else "ASR > 0"),
    ]
    beyond = record.model.beyond_training if record.model else ()
    pairs = [
        ("Model", _text((record.spec.get("model") or {}).get("path"))),
        *_model(record.model),
        *([("Beyond the model's length", "; ".join(beyond))] if beyond else []),
        (
            "System text",
            _text(record.spec["system"]) if record.spec.get("system") else "none in the spec",
        ),
        ("Seed", _text(record.spec.get("seed", 0))),
        *(meaning if is_about_tokens(record) else ()),
        ("Started", moment(record.started_at)),
        ("Ended", moment(record.ended_at)),
    ]
    assigned = record.identity.assignments or {}
    cell = ", ".join(f"{key} = {_text(value)}" for key, value in assigned.items())
    return [("Matrix cell", cell), *pairs] if cell else pairs


def scope(record: RunRecord) -> str:
    """The categories of tokens in scope, with their sizes and those left out."""
    inside = [*map(str, (record.spec.get("tokens") or {}).get("categories") or ["normal"])]
    sizes = record.model.categories if record.model else {}
    if not sizes:
        return ", ".join(inside)
    number = sum(sizes.get(name, 0) for name in inside)
    others = [f"{number:,} {name}" for name, number in sizes.items() if name not in inside]
    text = f"{', '.join(inside)}: {number:,} of {sum(sizes.values()):,} tokens"
    return f"{text}; left out: {', '.join(others)}" if others else text


def _excluded(record: RunRecord) -> Pairs:
    patterns = (record.spec.get("tokens") or {}).get("exclude")
    if not patterns:
        return []
    number = f"{record.model.excluded:,} tokens: " if record.model else ""
    return [("Excluded from it", f"{number}{', '.join(map(_text, patterns))}")]


def _model(model: ModelRecord | None) -> Pairs:
    if model is None:
        return [("Loaded", "no: the run ended before")]
    return [
        ("Architecture", f"{model.architecture}, {model.vocabulary_size:,} tokens"),
        ("Quantization", f"{model.quantization}, computing in {model.dtype} on {model.device}"),
        ("Template", f"{model.template}: {model.template_rule}"),
        *([("Engine", model.engine)] if model.engine else []),
        *([("Tokenizer", model.tokenizer)] if model.tokenizer else []),
    ]


def step_row(step: StepRecord) -> dict[str, Any]:
    """A step's row in the table of steps: id, strategy, params, state, count, seconds."""
    return {
        "id": step.id,
        "strategy": step.strategy,
        "params": [(key, _text(value)) for key, value in step.params.items()],
        "state": step.state,
        "count": step_count(step),
        "seconds": duration(step.seconds) if step.batches else MISSING,
    }


def step_count(step: StepRecord) -> str:
    """How much a step has done: the distinct tokens that it examined, or the items of its stages;
    in an unfinished step, those of the present stage and their total."""
    if not step.batches:
        return count(0)
    if not step.finished:
        name = step.batches[-1].batch.stage
        done, total = step.stages[name]
        return f"{name} {done:,}{'' if total is None else f' of {total:,}'}".strip()
    if step.examined is not None:
        return count(step.examined)
    stages = {name: done for name, (done, total) in step.stages.items() if total != 1}
    if len(stages) < 2:
        return count(max(done for done, _ in step.stages.values()))
    return ", ".join(f"{name} {done:,}" for name, done in stages.items())


def memory(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Rows of name, estimate, measurement and the deviation of the measurement in per cent."""
    plan = record.plan.get("memory") or {}
    model = record.model
    found = [
        ("model weights", plan.get("weight_bytes"), model.bytes if model else None),
        ("peak", plan.get("total_bytes"), model.peak_bytes if model else None),
    ]
    written = _with_unit([number for _, *numbers in found for number in numbers], "bytes")
    rows = [
        (name, written[2 * place], written[2 * place + 1], _deviation(planned, measured))
        for place, (name, planned, measured) in enumerate(found)
    ]
    if plan:
        free = f"{size(plan.get('free_bytes'))} free on {plan.get('device')}: {plan.get('verdict')}"
        rows.append(("device when planned", free, MISSING, MISSING))
    return rows


def _deviation(planned: float | None, measured: float | None) -> str:
    if not planned or measured is None:
        return MISSING
    return f"{100 * (measured - planned) / planned:+.1f} %"


def census(model: ModelRecord | None) -> list[tuple[str, str, str]]:
    """Rows of dtype, bytes of weights in it, and their share, the largest first."""
    if model is None:
        return []
    by_size = sorted(model.census.items(), key=lambda item: -item[1])
    total = sum(model.census.values())
    written = _with_unit([part for _, part in by_size], "bytes")
    return [
        (dtype, text, share(part, total))
        for (dtype, part), text in zip(by_size, written, strict=True)
    ]


def timing(record: RunRecord) -> Pairs:
    """The wall time of the run by phase: loading, each step and its stages, and the rest. The rows
    of the phases add up to the whole, and those of a step to the step."""
    rows: list[tuple[str, float]] = []
    if record.model:
        rows.append(("loading the model", record.loading_seconds))
    for step in record.steps:
        if step.batches:
            rows.append((f"step {step.id}", step.own_seconds))
            stages = {} if step.reused else stage_seconds(step)
            rows += [(f"– {name}", seconds) for name, seconds in stages.items()]
    whole = run_seconds(record)
    if whole is not None:
        rest = whole - record.loading_seconds - sum(step.own_seconds for step in record.steps)
        rows += [("starting, and writing the report", max(0.0, rest)), ("whole run", whole)]
    if record.paused_for:
        rows.append(("pauses between its sessions, not counted above", record.paused_for))
    for step in record.steps:
        if step.seconds > step.own_seconds:
            cost = step.seconds - step.own_seconds
            rows.append((f"step {step.id} in {step.origin}, not counted above", cost))
    names, seconds = [name for name, _ in rows], [value for _, value in rows]
    return [*_planned(record.plan), *zip(names, _with_unit(seconds, "s"), strict=True)]


def _planned(plan: Mapping[str, Any]) -> Pairs:
    """The likely time of the run and its bound, as planned."""
    time = plan.get("time") or {}
    bounds = plan.get("seconds")  # plans of earlier versions have only these
    most = time.get("most") or (bounds[-1] if bounds else None)
    if most is None:
        return []
    likely = time.get("likely")
    expected = "" if likely is None else f"likely {duration(likely)}, "
    return [("whole run, as planned", f"{expected}at most {duration(most)}")]


def _with_unit(values: Sequence[float | None], unit: str) -> list[str]:
    """Numbers of one column in one unit, each followed by the unit."""
    name, texts = in_one_unit(values, unit)
    return [text if text == MISSING else f"{text} {name}".rstrip() for text in texts]


def run_seconds(record: RunRecord) -> float | None:
    """Wall time of the run in seconds, without pauses between its sessions; None before its end.
    The final delivery to MLflow comes after it."""
    if record.ended_at is None:
        return None
    return max(0.0, (record.ended_at - record.started_at) / 1000 - record.paused_for)


def stage_seconds(step: StepRecord) -> dict[str, float]:
    """Seconds of a step by stage. The last entry is what no batch accounts for, such as preparing
    the stages and writing the ledger."""
    found: dict[str, float] = {}
    choosing = 0.0
    for timed in step.batches:
        batch = timed.batch
        name = _stage_of(batch)
        found[name] = found.get(name, 0.0) + batch.seconds
        if batch.screened:
            found[name] += batch.search_seconds
        else:
            choosing += batch.search_seconds
    if choosing:
        found["choosing tokens"] = choosing
    found["preparing and recording"] = max(0.0, step.seconds - sum(found.values()))
    return found


def _stage_of(batch: Batch) -> str:
    """The name of a batch's stage, which records of earlier versions do not state."""
    if batch.is_of_controls:
        return "controls"
    if batch.stage:
        return _STAGES.get(batch.stage, batch.stage)
    if batch.screened:
        return "screen"
    sampled = any(isinstance(fact, Sampled) for fact in batch.token_facts)
    return "sampling" if sampled else "verification" if batch.token_facts else "work"


def counter_rows(record: RunRecord) -> list[tuple[str, list[str]]]:
    """Rows of what was counted, and how often in each step."""
    rows = [
        (NOTES.get(name, name.replace("_", " ")), [_in_step(*item) for item in by_step.items()])
        for name, by_step in counters(record).items()
    ]
    if odd := not_finite(record):
        rows.insert(0, ("probes in which the model gave no finite number", [count(odd)]))
    return rows


def _in_step(step: str | None, number: int) -> str:
    return f"{count(number)} in {step}" if step else count(number)


def provenance(record: RunRecord) -> Pairs:
    """The spec, key, digests, versions, platform and commit of a run."""
    identity = record.identity
    delivered = record.delivered_to.get("run_id")
    return [
        ("Spec", identity.spec_path),
        ("Run key", f"{identity.key}, attempt {identity.attempt}"),
        *((f"Digest of {name}", digest) for name, digest in identity.digests.items()),
        *_flat(record.environment),
        *((f"Tag {name}", text) for name, text in record.tags.items()),
        *([("MLflow run", delivered)] if delivered else []),
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Pairs:
    pairs: Pairs = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += _flat(value, "" if name == "packages" else f"{name} ")
        else:
            pairs.append((name, _text(value)))
    return pairs


def _text(value: Any) -> str:
    """A value of a spec as a person would write it."""
    if isinstance(value, str) and value and value == value.strip():
        return value
    if value is None:
        return MISSING
    if isinstance(value, str | Sequence | Mapping | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


_OPTION = re.compile(r"\((--set|--until|--limit) (.*)\)\Z", re.DOTALL)
_VARIABLE = re.compile(r"\(environment variable (\w+)\)\Z")


def apply_command(record: RunRecord) -> str:
    """The shell command that applies the spec of a run again.

    It starts with the environment variables that the spec read and includes the options that
    changed the spec and, in a matrix, `--only`. A secret variable is shown as `NAME=...`, to be
    filled in. A run that was added to a study later is repeated by the spec of the study.
    """
    identity = record.identity
    found = (_OPTION.search(origin) for origin in record.origins.values())
    options = [
        option
        for option in dict.fromkeys(match.groups() for match in found if match)
        if option[1].partition("=")[0] not in identity.assignments  # as a single run it had it
    ]
    words = ["glitchrun", "apply", study_spec(record.folder) or identity.spec_path]
    words += [word for option in options for word in option]
    if identity.assignments:
        words += ["--only", identity.name]
    return " ".join([*_assignments(record), shlex.join(words)])


def _assignments(record: RunRecord) -> list[str]:
    """`NAME=value`, quoted for a shell, once for each variable.

    A variable is secret if one of the places that read it is.
    """
    values = dict(_values(record.spec))
    taken: dict[str, str] = {}
    secret = set()
    for path, origin in record.origins.items():
        if match := _VARIABLE.search(origin):
            value = values.get(path, REDACTED)
            taken.setdefault(match[1], _variable_text(value))
            secret |= {match[1]} if value == REDACTED else set()
    return [
        f"{name}={'...' if name in secret else shlex.quote(text)}" for name, text in taken.items()
    ]


def _values(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every scalar in a resolved document, with its path as in `origins`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _values(inner, (*path, index))
    else:
        yield path_text(path), value


def _variable_text(value: Any) -> str:
    """A scalar as an environment variable would contain it."""
    return value if isinstance(value, str) else json.dumps(value)
