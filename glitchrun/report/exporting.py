"""Lists of a run's glitch tokens, in the formats of the programs that use them.

`EXPORTS` is the table of formats. A format takes the tokens and returns the bytes of the file; the
command line and the documentation read the table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glitchrun.errors import UsageError, require
from glitchrun.imports.formats.lists import is_formula
from glitchrun.ledger.record import RunRecord
from glitchrun.report import phrase_exporting
from glitchrun.report.formatting import counted
from glitchrun.report.phrase_exporting import PhraseRow
from glitchrun.report.token_rows import TokenRow, token_rows, worst_first
from glitchrun.report.writing import rounded, to_json
from glitchrun.vocabulary.character_groups import READABLE, kind_of
from glitchrun.vocabulary.text import visible_token

WHERE = ("confirmed", "severe", "glitch")
"""The verdicts by which tokens are selected."""
_LEAST_BIAS = -100
"""The least bias that OpenAI's API accepts; vLLM clamps to it."""
_MOST_BIASES = 1024
"""Entries of `logit_bias` that vLLM accepts in one request (`MAX_NUM_LOGIT_BIAS_TOKENS`)."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format of an exported list."""

    description: str
    """What the file contains and who reads it, for `--help` and the documentation."""
    write: Callable[[Sequence[TokenRow]], bytes]
    bans: bool = False
    """Whether a model that uses the list never generates its tokens. Special tokens are left out:
    without its end-of-text token, a model would not stop."""
    as_text: bool = False
    """Whether the list gives tokens by their text alone. Tokens that their text does not encode to
    are left out."""
    binary: bool = False
    phrases: Callable[[Sequence[PhraseRow]], bytes] | None = None
    """As `write`, for phrases; None where the format names single tokens."""


@dataclass(frozen=True, slots=True)
class Export:
    """An exported list."""

    content: bytes
    tokens: int
    """Tokens or phrases in the list."""
    where: str
    """One of `WHERE`."""
    notes: tuple[str, ...]
    """What was left out, and what the reader of the list should know."""
    unit: str = "token"
    """`token` or `phrase`."""


def export(
    record: RunRecord, form: str, where: str | None = None, step: str | None = None
) -> Export:
    """A list of the tokens that a run found, or of the phrases if it examined phrases only.

    Args:
        record: The run.
        form: A name of `EXPORTS`.
        where: One of `WHERE`; None for `confirmed` if the run sampled attempts, else `glitch`.
        step: The step whose verdicts count; None for all, so that a token counts if any step
            found it.

    Raises:
        UsageError: There is no such format, verdict or step, or the run has no verdicts of this
            kind.
        MissingExtra: A package that the format needs is not installed.
    """
    for value, known in ((form, (*EXPORTS,)), (where, (None, *WHERE))):
        if value not in known:
            raise UsageError(f"{value!r} is none of {', '.join(filter(None, known))}")
    written = EXPORTS[form]
    chosen = _of_step(record, step)
    rows = [row for row in token_rows(chosen) if row.control_of is None]
    phrases = phrase_exporting.phrase_rows(chosen)
    if phrases and not rows:
        return _phrases(form, phrases, where)
    where = where or ("confirmed" if any(row.sampled for row in rows) else "glitch")
    _require_verdicts(record, rows, where)
    found: dict[int, TokenRow] = {}
    for row in worst_first(row for row in rows if _selected(row, where)):
        found.setdefault(row.token.id, row)
    kept = [row for row in found.values() if _fits(row, written)]
    notes = [*_notes(form, found.values(), kept)]
    if phrases:
        steps = sorted({one for row in phrases for one in row.steps})
        notes.append(
            f"not in the list: {counted(len(phrases), 'phrase')} of {' and '.join(steps)}; export "
            "them with --step"
        )
    return Export(written.write(kept), len(kept), where, tuple(notes))


def _phrases(form: str, rows: Sequence[PhraseRow], where: str | None) -> Export:
    written = EXPORTS[form]
    able = [name for name, one in EXPORTS.items() if one.phrases]
    if written.phrases is None:
        raise UsageError(
            f"--format {form} names single tokens, and these results are phrases. Banning every "
            f"token of a phrase would ban it everywhere; use one of {', '.join(able)}"
        )
    where = phrase_exporting.where_of(rows, where)
    found = [row for row in rows if row.selected(where)]
    kept = [row for row in found if not written.as_text or phrase_exporting.is_sent_as_text(row)]
    notes = phrase_exporting.notes(found, kept, bans=written.bans and not written.as_text)
    return Export(written.phrases(kept), len(kept), where, tuple(notes), "phrase")


