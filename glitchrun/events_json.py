"""Batches of facts as JSON, as the ledger stores them: `batch_to_json` and its inverse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from glitchrun.events import (
    Answered,
    Attempt,
    Batch,
    Control,
    Entry,
    ProbeResult,
    Sampled,
    Screened,
    Token,
    TokenFact,
    Verified,
)


def batch_to_json(batch: Batch, *, verdicts: bool = True) -> dict[str, Any]:
    """A batch as JSON-ready data; `batch_from_json` is the inverse.

    Args:
        batch: The batch.
        verdicts: Whether to include `glitch` and `confirmed`. Without them they are read as False,
            until `glitchrun.verdicts` judges the batch.
    """
    return {
        "facts": [_fact_to_json(fact, verdicts) for fact in batch.facts],
        "done": batch.done,
        "total": batch.total,
        "seconds": batch.seconds,
        "counters": dict(batch.counters),
        "search_seconds": batch.search_seconds,
        **({"stage": batch.stage} if batch.stage else {}),
        **({"prompts": dict(batch.prompts)} if batch.prompts else {}),
    }


def batch_from_json(data: Mapping[str, Any]) -> Batch:
    """The batch of which `batch_to_json` made `data`.

    Raises:
        KeyError: a field is missing.
        TypeError: a field is unknown, or has another type than an object or list.
        ValueError: a fact has an unknown kind.
    """
    return Batch(
        facts=tuple(_fact_from_json(fact) for fact in data["facts"]),
        done=data["done"],
        total=data["total"],
        seconds=data["seconds"],
        counters=data["counters"],
        search_seconds=data.get("search_seconds", 0.0),
        stage=data.get("stage", ""),
        prompts={name: tuple(texts) for name, texts in data.get("prompts", {}).items()},
    )


def _fact_to_json(fact: TokenFact | Control | Screened | Entry, verdicts: bool) -> dict[str, Any]:
    data = {"kind": type(fact).__name__.lower(), **asdict(fact)}
    if not verdicts:
        data.pop("glitch", None)
        data.pop("confirmed", None)
    if isinstance(fact, Control):
        data["fact"] = _fact_to_json(fact.fact, verdicts)
        if not fact.elsewhere:
            del data["elsewhere"]
    elif isinstance(fact, Verified):
        for result in data["probes"].values():
            _drop_defaults(result, ("at_positions", "greedy", "least", "encodable"))
        _drop_defaults(data, ("answers", "any_of"))
    elif isinstance(fact, Sampled):
        data["continuations"] = _continuations_to_json(fact.continuations)
    return data


def _drop_defaults(data: dict[str, Any], names: Iterable[str]) -> None:
    """Removes empty fields that most facts have, which would double the size of a ledger."""
    for name in names:
        if data[name] in ((), {}, True, None):
            del data[name]


def _continuations_to_json(attempts: Iterable[Attempt]) -> dict[str, list[list[Any]]]:
    """Continuations by probe, as `[number, said, text, ids]`: names would double the size."""
    by_probe: dict[str, list[list[Any]]] = {}
    for one in attempts:
        by_probe.setdefault(one.probe, []).append([one.number, one.said, one.text, one.ids])
    return by_probe


def _continuations_from_json(by_probe: Mapping[str, Any]) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(probe, number, said, text, tuple(ids))
        for probe, some in by_probe.items()
        for number, said, text, ids in some
    )


def _fact_from_json(data: Mapping[str, Any]) -> TokenFact | Control | Screened | Entry:
    match data["kind"]:
        case "entry":
            return Entry(data["table"], data["cells"])
        case "screened":
            columns = ("token_ids", "log_p", "gap")
            return Screened(*(tuple(data[name]) for name in columns))
        case "control":
            elsewhere = data.get("elsewhere", False)
            return Control(data["of"], data["alike"], _token_fact(data["fact"]), elsewhere)
        case _:
            return _token_fact(data)


def _token_fact(data: Mapping[str, Any]) -> TokenFact:
    fields = {key: value for key, value in data.items() if key != "kind"}
    match data["kind"]:
        case "verified":
            probes = {name: _probe_result(r) for name, r in fields.pop("probes").items()}
            fields.setdefault("glitch", False)
            if "answers" in fields:
                fields["answers"] = {n: Answered(**one) for n, one in fields["answers"].items()}
            if "any_of" in fields:
                fields["any_of"] = tuple(map(tuple, fields["any_of"]))
            return Verified(token=Token(**fields.pop("token")), probes=probes, **fields)
        case "sampled":
            fields.setdefault("confirmed", False)
            fields["outcomes"] = tuple(fields["outcomes"])
            fields["continuations"] = _continuations_from_json(fields.get("continuations", {}))
            return Sampled(token=Token(**fields.pop("token")), **fields)
        case kind:
            raise ValueError(f"no kind of fact: {kind!r}")


def _probe_result(fields: Mapping[str, Any]) -> ProbeResult:
    if "greedy" not in fields:
        return ProbeResult(**fields)
    lists = {name: tuple(fields.get(name, ())) for name in ("at_positions", "greedy")}
    return ProbeResult(**{**fields, **lists})
