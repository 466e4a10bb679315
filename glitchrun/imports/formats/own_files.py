"""Plain lists of tokens, and the files that glitchrun writes: tokens.jsonl, tokens.json (an MLflow
table), and the output of `glitchrun import`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.imports.fields import (
    claimed_model,
    count,
    flag,
    items,
    mapping,
    objects,
    settings,
    share,
    string,
    token,
    whole,
)
from glitchrun.imports.records import Content, Format, ImportedToken
from glitchrun.imports.result_file import Malformed, ResultFile


def _bare(document: ResultFile) -> Content:
    return Content(tokens=_each(document.data, ""))


def _under_tokens(document: ResultFile) -> Content:
    data = document.data
    return Content(
        tokens=_each(data["tokens"], "tokens"),
        claimed_model=claimed_model(_plain(data)),
        settings=settings(data, "tokens"),
    )


def _plain(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data without a `model` that is not a plain name."""
    return {key: value for key, value in data.items() if isinstance(value, str)}


def _each(value: Any, name: str) -> Iterator[ImportedToken]:
    for index, item in enumerate(items(value, name or "the file")):
        place = f"{name}[{index}]"
        if isinstance(item, Mapping):
            yield _with_verdict(item, place)
        else:
            yield ImportedToken(whole(item, place), place)


def _with_verdict(item: Mapping[str, Any], place: str) -> ImportedToken:
    """An object, with `glitch` or `is_glitch` as its verdict, if it has one."""
    key = next((key for key in ("glitch", "is_glitch") if item.get(key) is not None), None)
    found = flag(item[key], f"{place}.{key}") if key else None
    return token(item, place, ("glitch", "is_glitch"), glitch=found)


def _is_bare(document: ResultFile) -> bool:
    data = document.data if document.kind == "json" else None
    if not isinstance(data, list) or all(isinstance(item, str) for item in data):
        return False
    return not any(isinstance(item, list) for item in data)


def _has_tokens(document: ResultFile) -> bool:
    if "tokens" not in document.keys() or "kind" in document.keys():  # noqa: SIM118
        return False
    return isinstance(document.data["tokens"], list)


KIND = "glitchrun/tokens"
"""The `kind` of the output of `glitchrun import`."""
_VERDICTS = ("glitch", "confirmed")


def _run(document: ResultFile) -> Content:
    """tokens.jsonl has one line per step and token. The lines of a token are merged; the verdict of
    the last step counts. Controls are left out."""
    rows: dict[int, dict[str, Any]] = {}
    places: dict[int, str] = {}
    own = [(line, row) for line, row in document.data if not _is_control(row)]
    for line, row in own:
        token_id = whole(row.get("token_id"), f"line {line}.token_id")
        places.setdefault(token_id, f"line {line}")
        known = rows.setdefault(token_id, {})
        known |= {key: value for key, value in row.items() if value is not None or key not in known}
        known["steps"] = [*known.get("steps", []), row.get("step")]
        if row.get("probes"):
            known |= _closest(row["probes"], f"line {line}.probes")
    return Content(
        tokens=[_row(row, places[token_id]) for token_id, row in rows.items()],
        left_out=_controls_left_out(len(document.data) - len(own)),
    )


def _is_control(row: Mapping[str, Any]) -> bool:
    """Whether a row is about a token that the run examined only as a control."""
    return row.get("control_of") is not None and row.get("glitch") is None


def _controls_left_out(count: int) -> dict[str, int]:
    return {"controls": count} if count else {}


def _closest(probes: Any, place: str) -> dict[str, Any]:
    """p, rank and entropy of the probe with the largest p."""
    found = []
    for name, value in mapping(probes, place).items():
        result = mapping(value, f"{place}.{name}")
        p = None if result.get("p") is None else share(result["p"], f"{place}.{name}.p")
        found.append((-1.0 if p is None else p, result))
    best = max(found, key=lambda scored: scored[0])[1]
    return {key: best.get(key) for key in ("p", "rank", "entropy")}


def _table(document: ResultFile) -> Content:
    rows = list(_rows(document.data))
    own = [_row(row, place) for place, row in rows if not _is_control(row)]
    return Content(tokens=own, left_out=_controls_left_out(len(rows) - len(own)))


def _rows(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    named = enumerate(items(data["columns"], "columns"))
    columns = [string(name, f"columns[{place}]") for place, name in named]
    for index, row in enumerate(items(data["data"], "data")):
        place = f"data[{index}]"
        cells = items(row, place)
        if len(cells) != len(columns):
            raise Malformed(place, f"{len(cells)} cells beside {len(columns)} columns")
        yield place, dict(zip(columns, cells, strict=True))


def _imported(document: ResultFile) -> Content:
    data = document.data
    source = mapping(data.get("source", {}), "source")
    rows = objects(data.get("tokens"), "tokens")
    return Content(
        tokens=(_row(row, place, row.get("said")) for row, place in rows),
        claimed_model=source.get("claimed_model"),
        lists="findings" if source.get("lists") == "findings" else "verdicts",
        looked_at=count(source, "looked_at"),
        settings=settings(data, "tokens", "extra"),
        extra=mapping(data.get("extra", {}), "extra"),
    )


def _row(
    row: Mapping[str, Any], place: str, said: Mapping[str, Any] | None = None
) -> ImportedToken:
    """A row with the names of glitchrun; `token_repr` is the visible form of a token's text."""
    settled: dict[str, Any] = {
        key: flag(row[key], f"{place}.{key}") for key in _VERDICTS if row.get(key) is not None
    }
    if row.get("rank") is not None:
        settled["rank"] = whole(row["rank"], f"{place}.rank")
    shown = row.get("token_repr")
    known = (*_VERDICTS, "rank", "token_repr", "filtered", "verdict", "said")
    return token(
        row,
        place,
        known,
        visible=None if shown is None else string(shown, f"{place}.token_repr"),
        filtered=row.get("filtered") is True,
        said=dict(mapping(said or {}, f"{place}.said")),
        **settled,
    )


def _is_run(document: ResultFile) -> bool:
    return "token_id" in document.first and "event" not in document.first


def _is_table(document: ResultFile) -> bool:
    columns = document.data["columns"] if document.keys() >= {"columns", "data"} else ()
    return isinstance(columns, list) and "token_id" in columns


FORMATS = (
    Format("ids", "a list of ids, or of objects with 'token_id' or 'id'", _is_bare, _bare),
    Format("tokens", "'tokens' with ids or objects", _has_tokens, _under_tokens),
    Format("glitchrun-run", "a run's tokens.jsonl: lines with 'token_id'", _is_run, _run),
    Format(
        "glitchrun-table",
        "a run's tokens.json: an MLflow table with a column 'token_id'",
        _is_table,
        _table,
    ),
    Format(
        "glitchrun-import",
        f"what `glitchrun import` writes: 'kind' is {KIND!r}",
        lambda document: document.keys() >= {"kind", "tokens"} and document.data["kind"] == KIND,
        _imported,
    ),
)
