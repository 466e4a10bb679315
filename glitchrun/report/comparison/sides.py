"""What `compare` compares: a run or an imported file, as tokens with verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glitchrun.errors import UsageError
from glitchrun.events import Sampled, Verified
from glitchrun.imports import ImportedFile, ImportedToken
from glitchrun.ledger.record import Metric, RunRecord, StepRecord, status_word
from glitchrun.report.formatting import spelled, spelled_token
from glitchrun.report.token_rows import TokenRow, facts_by_token
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES


@dataclass(frozen=True, slots=True)
class TokenVerdict:
    """The verdict of one side on one token."""

    id: int
    text: str | None
    verdict: str
    """One of `report.token_rows.VERDICTS` or `imports.found.VERDICTS`."""
    found: bool | None
    """Whether the side calls it a glitch token; None if it has no verdict of the kind compared."""
    shown: str = "?"
    """Its text, or its bytes if it is a part of a character, with invisible characters spelled
    out."""
    glitch: bool | None = None
    """The verdict of the probes; None if it was not verified."""
    confirmed: bool | None = None
    """The verdict of the sampled attempts; None if it was not sampled."""
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
    """By id, or by the keys of `matching.matched`."""
    seen: frozenset[int]
    """Keys of the examined tokens that are listed."""
    looked_at: int | None
    """Number of examined tokens, listed or not; None if a file of findings does not state it."""
    vocabulary: int | None
    """Number of entries of the vocabulary; None if unknown."""
    scope: int | None = None
    """Number of tokens that could have been examined; None if unknown."""
    chose: bool = True
    """Whether it chose which tokens to examine, as a search does. False if the spec named them, or
    all tokens in scope were examined."""
    lists_findings: bool = False
    """Whether it is a file without verdicts, in which every listed token counts as found."""
    title: str = ""
    """Its short name, different from that of every other side."""
    record: RunRecord | None = None
    """The run; None for a file."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Model contents, precision, device, versions; empty for a file."""
    note: str | None = None
    by_text: bool = False
    """Whether the keys of `tokens` and `seen` stand for texts, not ids."""
    unmatchable: int = 0
    """Number of tokens that were left out because their text does not identify them."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics of the run; empty for a file."""
        return self.record.metrics if self.record else {}

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """The resolved spec of the run; None for a file."""
        return self.record.spec if self.record else None

    @property
    def judged(self) -> frozenset[int]:
        """Keys of the tokens with a verdict."""
        return frozenset(key for key, one in self.tokens.items() if one.found is not None)

    @property
    def verified(self) -> list[TokenVerdict]:
        """Tokens with a verdict of the probes."""
        return [one for one in self.tokens.values() if one.glitch is not None]

    @property
    def sampled(self) -> list[TokenVerdict]:
        """Tokens with a verdict of sampled attempts."""
        return [one for one in self.tokens.values() if one.confirmed is not None]

    @property
    def unsampled_glitch(self) -> int:
        """Number of glitch tokens by the probes without sampled attempts."""
        return sum(bool(one.glitch) and one.confirmed is None for one in self.tokens.values())

    @property
    def lists_all(self) -> bool:
        """Whether every examined token is listed."""
        return self.looked_at is not None and self.looked_at <= len(self.seen)

    @property
    def found(self) -> frozenset[int]:
        """Keys of the tokens that the side calls glitch tokens."""
        return frozenset(key for key, one in self.tokens.items() if one.found)


def side_of_run(label: str, record: RunRecord, step: str | None = None) -> Side:
    """A run. If several steps examined a token, the last verdict counts.

    Args:
        label: The side's letter.
        record: The run.
        step: The id of the step whose verdicts alone count; None for all steps.

    Raises:
        UsageError: the run has no such step, or the step has no verdicts on tokens.
    """
    asked = tuple(one for one in record.steps if step in (None, one.id))
    tokens = {row.token.id: _verdict_of_row(row) for row in _last_facts(asked)}
    if step is not None and not tokens:
        known = ", ".join(one.id for one in record.steps)
        what = "has no verdicts on tokens in" if asked else "has no"
        raise UsageError(f"{record.identity.name} {what} step {step!r}; its steps are {known}")
    identity, scope = record.identity, _scope(record)
    return Side(
        label=label,
        name=f"{identity.experiment} · {identity.name} {identity.key[:12]}#{identity.attempt}"
        + (f", step {step}" if step else ""),
        kind="run",
        tokens=tokens,
        seen=frozenset(tokens),
        looked_at=len(tokens),
        vocabulary=record.model.vocabulary_size if record.model else None,
        scope=scope,
        chose=_chose(asked) and len(tokens) != scope,
        title=f"{identity.name}, step {step}" if step else identity.name,
        record=record,
        setting=_setting(record),
        note=None if record.status == "FINISHED" else f"the run is {status_word(record.status)}",
    )


def _scope(record: RunRecord) -> int | None:
    """The number of tokens in the run's scope; the vocabulary's size if that is not known."""
    model = record.model
    if model is None:
        return None
    selected = (record.spec.get("tokens") or {}).get("categories") or ["normal"]
    number = sum(model.categories.get(name, 0) for name in selected) - model.excluded
    return number if number > 0 else model.vocabulary_size


