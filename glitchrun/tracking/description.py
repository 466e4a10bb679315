"""The description of a run in MLflow: its result, model, tokens, steps and how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from glitchrun.events import Sampled, Token, Verified
from glitchrun.ledger.command import apply_command
from glitchrun.ledger.record import RunRecord, StepRecord, status_word
from glitchrun.spec.schema import fragments
from glitchrun.terminal import visible_lines
from glitchrun.tracking.metrics import is_finite
from glitchrun.vocabulary.text import visible, visible_token

_TOKENS = 10
_SPECIAL = re.compile(r"[\\`*_{}\[\]()#+!|<>~$&@:-]|(?i:(?<=www))\.|(?<=^\d)\.|(?<=^\d\d)\.")
_AS_ENTITY = frozenset("<>&@:$.")
"""MLflow's Markdown has no backslash escape for these. As entities they cannot begin a tag, an
address or a mention."""


def run_description(record: RunRecord) -> str:
    """The description of a run as Markdown; texts in it cannot act as markup."""
    parts = [
        paragraphs(record.identity.description),
        _outcome(record),
        _gates(record),
        _model(record),
        _tokens(record),
        _steps(record),
        _counters(record),
        _how_to_repeat(record),
    ]
    return "\n\n".join(part for part in parts if part)


def escaped(text: str) -> str:
    """`text` as Markdown on one line; tags, links and mentions in it are shown as text."""
    return _SPECIAL.sub(_escape, visible(text).replace("␣", " ").strip()) or "(empty)"


def paragraphs(text: str) -> str:
    """Each line of `text` as an escaped paragraph; empty for empty text."""
    return "\n\n".join(escaped(line) for line in text.splitlines() if line.strip())


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f"&#{ord(character)};" if character in _AS_ENTITY else f"\\{character}"


def _code(token: Token) -> str:
    """A token for a table cell. `|` would end the cell, even in code."""
    shown = visible_token(token).replace("|", "¦").replace("`", "ˋ")
    return f"`{shown}`"


def _model(record: RunRecord) -> str:
    model = record.model
    path = escaped(str(record.spec.get("model", {}).get("path", "?")))
    if model is None:
        return f"Model **{path}**, not loaded yet."
    return (
        f"Model **{path}** ({escaped(model.architecture)}, {model.vocabulary_size:,} tokens) in "
        f"{model.quantization}, computed in {model.dtype} on {model.device}; template "
        f"{escaped(model.template)} ({escaped(model.template_rule)})."
    )


def _outcome(record: RunRecord) -> str:
    if record.error:
        return f"**{status_word(record.status)}**: {escaped(record.error)}"
    sentences = [sentence for step in record.steps for sentence in _sentences(record, step)]
    return "**Result:** " + "; ".join(sentences) + "." if sentences else ""


def _sentences(record: RunRecord, step: StepRecord) -> Iterator[str]:
    facts = [fact for timed in step.batches for fact in timed.batch.token_facts]
    verified = [fact for fact in facts if isinstance(fact, Verified)]
    sampled = [fact for fact in facts if isinstance(fact, Sampled)]
    if verified:
        glitch, severe = sum(f.glitch for f in verified), sum(f.severe for f in verified)
        among = f"among {len(verified):,} verified tokens"
        yield f"{step.id} found {glitch:,} glitch tokens ({severe:,} severe) {among}"
    if sampled:
        least = record.spec.get("thresholds", {}).get("asr")
        bar = f" (ASR ≥ {least})" if least is not None else ""
        confirmed = sum(fact.confirmed for fact in sampled)
        yield f"{step.id} confirmed {confirmed:,} of {len(sampled):,} tokens{bar}"
    headline = fragments().get(step.strategy, {}).get("x-headline")
    metric = step.metrics.get(headline["metric"]) if headline else None
    if headline and metric:
        yield f"{step.id}: {_number(metric.value)} {headline['unit']}"


def _steps(record: RunRecord) -> str:
    rows = ["| step | strategy | items | seconds | state |", "|---|---|--:|--:|---|"]
    for step in record.steps:
        done = step.batches[-1].batch.done if step.batches else 0
        total = step.batches[-1].batch.total if step.batches else None
        items = f"{done:,} of {total:,}" if total is not None else f"{done:,}"
        state = "finished" if step.finished else "started" if step.batches else "not started"
        rows.append(f"| {step.id} | {step.strategy} | {items} | {step.seconds:,.1f} | {state} |")
    return "\n".join(rows)


def _tokens(record: RunRecord) -> str:
    """The confirmed tokens with the highest ASR."""
    found: dict[int, Sampled] = {}
    for step in record.steps:
        for timed in step.batches:
            for fact in timed.batch.token_facts:
                if isinstance(fact, Sampled) and fact.confirmed:
                    found[fact.token.id] = fact
    worst = sorted(found.values(), key=lambda fact: (-fact.asr, fact.token.id))[:_TOKENS]
    if not worst:
        return ""
    rows = ["| token | id | ASR (95 %) | attempts |", "|---|--:|---|--:|"]
    rows += [
        f"| {_code(fact.token)} | {fact.token.id} | "
        f"{fact.asr:.2f} ({fact.asr_low:.2f} to {fact.asr_high:.2f}) | {fact.attempts} |"
        for fact in worst
    ]
    more = len(found) - len(worst)
    return "\n".join(rows) + (f"\n\n{more:,} more in the report." if more else "")


def _gates(record: RunRecord) -> str:
    lines = [
        f"- gate `{gate.metric} {gate.op} {gate.value:g}`: **{gate.outcome}** "
        f"(observed {_number(gate.observed)}, n = {_number(gate.n)})"
        for gate in record.gates
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _counters(record: RunRecord) -> str:
    """The counters of the run, and the metrics without a value."""
    lines = [
        f"- {escaped(name.replace('_', ' '))}: {count:,}" for name, count in record.notes.items()
    ]
    lines += [
        f"- {escaped(name)}: no finite value (based on {metric.n or 0} items)"
        for name, metric in record.metrics.items()
        if not is_finite(metric.value)
    ]
    return "Counters:\n\n" + "\n".join(lines) if lines else ""


def _how_to_repeat(record: RunRecord) -> str:
    git = (record.environment.get("git") or {}).get("commit")
    commit = f"\n# at git commit {git}" if git else ""
    command = visible_lines(apply_command(record))
    # Longer than any fence in the command: a value of `--set` may contain one.
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", command) or [""]))
    return (
        f"To repeat this run:\n\n{fence}\n{command} --fresh{commit}\n{fence}\n\nThe artifact "
        "report.html describes the whole run; tokens.jsonl contains every token."
    )
