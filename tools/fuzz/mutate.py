"""Random changes of bytes and of JSON, and documents drawn from the schema."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from glitchrun.spec.schema import closed, parameters
from glitchrun.spec.strategy import STRATEGIES

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, 10**20, "", "x", "mine", "{user}", "é\u202e", "(",
    "steps.0.k", float("nan"), float("inf"), 1e308, 2**31, 2**63, -(2**63), 10**400, "0" * 70_000,
    [], [[]], [None], [1, 2], [[2, 1]], ["mine", "mine"], {}, {"a": 1}, {"env": "UNSET"},
    {"env": "SET"}, {"env": "UNSET", "default": [1]}, {"env": 5}, {"env": "SET", "x": 1},
    {"ids": [1], "from": "x"}, {"from": {"env": "SET"}}, {"steps.0.k": [1, 2]}, {"seed": []},
    {"seed": [1]}, {"steps": [[1]]}, {"model.path.x": [1]}, {"": [1]}, [{"seed": 1}], [["seed"]],
    [{"strategy": "scan"}], [{"id": "model", "strategy": []}], "\0", "~nobody/x", "x" * 400,
    "../../../etc/passwd", "/dev/zero", "\x1b[2J", "=1+1", "<script>alert(1)</script>", "(a+)+$",
    "<#300>", "<#99999999>", "{token}", "{{ 1/0 }}", "\ud800", {"__proto__": {}}, [0] * 3000,
]  # fmt: skip
"""Values of every kind, among them those that break naive readers."""
_KEYS = ("env", "x-a", "id", "from", "steps", "1", "", "__class__", "a.b", "\u202e")
_CHUNKS = (
    b"\0", b"\xff" * 8, b"{", b"]", b'"', b"\n", b": ", b"- ", b"&a ", b"*a ", b"!!x ", b"\t",
    b"|\n", b"%YAML", b"---\n", b"\xe2\x80\xae", b"9" * 400, b"[" * 3000, b"<<: ", b"\\u0000",
)  # fmt: skip


def change_json(document: Any, rng: random.Random) -> Any:
    """`document` with one value, anywhere in it, replaced, removed, renamed or copied."""
    holders = [part for part in _parts(document) if part]
    if not holders:
        return rng.choice(VALUES)
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = rng.choice(keys)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(_KEYS)] = holder[key]
    elif kind == 2:
        holder[key] = _near(holder[key], rng, rng.choice(holders))
    else:
        holder[key] = json.loads(json.dumps(rng.choice(VALUES)))
    return document


def _near(value: Any, rng: random.Random, other: Any) -> Any:
    """A number or text near `value`; for anything else a copy of another part."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([value + 1, value - 1, value * 2, -value, _third(value)])
    if isinstance(value, str):
        return rng.choice([value + "x", value[1:], value.upper(), value * 2])
    return json.loads(json.dumps(other))


def _third(value: float) -> float:
    return value // 3 if abs(value) > 1e300 else value / 3  # a float has no room for more


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(part for inner in value.values() for part in _parts(inner))]
    if isinstance(value, list):
        return [value, *(part for inner in value for part in _parts(inner))]
    return []