def _chose(steps: Sequence[StepRecord]) -> bool:
    """Whether searches chose all the tokens that these steps examined."""
    chosen: set[str] = set()
    for step in steps:
        if not any(timed.batch.token_facts for timed in step.batches):
            continue
        tokens = step.params.get("tokens")
        source = tokens.get("from") if isinstance(tokens, Mapping) else None
        if not (_searches(step) or source in chosen):
            return False
        chosen.add(step.id)
    return bool(chosen)


def _searches(step: StepRecord) -> bool:
    strategy = STRATEGIES.get(step.strategy)
    search = SEARCHES.get(step.params.get("search", ""))
    return bool(strategy and strategy.searches) and not (search and search.selects)


def _last_facts(steps: Sequence[StepRecord]) -> Iterator[TokenRow]:
    verified: dict[int, Verified] = {}
    sampled: dict[int, Sampled] = {}
    for step in steps:
        for token_id, (verdict, samples) in facts_by_token(step).items():
            if verdict:
                verified[token_id] = verdict
            if samples:
                sampled[token_id] = samples
    for token_id in dict.fromkeys((*verified, *sampled)):
        both = verified.get(token_id), sampled.get(token_id)
        token = next(fact.token for fact in both if fact)
        yield TokenRow(token, (), *both)


def _verdict_of_row(row: TokenRow) -> TokenVerdict:
    return TokenVerdict(
        id=row.token.id,
        text=row.token.text,
        verdict=row.verdict,
        found=None,
        shown=spelled_token(row.token),
        glitch=row.glitch,
        confirmed=row.confirmed,
        p=row.closest[1].p if row.closest else None,
        asr=row.sampled.asr if row.sampled else None,
        attempts=row.sampled.attempts if row.sampled else None,
        failures=row.sampled.failures if row.sampled else None,
    )


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


def side_of_file(label: str, imported: ImportedFile) -> Side:
    """An imported file. A file without verdicts counts as a list of findings.

    Args:
        label: The side's letter.
        imported: The file.
    """
    source = imported.source
    bare = all(token.verdict == "listed" for token in imported.tokens)
    seen = frozenset(t.id for t in imported.tokens if bare or t.verdict != "listed")
    looked_at = None if bare else source.looked_at
    vocabulary = _vocabulary(source.settings)
    return Side(
        label=label,
        name=f"{source.file} ({source.format})",
        kind="file",
        tokens={token.id: _verdict_in_file(token) for token in imported.tokens},
        seen=seen,
        looked_at=looked_at,
        vocabulary=vocabulary,
        scope=vocabulary,
        lists_findings=bare,
        title=source.file,
        note=_note(bare, source.lists, looked_at, len(seen)),
    )


def _vocabulary(settings: Mapping[str, Any]) -> int | None:
    """The size that an import was checked against, or that the file itself states."""
    checked = settings.get("checked")
    size = checked.get("vocabulary_size") if isinstance(checked, Mapping) else None
    size = size or settings.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def _verdict_in_file(token: ImportedToken) -> TokenVerdict:
    text, visible = token.text, token.visible
    return TokenVerdict(
        id=token.id,
        text=text if text is not None else visible,
        verdict=token.verdict,
        found=None,
        shown=spelled(text) if text is not None else visible or "?",
        glitch=token.glitch,
        confirmed=token.confirmed,
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


def with_verdicts(sides: Sequence[Side], by: str | None) -> tuple[str, list[Side]]:
    """The kind of verdict that is compared, and the sides with `TokenVerdict.found` set to it.

    Args:
        sides: The sides.
        by: `verdict` (of sampled attempts if there were any, else of the probes), `glitch` (of the
            probes alone) or `confirmed` (of sampled attempts alone). None for `glitch` if a run has
            glitch tokens without attempts while attempts confirm others, else `verdict`: confirmed
            tokens are not compared with unsampled ones.
    """
    by = by or ("glitch" if _are_mixed(sides) else "verdict")
    return by, [replace(side, tokens=_judged(side, by)) for side in _titled(sides)]


def _are_mixed(sides: Sequence[Side]) -> bool:
    runs = [side for side in sides if side.record]
    return any(side.unsampled_glitch for side in runs) and any(side.sampled for side in sides)


def _judged(side: Side, by: str) -> dict[int, TokenVerdict]:
    if side.lists_findings:
        return {i: replace(one, found=True) for i, one in side.tokens.items()}
    return {i: replace(one, found=_selected(by, one)) for i, one in side.tokens.items()}


def _selected(by: str, one: TokenVerdict) -> bool | None:
    if by == "glitch":
        return one.glitch
    return one.confirmed if by == "confirmed" or one.confirmed is not None else one.glitch


def _titled(sides: Sequence[Side]) -> list[Side]:
    """The sides with short names that tell them apart."""
    experiments = {side.record.identity.experiment for side in sides if side.record}
    titles = [_title(side, len(experiments) > 1) for side in sides]
    times = Counter(titles)
    return [
        replace(side, title=title if times[title] == 1 else f"{title} ({side.label})")
        for side, title in zip(sides, titles, strict=True)
    ]


def _title(side: Side, several_experiments: bool) -> str:
    if side.record is None or not several_experiments:
        return side.title
    identity = side.record.identity
    return " · ".join(dict.fromkeys((identity.experiment, identity.name)))