def _of_step(record: RunRecord, step: str | None) -> RunRecord:
    if step is None:
        return record
    named = tuple(one for one in record.steps if one.id == step)
    if not named:
        known = ", ".join(one.id for one in record.steps)
        raise UsageError(f"the run has no step {step!r}; it has: {known}")
    return replace(record, steps=named)


def _require_verdicts(record: RunRecord, rows: Sequence[TokenRow], where: str) -> None:
    judged = [row.sampled if where == "confirmed" else row.verified for row in rows]
    if any(judged):
        return
    run = record.identity.name
    if where == "confirmed":
        raise UsageError(
            f"{run} sampled no attempts, so no token is confirmed; add a step of the strategy "
            "validate, or select with --where glitch"
        )
    raise UsageError(f"{run} verified no tokens, so none is a glitch token; see --where confirmed")


def _selected(row: TokenRow, where: str) -> bool:
    if where == "confirmed":
        return row.confirmed is True
    if where == "glitch":
        return row.glitch is True
    return row.glitch is True and row.verified is not None and row.verified.severe


def _fits(row: TokenRow, form: ExportFormat) -> bool:
    if form.as_text and row.token.category != "normal":
        return False
    # vLLM removes leading white space of a text, so nothing is left of some.
    return not form.bans or (
        row.token.category != "special" and (not form.as_text or bool(row.token.text.strip()))
    )


def _notes(form: str, found: Iterable[TokenRow], kept: Sequence[TokenRow]) -> Iterable[str]:
    written = EXPORTS[form]
    left_out = len(list(found)) - len(kept)
    if left_out and written.as_text:
        yield (
            f"left out: {counted(left_out, 'token')} whose text does not encode to the token"
            + (", or is only white space" if written.bans else "")
        )
    elif left_out and written.bans:
        yield (
            f"left out: {counted(left_out, 'special token')}; a model that cannot generate them "
            "may not end its answers"
        )
    plain = sum(kind_of(row.token.text, row.token.category) not in READABLE for row in kept)
    if plain and written.bans:
        yield (
            f"{counted(plain, 'token')} of the list without a letter or digit, such as white "
            "space and punctuation: without them a model writes other text than usual"
        )
    if form == "logit-bias" and len(kept) > _MOST_BIASES:
        yield (
            f"vLLM accepts {_MOST_BIASES:,} biases in a request; use --where severe or "
            "--where confirmed for a shorter list"
        )


def _ids(rows: Sequence[TokenRow]) -> list[int]:
    return sorted(row.token.id for row in rows)


