"""The result files that glitcher writes, except its logs.

A behavioural test whose code failed was counted as a finding ("Glitch behavior detected:
'"username"'"); such errors are imported as errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from glitchrun.imports.fields import (
    claimed_model,
    count,
    flag,
    items,
    mapping,
    objects,
    settings,
    string,
    token,
    verdict,
    whole,
)
from glitchrun.imports.records import Content, Format, ImportedToken
from glitchrun.imports.result_file import Malformed, ResultFile

_TRIMMED = "examined tokens that the file itself leaves out"


def _tested(document: ResultFile) -> Content:
    data = document.data
    sampled = data.get("validation_method") == "enhanced"
    attempts = count(data, "num_attempts") if sampled else None
    rows = objects(data["test_results"], "test_results")
    tokens = (_judged(row, place, sampled, attempts) for row, place in rows)
    return _content_with_verdicts(data, tokens, "test_results")


def _judged(
    item: Mapping[str, Any], place: str, sampled: bool, attempts: int | None = None
) -> ImportedToken:
    """A row with `is_glitch`: the verdict of sampled attempts, if there were any."""
    found, asr = verdict(item.get("is_glitch"), f"{place}.is_glitch")
    sampled = sampled or asr is not None or item.get("asr") is not None
    settled = {"confirmed" if sampled else "glitch": found, "asr": asr, "attempts": attempts}
    return token(item, place, ("is_glitch",), **settled)


def _compared(document: ResultFile) -> Content:
    data, key = document.data, "comparison_results"
    attempts = count(data, "num_attempts")
    tokens = (_two_methods(row, place, attempts) for row, place in objects(data[key], key))
    return _content_with_verdicts(data, tokens, key)


def _two_methods(item: Mapping[str, Any], place: str, attempts: int | None) -> ImportedToken:
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


def _validated(document: ResultFile) -> Content:
    data = document.data
    lists = ("confirmed_glitch_token_ids", "false_positive_ids")
    texts = ("confirmed_glitch_tokens", "false_positives")
    rows = objects(data.get("results", []), "results")
    tokens = chain(
        (_judged(row, place, row.get("validation_method") == "enhanced") for row, place in rows),
        _listed(data, lists[0], True),
        _listed(data, lists[1], False),
    )
    return _content_with_verdicts(data, tokens, "results", *lists, *texts)


def _listed(data: Mapping[str, Any], key: str, confirmed: bool) -> Iterator[ImportedToken]:
    for index, token_id in enumerate(items(data.get(key, []), key)):
        place = f"{key}[{index}]"
        yield ImportedToken(id=whole(token_id, place), place=place, confirmed=confirmed)


def _scanned(document: ResultFile) -> Content:
    """`examined` lists every token of the sample, `confirmed_glitches` some of them again."""
    data = document.data
    keys = ("examined", "confirmed_glitches")
    attempts = count(data, "num_attempts")
    tokens = (
        _judged(row, place, True, attempts)
        for key in keys
        for row, place in objects(data.get(key, []), key)
    )
    return _content_with_verdicts(data, tokens, *keys)


def _vocabulary_scan(document: ResultFile) -> Content:
    data = document.data
    rows = list(objects(data["results"], "results"))
    total = count(data, "original_total")
    trimmed = (total or 0) - len(rows)
    return _content_with_verdicts(
        data,
        (_judged(row, place, True) for row, place in rows),
        "results",
        looked_at=total,
        left_out={_TRIMMED: trimmed} if trimmed > 0 else {},
    )


def _patterns(document: ResultFile) -> Content:
    rows = objects(document.data["results"], "results")
    tokens = (_judged(row, place, False) for row, place in rows)
    return _content_with_verdicts(document.data, tokens, "results")


def _content_with_verdicts(
    data: Mapping[str, Any], tokens: Any, *keys: str, **more: Any
) -> Content:
    return Content(tokens, claimed_model(data), settings=settings(data, *keys), **more)


def _has(*keys: str) -> Any:
    return lambda document: document.keys() >= set(keys)


_IDS, _TEXTS = "glitch_token_ids", "glitch_tokens"


def _mined(document: ResultFile) -> Content:
    data = document.data
    return Content(
        tokens=_mined_tokens(data),
        claimed_model=claimed_model(data),
        lists="findings",
        looked_at=count(data, "total_tokens_checked"),
        settings=settings(data, _IDS, _TEXTS),
    )


def _mined_tokens(data: Mapping[str, Any]) -> Iterator[ImportedToken]:
    ids = items(data[_IDS], _IDS)
    texts = items(data.get(_TEXTS, [None] * len(ids)), _TEXTS)
    if len(texts) != len(ids):
        raise Malformed(
            _TEXTS,
            f"{len(texts)} texts beside {len(ids)} ids, so they cannot be paired; take "
            f"{_TEXTS!r} out to go by the ids alone",
        )
    for index, (token_id, text) in enumerate(zip(ids, texts, strict=True)):
        place = f"{_IDS}[{index}]"
        yield ImportedToken(
            id=whole(token_id, place),
            place=place,
            text=None if text is None else string(text, f"{_TEXTS}[{index}]"),
            glitch=True,
        )


_GUESSED = ("high", "medium", "low")
"""Confidences that a consolidated list gives to tokens without verification."""


def _found_in_ranges(document: ResultFile) -> Content:
    data = document.data
    rows = list(objects(data["glitch_tokens"], "glitch_tokens"))
    with_id = [(row, place) for row, place in rows if row.get("token_id") != -1]
    missing = len(rows) - len(with_id)
    return Content(
        tokens=(_finding(row, place) for row, place in with_id),
        claimed_model=claimed_model(data),
        lists="findings",
        looked_at=count(data, "total_tokens_tested"),
        settings=settings(data, "glitch_tokens", "ranges_tested") | _ranges(data),
        left_out={"entries without a token id (-1)": missing} if missing else {},
    )


def _finding(item: Mapping[str, Any], place: str) -> ImportedToken:
    return token(item, place, glitch=None if item.get("confidence") in _GUESSED else True)


def _ranges(data: Mapping[str, Any]) -> dict[str, Any]:
    """The ranges without their tokens, which `glitch_tokens` lists too."""
    if "ranges_tested" not in data:
        return {}
    found = objects(data["ranges_tested"], "ranges_tested")
    return {"ranges_tested": [settings(one, "glitch_tokens") for one, _ in found]}


def _is_list_of_objects(document: ResultFile) -> bool:
    keys = document.keys()
    if "glitch_tokens" not in keys or "glitch_token_ids" in keys:
        return False
    listed = document.data["glitch_tokens"]
    return isinstance(listed, list) and all(isinstance(one, Mapping) for one in listed[:1])


def _low_norms(document: ResultFile) -> Content:
    data, key = document.data, "lowest_norm_tokens"
    return Content(
        tokens=(token(row, place) for row, place in objects(data[key], key)),
        claimed_model=claimed_model(data),
        settings=settings(data, key),
    )


def _sequences(document: ResultFile) -> Content:
    data = document.data
    rows = list(objects(data["results"], "results"))
    found = [settings(row, "token_texts") for row, _ in rows]
    return Content(
        tokens=(one for row, place in rows for one in _members(row, place)),
        claimed_model=claimed_model(data),
        lists="findings",
        settings=settings(data, "results"),
        extra={"sequences": found},
    )


def _members(row: Mapping[str, Any], place: str) -> Iterator[ImportedToken]:
    ids = items(row.get("tokens"), f"{place}.tokens")
    texts: Sequence[Any] = items(row.get("token_texts", [None] * len(ids)), f"{place}.token_texts")
    if len(texts) != len(ids):
        raise Malformed(f"{place}.token_texts", f"{len(texts)} texts beside {len(ids)} tokens")
    for index, (token_id, text) in enumerate(zip(ids, texts, strict=True)):
        at = f"{place}.tokens[{index}]"
        yield ImportedToken(
            id=whole(token_id, at),
            place=at,
            text=None if text is None else string(text, f"{place}.token_texts[{index}]"),
        )


def _impacts(document: ResultFile) -> Content:
    data, key = document.data, "token_impacts"
    about = mapping(data.get("metadata", data), "metadata")
    return Content(
        tokens=(token(row, place) for row, place in objects(data[key], key)),
        claimed_model=claimed_model(about),
        settings=settings(about, key),
    )


def _is_genetic(document: ResultFile) -> bool:
    return document.keys() >= {"results", "base_text"}


_CLASSIFICATIONS = "classifications"


def _classified_file(document: ResultFile) -> Content:
    data = document.data
    tokens = [
        _classified(row, place) for row, place in objects(data[_CLASSIFICATIONS], _CLASSIFICATIONS)
    ]
    answers = sum(len(found.said["tests"]) for found in tokens)
    return Content(
        tokens=tokens,
        claimed_model=claimed_model(data),
        settings=settings(data, _CLASSIFICATIONS),
        left_out={"prompts and answers of tests": answers} if answers else {},
    )


def _classified(item: Mapping[str, Any], place: str) -> ImportedToken:
    tests = {
        str(test.get("test_name", at)): _outcome(test)
        for test, at in objects(item.get("test_results", []), f"{place}.test_results")
    }
    return token(item, place, ("test_results",), said={"tests": tests})


def _outcome(test: Mapping[str, Any]) -> str:
    if test.get("error"):
        return f"error, counted as {'a finding' if test.get('is_positive') else 'none'}"
    return "positive" if test.get("is_positive") else "negative"


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
    Format(
        "glitcher-mine",
        "glitch_tokens.json, glitch_progress.json: 'glitch_token_ids' beside 'glitch_tokens'",
        lambda document: _IDS in document.keys(),  # noqa: SIM118 - not a mapping
        _mined,
    ),
    Format(
        "glitcher-range",
        "range, special and unicode results, consolidated lists: 'glitch_tokens' with objects",
        _is_list_of_objects,
        _found_in_ranges,
    ),
    Format(
        "glitcher-low-norm",
        "low_norm_tokens.json: 'lowest_norm_tokens'",
        lambda document: "lowest_norm_tokens" in document.keys(),  # noqa: SIM118 - not a mapping
        _low_norms,
    ),
    Format(
        "glitcher-genetic",
        "genetic_results.json: 'results' with 'tokens', beside 'base_text'",
        _is_genetic,
        _sequences,
    ),
    Format(
        "glitcher-impact",
        "token_impact_baseline.json: 'token_impacts'",
        lambda document: "token_impacts" in document.keys(),  # noqa: SIM118 - not a mapping
        _impacts,
    ),
    Format(
        "glitcher-classified",
        "classified_tokens.json: 'classifications'",
        lambda document: _CLASSIFICATIONS in document.keys(),  # noqa: SIM118 - not a mapping
        _classified_file,
    ),
)
