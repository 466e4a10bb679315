"""What glitchrun writes: tokens.jsonl, tokens.json (an MLflow table), and `import`'s output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.imports.document import Document, Malformed
from glitchrun.imports.fields import (
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
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found

KIND = "glitchrun/tokens"
"""`kind` of `import`'s output."""
_VERDICTS = ("glitch", "confirmed")


def _run(document: Document) -> Content:
    """tokens.jsonl has a line for each step that looked at a token: they are put together, and
    what a later step says of a verdict stands. Controls are nothing that a run found."""
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
        tokens=[_ours(row, places[token_id]) for token_id, row in rows.items()],
        left_out=_controls_left_out(len(document.data) - len(own)),
    )


def _is_control(row: Mapping[str, Any]) -> bool:
    """Whether a row is about an ordinary token that others were held against, and only that."""
    return row.get("control_of") is not None and row.get("glitch") is None


def _controls_left_out(count: int) -> dict[str, int]:
    return {"controls": count} if count else {}


def _closest(probes: Any, place: str) -> dict[str, Any]:
    """p, rank and entropy of the probe that came closest to passing."""
    found = []
    for name, value in mapping(probes, place).items():
        result = mapping(value, f"{place}.{name}")
        p = None if result.get("p") is None else share(result["p"], f"{place}.{name}.p")
        found.append((-1.0 if p is None else p, result))
    best = max(found, key=lambda scored: scored[0])[1]
    return {key: best.get(key) for key in ("p", "rank", "entropy")}


def _table(document: Document) -> Content:
    rows = list(_rows(document.data))
    own = [_ours(row, place) for place, row in rows if not _is_control(row)]
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


def _imported(document: Document) -> Content:
    data = document.data
    source = mapping(data.get("source", {}), "source")
    rows = objects(data.get("tokens"), "tokens")
    return Content(
        tokens=(_ours(row, place, row.get("said")) for row, place in rows),
        claimed_model=source.get("claimed_model"),
        lists="findings" if source.get("lists") == "findings" else "verdicts",
        looked_at=count(source, "looked_at"),
        settings=settings(data, "tokens", "extra"),
        extra=mapping(data.get("extra", {}), "extra"),
    )


def _ours(row: Mapping[str, Any], place: str, said: Mapping[str, Any] | None = None) -> Found:
    """A row with our own names; `token_repr` is the visible form of a token's text."""
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


def _is_run(document: Document) -> bool:
    return "token_id" in document.first and "event" not in document.first


def _is_table(document: Document) -> bool:
    columns = document.data["columns"] if document.keys() >= {"columns", "data"} else ()
    return isinstance(columns, list) and "token_id" in columns


FORMATS = (
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
