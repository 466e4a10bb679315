"""What `compare` compares: a run or an imported file, as tokens with verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glitchrun.events import Sampled, Verified
from glitchrun.imports import ImportedFile, ImportedToken
from glitchrun.ledger.record import Metric, RunRecord, status_word
from glitchrun.report.token_rows import TokenRow, facts_by_token


@dataclass(frozen=True, slots=True)
class TokenVerdict:
    """The verdict of one side on one token."""

    id: int
    text: str | None
    verdict: str
    """One of `report.token_rows.VERDICTS` or `imports.found.VERDICTS`."""
    found: bool | None
    """Whether the side calls it a glitch token; None if it has no such verdict."""
    p: float | None = None
    asr: float | None = None
    attempts: int | None = None
    failures: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """A run or a file."""

    label: str
    """A, B, C, ... in the order of the command line."""
    name: str
    kind: str
    """run or file."""
    tokens: Mapping[int, TokenVerdict]
    seen: frozenset[int]
    """Ids of the examined tokens that are listed."""
    looked_at: int | None
    """Number of examined tokens, listed or not; None if a file of findings does not state it."""
    vocabulary: int | None
    """Number of entries of the vocabulary; None if unknown."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    spec: Mapping[str, Any] | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Model contents, precision, device, versions; empty for a file."""
    note: str | None = None

    @property
    def judged(self) -> frozenset[int]:
        """Ids with a verdict."""
        return frozenset(one.id for one in self.tokens.values() if one.found is not None)

    @property
    def lists_all(self) -> bool:
        """Whether every examined token is listed."""
        return self.looked_at is not None and self.looked_at <= len(self.seen)

    @property
    def found(self) -> frozenset[int]:
        """Ids that the side calls glitch tokens."""
        return frozenset(one.id for one in self.tokens.values() if one.found)


def side_of_run(label: str, record: RunRecord, by: str) -> Side:
    """A run. If several steps examined a token, the last verdict counts.

    Args:
        label: The side's letter.
        record: The run.
        by: `verdict` (of sampled attempts if there were any, else of the probes), `glitch` (of the
            probes alone) or `confirmed` (of sampled attempts alone).
    """
    tokens = {row.token.id: _verdict_of_row(row, by) for row in _last_facts(record)}
    identity = record.identity
    return Side(
        label=label,
        name=f"{identity.experiment} · {identity.name} {identity.key[:12]}#{identity.attempt}",
        kind="run",
        tokens=tokens,
        seen=frozenset(tokens),
        looked_at=len(tokens),
        vocabulary=record.model.vocabulary_size if record.model else None,
        metrics=record.metrics,
        spec=record.spec,
        setting=_setting(record),
        note=None if record.status == "FINISHED" else f"the run is {status_word(record.status)}",
    )


def _last_facts(record: RunRecord) -> Iterator[TokenRow]:
    verified: dict[int, Verified] = {}
    sampled: dict[int, Sampled] = {}
    for step in record.steps:
        for token_id, (verdict, samples) in facts_by_token(step).items():
            if verdict:
                verified[token_id] = verdict
            if samples:
                sampled[token_id] = samples
    for token_id in dict.fromkeys((*verified, *sampled)):
        both = verified.get(token_id), sampled.get(token_id)
        token = next(fact.token for fact in both if fact)
        yield TokenRow(token, (), *both)


def _verdict_of_row(row: TokenRow, by: str) -> TokenVerdict:
    confirmed = row.sampled.confirmed if row.sampled else None
    glitch = row.verified.glitch if row.verified else None
    return TokenVerdict(
        id=row.token.id,
        text=row.token.text,
        verdict=row.verdict,
        found=_selected(by, glitch, confirmed),
        p=row.closest[1].p if row.closest else None,
        asr=row.sampled.asr if row.sampled else None,
        attempts=row.sampled.attempts if row.sampled else None,
        failures=row.sampled.failures if row.sampled else None,
    )


def _selected(by: str, glitch: bool | None, confirmed: bool | None) -> bool | None:
    if by == "glitch":
        return glitch
    return confirmed if by == "confirmed" or confirmed is not None else glitch


def _setting(record: RunRecord) -> dict[str, Any]:
    model = record.model
    setting: dict[str, Any] = {"model contents": record.identity.digests.get("model")}
    if model:
        setting |= {
            "architecture": model.architecture,
            "vocabulary": model.vocabulary_size,
            "arithmetic": f"{model.quantization} ({model.dtype})",
            "device": model.device,
            "template": model.template,
        }
    packages = record.environment.get("packages", {})
    return setting | {"glitchrun": record.environment.get("glitchrun"), **packages}


def side_of_file(label: str, imported: ImportedFile, by: str) -> Side:
    """An imported file. A file without verdicts counts as a list of findings.

    Args:
        label: The side's letter.
        imported: The file.
        by: As for `side_of_run`.
    """
    source = imported.source
    bare = all(token.verdict == "listed" for token in imported.tokens)
    seen = frozenset(t.id for t in imported.tokens if bare or t.verdict != "listed")
    looked_at = None if bare else source.looked_at
    return Side(
        label=label,
        name=f"{source.file} ({source.format})",
        kind="file",
        tokens={token.id: _verdict_in_file(token, by, bare) for token in imported.tokens},
        seen=seen,
        looked_at=looked_at,
        vocabulary=_vocabulary(source.settings),
        note=_note(bare, source.lists, looked_at, len(seen)),
    )


def _vocabulary(settings: Mapping[str, Any]) -> int | None:
    """The size that an import was checked against, or that the file itself states."""
    checked = settings.get("checked")
    size = checked.get("vocabulary_size") if isinstance(checked, Mapping) else None
    size = size or settings.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def _verdict_in_file(token: ImportedToken, by: str, bare: bool) -> TokenVerdict:
    return TokenVerdict(
        id=token.id,
        text=token.text if token.text is not None else token.visible,
        verdict=token.verdict,
        found=True if bare else _selected(by, token.glitch, token.confirmed),
        p=token.p,
        asr=token.asr,
        attempts=token.attempts,
        failures=token.failures,
    )


def _note(bare: bool, lists: str, looked_at: int | None, listed: int) -> str | None:
    if bare:
        return "gives no verdicts: every listed token counts as found"
    if lists == "findings" and looked_at is None:
        return "lists only the tokens found, without the number of tokens examined"
    if looked_at is not None and looked_at > listed:
        return f"lists {listed:,} of the {looked_at:,} tokens examined"
    return None
