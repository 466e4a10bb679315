"""glitcher's files of verdicts: `test`, `compare`, `validate`, scans, patterns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from glitchrun.imports.document import Document
from glitchrun.imports.fields import (
    claimed_model,
    count,
    flag,
    items,
    objects,
    settings,
    token,
    verdict,
    whole,
)
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found

_TRIMMED = "tokens looked at that the file itself leaves out"


def _tested(document: Document) -> Content:
    data = document.data
    sampled = data.get("validation_method") == "enhanced"
    attempts = count(data, "num_attempts") if sampled else None
    rows = objects(data["test_results"], "test_results")
    tokens = (_judged(row, place, sampled, attempts) for row, place in rows)
    return _content(data, tokens, "test_results")


def _judged(
    item: Mapping[str, Any], place: str, sampled: bool, attempts: int | None = None
) -> Found:
    """A row with `is_glitch`, which is the verdict of attempts where there were any."""
    found, asr = verdict(item.get("is_glitch"), f"{place}.is_glitch")
    sampled = sampled or asr is not None or item.get("asr") is not None
    settled = {"confirmed" if sampled else "glitch": found, "asr": asr, "attempts": attempts}
    return token(item, place, ("is_glitch",), **settled)


def _compared(document: Document) -> Content:
    data, key = document.data, "comparison_results"
    attempts = count(data, "num_attempts")
    tokens = (_two_methods(row, place, attempts) for row, place in objects(data[key], key))
    return _content(data, tokens, key)


def _two_methods(item: Mapping[str, Any], place: str, attempts: int | None) -> Found:
    """`original_method` is the strict check of probabilities, `enhanced_method` samples."""
    drop = ("original_method", "enhanced_method", "methods_agree", "difference")
    return token(
        item,
        place,
        drop,
        glitch=flag(item.get("original_method"), f"{place}.original_method"),
        confirmed=flag(item.get("enhanced_method"), f"{place}.enhanced_method"),
        attempts=attempts,
    )


def _validated(document: Document) -> Content:
    data = document.data
    lists = ("confirmed_glitch_token_ids", "false_positive_ids")
    texts = ("confirmed_glitch_tokens", "false_positives")
    rows = objects(data.get("results", []), "results")
    tokens = chain(
        (_judged(row, place, row.get("validation_method") == "enhanced") for row, place in rows),
        _listed(data, lists[0], True),
        _listed(data, lists[1], False),
    )
    return _content(data, tokens, "results", *lists, *texts)


def _listed(data: Mapping[str, Any], key: str, confirmed: bool) -> Iterator[Found]:
    for index, token_id in enumerate(items(data.get(key, []), key)):
        place = f"{key}[{index}]"
        yield Found(id=whole(token_id, place), place=place, confirmed=confirmed)


def _scanned(document: Document) -> Content:
    """`examined` is every token of the sample, `confirmed_glitches` some of them again."""
    data = document.data
    keys = ("examined", "confirmed_glitches")
    attempts = count(data, "num_attempts")
    tokens = (
        _judged(row, place, True, attempts)
        for key in keys
        for row, place in objects(data.get(key, []), key)
    )
    return _content(data, tokens, *keys)


def _vocabulary_scan(document: Document) -> Content:
    data = document.data
    rows = list(objects(data["results"], "results"))
    total = count(data, "original_total")
    trimmed = (total or 0) - len(rows)
    return _content(
        data,
        (_judged(row, place, True) for row, place in rows),
        "results",
        looked_at=total,
        left_out={_TRIMMED: trimmed} if trimmed > 0 else {},
    )


def _patterns(document: Document) -> Content:
    rows = objects(document.data["results"], "results")
    tokens = (_judged(row, place, False) for row, place in rows)
    return _content(document.data, tokens, "results")


def _content(data: Mapping[str, Any], tokens: Any, *keys: str, **more: Any) -> Content:
    return Content(tokens, claimed_model(data), settings=settings(data, *keys), **more)


def _has(*keys: str) -> Any:
    return lambda document: document.keys() >= set(keys)


FORMATS = (
    Format("glitcher-test", "test_results.json: 'test_results'", _has("test_results"), _tested),
    Format(
        "glitcher-compare",
        "comparison_results.json: 'comparison_results'",
        _has("comparison_results"),
        _compared,
    ),
    Format(
        "glitcher-validated",
        "validated_tokens_*.json: 'confirmed_glitch_token_ids' beside 'results'",
        _has("confirmed_glitch_token_ids"),
        _validated,
    ),
    Format(
        "glitcher-scan",
        "stratified_scan*.json, category_scan*.json: 'examined'",
        _has("examined"),
        _scanned,
    ),
    Format(
        "glitcher-vocab-scan",
        "vocab_scan_results.json: 'results' beside 'l2_norm_mean'",
        _has("results", "l2_norm_mean"),
        _vocabulary_scan,
    ),
    Format(
        "glitcher-pattern",
        "pattern results: 'results' beside 'pattern_distribution'",
        _has("results", "pattern_distribution"),
        _patterns,
    ),
)