def _json(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _suppress_tokens(rows: Sequence[TokenRow]) -> bytes:
    return _json({"suppress_tokens": _ids(rows)})


def _bad_words(rows: Sequence[TokenRow]) -> bytes:
    return _json({"bad_words_ids": [[token_id] for token_id in _ids(rows)]})


def _logit_bias(rows: Sequence[TokenRow]) -> bytes:
    return _json({"logit_bias": {str(token_id): _LEAST_BIAS for token_id in _ids(rows)}})


def _llama_cpp(rows: Sequence[TokenRow]) -> bytes:
    return "".join(f"--logit-bias {token_id}-inf\n" for token_id in _ids(rows)).encode()


def _texts(rows: Sequence[TokenRow]) -> bytes:
    return _text_list([row.token.text for row in rows])


def _text_list(texts: Sequence[str]) -> bytes:
    lines = ",\n".join(to_json(text) for text in dict.fromkeys(texts))
    return f"[\n{lines}\n]\n".encode("utf-8", "backslashreplace")


def _vllm_bad_words(texts: Iterable[str]) -> bytes:
    body = to_json({"bad_words": list(dict.fromkeys(texts))})
    return f"{body}\n".encode("utf-8", "backslashreplace")


_COLUMNS: dict[str, Callable[[TokenRow], Any]] = {
    "token_id": lambda row: row.token.id,
    "token": lambda row: row.token.text,
    "token_repr": lambda row: visible_token(row.token),
    "piece": lambda row: row.token.piece,
    "category": lambda row: row.token.category,
    "verdict": lambda row: row.verdict,
    "glitch": lambda row: row.glitch,
    "confirmed": lambda row: row.confirmed,
    "severe": lambda row: row.verified.severe if row.verified else None,
    "p": lambda row: rounded(row.closest[1].p) if row.closest else None,
    "rank": lambda row: row.closest[1].rank if row.closest else None,
    "entropy": lambda row: rounded(row.closest[1].entropy) if row.closest else None,
    "asr": lambda row: rounded(row.sampled.asr) if row.sampled else None,
    "asr_low": lambda row: rounded(row.sampled.asr_low) if row.sampled else None,
    "asr_high": lambda row: rounded(row.sampled.asr_high) if row.sampled else None,
    "attempts": lambda row: row.sampled.attempts if row.sampled else None,
    "failures": lambda row: row.sampled.failures if row.sampled else None,
    "emitted": lambda row: row.verified.emitted if row.verified else None,
    "emitted_text": lambda row: row.answer,
    "norm": lambda row: rounded(row.token.norm),
    "presented_intact": lambda row: row.intact,
    "steps": lambda row: " ".join(row.steps),
}
"""Columns of the tables. p, rank and entropy are of the probe with the highest probability."""


def _csv(rows: Sequence[Any], columns: Mapping[str, Callable[[Any], Any]] = _COLUMNS) -> bytes:
    cells = ([_cell(value(row)) for value in columns.values()] for row in rows)
    lines = map(_csv_line, (list(columns), *cells))
    return "".join(lines).encode("utf-8", "backslashreplace")


def _csv_line(cells: Sequence[Any]) -> str:
    """A row. The writer quotes a carriage return or line feed only if its own lines end with it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet reads as a formula: an apostrophe marks it as text."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if isinstance(value, str) and is_formula(value) else value


_INTEGERS = ("token_id", "rank", "attempts", "failures")
_FLAGS = ("glitch", "confirmed", "severe", "presented_intact", "control_passes")
_FLOATS = ("p", "entropy", "asr", "asr_low", "asr_high", "norm", "control_p", "control_asr")


def _parquet(rows: Sequence[Any], columns: Mapping[str, Callable[[Any], Any]] = _COLUMNS) -> bytes:
    require("pyarrow")
    import pyarrow
    from pyarrow import parquet

    types = dict.fromkeys(_INTEGERS, pyarrow.int64())
    types |= dict.fromkeys(_FLAGS, pyarrow.bool_())
    types |= dict.fromkeys(_FLOATS, pyarrow.float64())
    schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in columns])
    cells = [{name: _utf8(value(row)) for name, value in columns.items()} for row in rows]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(cells, schema), sink)
    return sink.getvalue()


def _utf8(value: Any) -> Any:
    """A value without lone surrogates, which UTF-8 cannot encode."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


EXPORTS: Mapping[str, ExportFormat] = {
    "suppress-tokens": ExportFormat(
        "`suppress_tokens` of a generation_config.json, for `generate` of transformers",
        _suppress_tokens,
        bans=True,
    ),
    "bad-words": ExportFormat(
        "`bad_words_ids` of a generation_config.json, for `generate` of transformers",
        _bad_words,
        bans=True,
        phrases=phrase_exporting.bad_words,
    ),
    "vllm-bad-words": ExportFormat(
        "`bad_words` of a chat request to vLLM: texts, which vLLM encodes itself",
        lambda rows: _vllm_bad_words(row.token.text for row in rows),
        bans=True,
        as_text=True,
        phrases=lambda rows: _vllm_bad_words(row.text for row in rows),
    ),
    "logit-bias": ExportFormat(
        "`logit_bias` of a request to OpenAI's API or vLLM, -100 for each token",
        _logit_bias,
        bans=True,
    ),
    "llama-cpp": ExportFormat(
        "`--logit-bias` arguments of llama.cpp, one in a line", _llama_cpp, bans=True
    ),
    "csv": ExportFormat(
        "a table with a row for each token or phrase, for spreadsheets",
        _csv,
        phrases=lambda rows: _csv(rows, phrase_exporting.COLUMNS),
    ),
    "parquet": ExportFormat(
        "the same table with types, for pandas and others",
        _parquet,
        binary=True,
        phrases=lambda rows: _parquet(rows, phrase_exporting.COLUMNS),
    ),
    "garak": ExportFormat(
        "a JSON list of texts, for the probe `glitch` of garak",
        _texts,
        as_text=True,
        phrases=lambda rows: _text_list([row.text for row in rows]),
    ),
    "ids": ExportFormat(
        "a JSON list of ids, which `tokens: {file: ...}` and `import` read",
        lambda rows: _json(_ids(rows)),
        phrases=phrase_exporting.ids,
    ),
}
"""The formats by name."""