def change_bytes(data: bytes, rng: random.Random, upto: int | None = None) -> bytes:
    """`data` with a byte, a bit or a stretch of its first `upto` bytes changed, cut or repeated."""
    text = bytearray(data)
    size = min(len(text), upto or len(text))
    if not size:
        return rng.choice(_CHUNKS)
    at = rng.randrange(size)
    kind = rng.randrange(7)
    length = min(size - at, 2 ** rng.randrange(8))
    if kind == 0:
        text[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        text[at] = rng.randrange(256)
    elif kind == 2:
        del text[at : at + length]
    elif kind == 3:
        text[at:at] = rng.choice(_CHUNKS)
    elif kind == 4:
        text[at:at] = text[at : at + length]
    elif kind == 5:
        text[at : at + length] = rng.randbytes(length)
    else:
        del text[at:]
    return bytes(text)


def from_schema(schema: Mapping[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a part of the schema allows, and some that other rules of it reject."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of([from_schema(one, depth) for one in schema[several]])
    if "if" in schema and "else" in schema and "type" not in schema:
        return st.one_of(
            from_schema(schema.get("then", {}), depth), from_schema(schema["else"], depth)
        )
    kinds = schema.get("type", ["string", "integer", "boolean", "null"])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return st.one_of([_of_kind(kind, schema, depth) for kind in kinds])


def _of_kind(kind: str, schema: Mapping[str, Any], depth: int) -> st.SearchStrategy[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if kind == "integer":
        near = min(high if high is not None else 6, (low or 0) + 6)
        far = st.integers(low, high) if depth < 1 else st.nothing()  # steps must stay small
        return st.one_of(st.integers(low, near), far)
    if kind == "number":
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if kind == "boolean":
        return st.booleans()
    if kind == "string":
        if "pattern" in schema:
            return st.one_of(st.from_regex(schema["pattern"], fullmatch=True), st.text(max_size=5))
        words = st.sampled_from(["a", " fox", "{user}", "{token}", "<#300>", "«", "repeat", "é"])
        return st.one_of(words, st.text(max_size=20))
    if kind == "array":
        if depth > 3 or "items" not in schema:
            return st.just([])
        most = min(schema.get("maxItems", 4), 4)
        least = min(schema.get("minItems", 0), most)
        return st.lists(from_schema(schema["items"], depth + 1), min_size=least, max_size=most)
    if kind == "object":
        return _of_object(schema, depth)
    return st.none()


def _of_object(schema: Mapping[str, Any], depth: int) -> st.SearchStrategy[Any]:
    parts = schema.get("properties", {})
    required = [name for name in schema.get("required", ()) if name in parts]
    fixed = {name: from_schema(parts[name], depth + 1) for name in required}
    if depth > 3:
        return st.fixed_dictionaries(fixed)
    free = {
        name: from_schema(part, depth + 1)
        for name, part in parts.items()
        if name not in required and isinstance(part, Mapping)
    }
    return _few(fixed, free)


@st.composite
def _few(draw: Any, fixed: dict[str, Any], free: dict[str, Any]) -> dict[str, Any]:
    """Fixed keys, and at most two of the free ones, so that rules about pairs can hold."""
    names = draw(st.lists(st.sampled_from(sorted(free)), max_size=2, unique=True)) if free else []
    found: dict[str, Any] = draw(
        st.fixed_dictionaries({**fixed, **{name: free[name] for name in names}})
    )
    return found


@st.composite
def specs(draw: Any, model: str) -> dict[str, Any]:
    """Documents with one to three steps drawn from the schema of their strategy."""
    steps = []
    for number in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(STRATEGIES.built_in)))
        schema = {"properties": parameters(name), "required": STRATEGIES[name].fragment["required"]}
        step = draw(_of_object(schema, 1))
        if "tokens" in step:
            step["tokens"] = draw(_sources(number))
        if "pool" in step:
            step["pool"] = draw(_sources(number))
        steps.append({"id": f"s{number}", "strategy": name, **step})
    rest = {
        name: from_schema(part, 1)
        for name, part in closed()["properties"].items()
        if name
        in ("seed", "thresholds", "system", "template", "gates", "tokens", "probes", "matrix")
    }
    top = draw(_few({}, rest))
    return {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": draw(st.one_of(st.just("fuzz"), st.text(min_size=1, max_size=9)))},
        "model": {"path": model, "device": "cpu"},
        **top,
        "steps": steps,
    }


def _sources(number: int) -> st.SearchStrategy[Any]:
    ids = st.lists(st.integers(0, 420), min_size=1, max_size=4, unique=True)
    sources = [
        st.fixed_dictionaries({"ids": ids}),
        st.fixed_dictionaries({"texts": st.lists(st.sampled_from(["a", " the", "é"]), min_size=1)}),
    ]
    if number:
        sources.append(st.just({"from": f"s{number - 1}"}))
    return st.one_of(sources)
