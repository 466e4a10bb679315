"""Reading files: the core schema of YAML 1.2, positions, and hostile input."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glitchrun.spec.nodes import MappingNode, plain, walk
from glitchrun.spec.problems import CODES, Problem
from glitchrun.spec.spec_files import MAX_BYTES, Source, decode, read_source
from glitchrun.spec.yaml_parser import MAX_NODES, parse
from glitchrun.spec.yaml_scalars import resolve


def read(text: str | bytes) -> tuple[Any, list[Problem]]:
    raw = text if isinstance(text, bytes) else text.encode()
    source = decode("spec.yaml", raw)
    if isinstance(source, Problem):
        return None, [source]
    node, problems = parse(source)
    return (plain(node) if node else None), problems


def only_problem(text: str | bytes) -> tuple[int, int, str]:
    _, problems = read(text)
    assert len(problems) == 1, problems
    return problems[0].line, problems[0].column, problems[0].code


# Value by the core schema (YAML 1.2.2, section 10.3.2); what YAML 1.1 made of it, where different.
CORE: list[tuple[str, Any]] = [
    ("no", "no"),  # False
    ("on", "on"),  # True
    ("y", "y"),
    ("true", True),
    ("True", True),
    ("tRue", "tRue"),
    ("null", None),
    ("~", None),
    ("Null", None),
    ("12:30", "12:30"),  # 750
    ("12:30:45", "12:30:45"),
    ("2020-01-01", "2020-01-01"),  # a date
    ("017", 17),  # 15
    ("0o17", 15),  # text
    ("0x1F", 31),
    ("-0x1F", "-0x1F"),
    ("0b11", "0b11"),  # 3
    ("1_000", "1_000"),  # 1000
    ("-12", -12),
    ("+12", 12),
    ("1e-5", 1e-5),  # text
    ("1E5", 1e5),
    ("-.5e+2", -50.0),
    ("1.", 1.0),
    (".5", 0.5),
    (".", "."),
    ("+", "+"),
    ("-", "-"),
    ("1.2.3", "1.2.3"),
    ("1e", "1e"),
    ("0o8", "0o8"),
    ("0x", "0x"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), CORE)
def test_plain_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_quoted_and_tagged_scalars() -> None:
    data, problems = read("a: '1'\nb: \"no\"\nc: !!str 1\nd: !!float 3\ne: !!int 0x10\nf: ! 12\n")
    assert not problems
    assert data == {"a": "1", "b": "no", "c": "1", "d": 3, "e": 16, "f": "12"}


def test_keys_are_text_as_written() -> None:
    data, problems = read("1: a\nno: b\n1.0: c\n'~': d\n? e\n: f\n")
    assert not problems
    assert data == {"1": "a", "no": "b", "1.0": "c", "~": "d", "e": "f"}


def test_an_alias_is_the_same_value_with_the_anchor_s_place() -> None:
    source = decode("s", b"a: &a {b: 1}\nc: *a\n")
    assert isinstance(source, Source)
    node, problems = parse(source)
    assert isinstance(node, MappingNode)
    assert not problems
    assert plain(node) == {"a": {"b": 1}, "c": {"b": 1}}
    assert node.get("a") is node.get("c")


def test_places_count_characters_from_one() -> None:
    source = decode("s", "# ключ\né: 日本 # x\nlist:\n  - 'ab': \"c d\"\n".encode())
    assert isinstance(source, Source)
    node, _ = parse(source)
    assert node is not None
    places = {path: (n.place.line, n.place.column, n.place.width) for path, n in walk(node)}
    assert places[("é",)] == (2, 4, 2)
    assert places[("list",)] == (4, 3, 1)
    assert places[("list", 0, "ab")] == (4, 11, 5)


@pytest.mark.parametrize("old_break", ["\x85", "\u2028", "\u2029"])
def test_line_breaks_of_yaml_1_1_are_plain_characters(old_break: str) -> None:
    data, problems = read(f"a: x{old_break}y\nb: 1\nb: 2\n")
    assert data["a"] == f"x{old_break}y"
    assert [(p.line, p.column) for p in problems] == [(3, 1)]


def test_a_byte_order_mark_is_no_column() -> None:
    assert only_problem(b"\xef\xbb\xbfa: 1\na: 2\n") == (2, 1, "GR006")
    assert only_problem(b"\xef\xbb\xbfa: *b\n") == (1, 4, "GR011")


def test_carriage_returns_end_lines() -> None:
    assert only_problem("a: 1\r\nb: 2\r\nb: 3\r\n") == (3, 1, "GR006")


UNREADABLE: dict[str, tuple[str | bytes, tuple[int, int, str]]] = {
    "empty": ("", (1, 1, "GR014")),
    "only comments": ("# nothing\n", (1, 1, "GR014")),
    "null document": ("---\n~\n", (1, 1, "GR014")),
    "NUL": ("a: 1\nb: \0\n", (2, 4, "GR004")),
    "escape sequence": ("a: \x1b[31m\n", (1, 4, "GR004")),
    "BOM inside": ("a: 1\nb: x\ufeff\n", (2, 5, "GR004")),
    "Latin-1": ("a: 1\nüb: é\n".encode("latin-1"), (2, 1, "GR003")),
    "cut UTF-8": (b"a: \xe6\x97", (1, 4, "GR003")),
    "UTF-16": ("a: 1".encode("utf-16"), (1, 1, "GR003")),
    "UTF-16 without mark": ("a: 1".encode("utf-16-le"), (1, 2, "GR004")),
    "unterminated": ("a: 'b\n", (1, 4, "GR005")),
    "directive without document": ("%FOO\na: 1\n", (1, 5, "GR005")),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_text_is_located(name: str) -> None:
    text, expected = UNREADABLE[name]
    assert only_problem(text) == expected


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    return "\n".join(lines)


HOSTILE: dict[str, tuple[str, str]] = {
    "alias bomb": (_bomb(), "GR008"),
    "alias depth": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200)),
        "GR007",
    ),
    "brackets": ("[" * 100_000, "GR007"),
    "braces": ("{a: " * 100_000, "GR007"),
    "dashes": ("- " * 100_000, "GR007"),
    "question marks": ("? " * 100_000, "GR013"),
    "values": ("- a\n" * 250_000, "GR008"),
    "flow values": ("[" + "a," * 500_000, "GR008"),
    "tag directives": ("%TAG !a! tag:b,2000:\n" * 40_000 + "--- a", "GR005"),
    "documents": ("---\n" * 250_000, "GR015"),
    "digits": ("a: " + "1" * 1_000_000, "GR010"),
    "python object": ("a: !!python/object/apply:os.system [exit]", "GR009"),
    "python name": ("a: !!python/name:os.system", "GR009"),
    "unclosed quote": ("a: '" + "b\n" * 300_000, "GR005"),
    "colons": ("a:" * 500_000 + " b: c: d", "GR005"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_rejected_quickly(name: str) -> None:
    text, code = HOSTILE[name]
    started = time.process_time()
    _, problems = read(text)
    used = time.process_time() - started
    assert code in {problem.code for problem in problems}
    # Processor time, with room for a slow machine: unbounded, each takes minutes or never ends.
    assert used < 5


def test_all_duplicate_keys_are_reported_and_the_rest_is_read() -> None:
    data, problems = read("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert data == {"a": 1, "b": {"c": 1}}
    assert [(p.line, p.column, p.code) for p in problems] == [(2, 11, "GR006"), (3, 1, "GR006")]


def test_no_more_values_than_the_cap() -> None:
    assert len(read("[" + "a," * (MAX_NODES - 1) + "]")[0]) == MAX_NODES - 1
    assert only_problem("[" + "a," * (MAX_NODES + 1) + "]")[2] == "GR008"


def test_folders_and_pipes_are_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"a" * (10 * MAX_BYTES))
    codes = {}
    for name in ("fifo", "large", "missing", ".", "nul\0", "x" * 5000):
        problem = read_source(f"{tmp_path}/{name}")
        assert isinstance(problem, Problem)
        codes[name[:7]] = problem.code
    large = codes.pop("large")
    assert large == "GR002"
    assert set(codes.values()) == {"GR001"}


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # file modes do not stop root
    problem = read_source(tmp_path / "secret")
    assert isinstance(problem, Problem)
    assert problem.code == "GR001"
    assert "Permission denied" in problem.message


YAML_LIKE = st.text(alphabet=st.sampled_from(list("ab1.:-?[]{}&*!|>'\"%#,~<= \n\t\r\x85\u2028é\0")))


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.text(), YAML_LIKE))
def test_any_text_gives_a_document_or_located_problems(text: str) -> None:
    source = Source("s", text, Path())
    encoded = text.encode(errors="replace")
    decoded = decode("s", encoded)
    problems: list[Problem]
    if isinstance(decoded, Problem):
        node, problems = None, [decoded]
    else:
        source = decoded
        node, problems = parse(source)
    assert node is not None or problems
    for problem in problems:
        assert problem.code in CODES
        assert 1 <= problem.line <= len(source.lines) + 1
        assert problem.column >= 1


@settings(max_examples=200, deadline=None)
@given(st.binary())
def test_any_bytes_give_a_document_or_problems(raw: bytes) -> None:
    data, problems = read(raw)
    assert data is not None or problems


def test_without_libyaml_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "a: {b: [1, no, 'x']}\nc: &c 1e-5\nd: *c\n",
        "a: 1\na: 2\n",
        "a: !!python/name:os.system\n",
        "a: é\u2028 b\n? c\n: d\n",
    ]
    with_libyaml = [read(text) for text in texts]
    monkeypatch.delattr("yaml.CSafeLoader")
    assert [read(text) for text in texts] == with_libyaml


@pytest.mark.parametrize(
    "text", ["\U0001f600", "a\U0001f600b\U0010ffff", "\U00010000", '\\"\U0001f600']
)
@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_with_surrogate_pairs_is_read_as_json(text: str, indent: int | str | None) -> None:
    value = {"a": text, text: [text, "plain"]}
    assert read(json.dumps(value, indent=indent)) == (value, [])


def test_a_surrogate_pair_is_an_escape_in_double_quotes_alone() -> None:
    pair = r"\ud83d\uDE00"
    written = f'{{a: "{pair}", b: \'{pair}\', c: {pair}, d: "\\{pair[:6]}x"}} # {pair}\n'
    assert read(written)[0] == {"a": "\U0001f600", "b": pair, "c": pair, "d": r"\ud83dx"}
    assert read(f"a: |\n  {pair}\n")[0] == {"a": f"{pair}\n"}
    # Characters of its own that the pairs are swapped for: left alone, and the pair is refused.
    assert read('"\U000f1041"')[0] == "\U000f1041"


def test_positions_after_a_surrogate_pair_are_those_of_the_text() -> None:
    assert only_problem(r'{"a": "\ud83d\ude00", b: .nan}') == (1, 26, "GR010")


def test_half_of_a_surrogate_pair_is_rejected_with_a_hint() -> None:
    _, (problem,) = read(r'a: "x \ud83d y"')
    assert problem.code == "GR005"
    assert "surrogate" in problem.hint


def test_a_document_of_one_invalid_number_is_not_called_empty() -> None:
    assert only_problem(".nan") == (1, 1, "GR010")


def test_the_places_of_a_document_are_those_of_its_values() -> None:
    for path in (Path(__file__).parent / "examples").glob("valid/*.yaml"):
        source = read_source(path)
        assert isinstance(source, Source)
        node, _ = parse(source)
        assert node is not None
        for _, part in walk(node):
            line = source.line(part.place.line)
            text = getattr(part, "text", "")
            start = part.place.column - 1
            marked = line[start : start + part.place.width]
            assert text in marked.replace("\\\\", "\\") or text == ""
