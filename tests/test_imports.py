"""Result files of glitcher, GlitchMiner and glitchrun, read into tokens.

`tests/data/legacy/` has a small file for each format. Its ids and texts are those of Mistral's
vocabulary, but for what one of them claims; the log is cut out of glitcher's own (see the license
note in docs/coming-from-glitcher.md).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from glitchrun.errors import RunError
from glitchrun.imports import ImportedFile, ImportedToken, read, result_file
from glitchrun.imports.formats import FORMATS
from glitchrun.imports.result_file import parse

LEGACY = Path(__file__).parent / "data" / "legacy"
EXAMPLES = sorted(LEGACY.iterdir())


def legacy(name: str) -> ImportedFile:
    return read(LEGACY / name)


def written(folder: Path, content: Any, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def outcome(path: Path) -> str:
    """The name of the file read, or the message of its refusal."""
    try:
        return read(path).source.file
    except RunError as error:
        return str(error)


def by_id(found: ImportedFile) -> dict[int, ImportedToken]:
    return {token.id: token for token in found.tokens}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_of_exactly_one_format(path: Path) -> None:
    document = parse(path)
    assert [form.name for form in FORMATS if form.matches(document)] == [read(path).source.format]


def test_every_format_has_an_example() -> None:
    there = {read(path).source.format for path in EXAMPLES}
    written_by_us = {"glitchrun-import"}  # tests/test_import_command.py
    assert there | written_by_us == {form.name for form in FORMATS}


@pytest.mark.parametrize(
    ("name", "verdicts", "duplicates"),
    [
        ("glitch_tokens.json", {"glitch": 8}, 8),
        ("glitch_progress.json", {"glitch": 1}, 0),
        ("glitch_mining_log_cut.jsonl", dict.fromkeys(("confirmed", "unconfirmed"), 1), 0),
        ("test_results.json", {"confirmed": 1, "unconfirmed": 1}, 0),
        ("test_results_strict.json", {"glitch": 1, "passed": 1}, 0),
        ("comparison_results.json", {"unconfirmed": 2}, 0),
        ("unicode_results.json", {"glitch": 2}, 0),
        ("consolidated.json", {"glitch": 1, "listed": 1}, 0),
        ("stratified_scan.json", {"confirmed": 1, "unconfirmed": 1}, 1),
        ("vocab_scan_results.json", {"confirmed": 2, "unconfirmed": 1}, 0),
        ("low_norm_tokens.json", {"listed": 2}, 0),
        ("pattern_results.json", {"glitch": 1, "passed": 1}, 0),
        ("validated_tokens.json", {"confirmed": 1, "unconfirmed": 1}, 2),
        ("classified_tokens.json", {"listed": 1}, 0),
        ("genetic_results.json", {"listed": 2}, 1),
        ("token_impact_baseline.json", {"listed": 1}, 0),
        ("glitchminer.json", {"glitch": 2}, 0),
        ("glitchminer_strict.json", {"glitch": 2}, 0),
        ("glitchminer_walk.json", {"glitch": 2, "passed": 1}, 0),
        ("glitchminer_printed.txt", {"glitch": 1, "passed": 2}, 0),
        ("ids.json", {"listed": 2}, 1),
        ("id_text.json", {"listed": 2}, 0),
        ("tokens_of_ids.json", {"listed": 2}, 0),
        ("tokens.jsonl", {"confirmed": 1, "unconfirmed": 1, "passed": 1}, 0),
        ("tokens_table.json", {"confirmed": 1, "passed": 1}, 0),
        ("magikarp.jsonl", {"glitch": 1, "passed": 1, "filtered": 1}, 0),
        ("glitchprober.csv", {"glitch": 2}, 0),
        ("tokens.csv", {"confirmed": 1, "passed": 1}, 0),
        ("ids.txt", {"listed": 2}, 0),
        ("texts.json", {"listed": 2}, 0),
    ],
)
def test_verdicts_and_duplicates(name: str, verdicts: dict[str, int], duplicates: int) -> None:
    found = legacy(name)
    if name.endswith("cut.jsonl"):
        verdicts = {**verdicts, "passed": 1, "filtered": 1}
    assert found.verdicts == verdicts
    assert found.duplicates == duplicates
    assert found.entries == len(found.tokens) + duplicates
    assert found.conflicts == 0


def test_a_log_puts_the_events_of_each_token_together() -> None:
    found = legacy("glitch_mining_log_cut.jsonl")
    tokens = by_id(found)
    candidate, confirmed, filtered = tokens[34], tokens[8673], tokens[39]
    assert (candidate.glitch, candidate.confirmed, candidate.asr) == (True, False, 0.0)
    assert candidate.entropy == 2.87109375
    assert (confirmed.asr, confirmed.attempts, confirmed.failures) == (1.0, 1, 1)
    assert filtered.filtered
    assert filtered.said["reason"] == "pattern filtered"
    assert [token.id for token in found.tokens if token.selected] == [8673]
    assert found.source.claimed_model == "/models/nowllm-0829"
    assert found.source.settings["mining_params"]["k"] == 32
    assert found.source.settings["events"]["token_verification"] == 4
    assert found.left_out == {"generated texts": 4}


def test_a_log_counts_what_it_cannot_use() -> None:
    found = legacy("range_mining_log.jsonl")
    assert found.left_out == {
        "last line, which was cut off": 1,
        "errors (category_scan_error)": 1,
        "events of unknown kind (novelty)": 1,
    }
    assert by_id(found)[100].p == 2e-06  # of the probe that came closest to passing


def test_a_strict_check_after_the_screening_probe_decides(tmp_path: Path) -> None:
    events = [
        {"event": "token_verification", "token_id": 7, "target_probability": 0, "is_glitch": True},
        {"event": "token_strict_verification", "token_id": 7, "is_glitch": False},
    ]
    path = written(tmp_path, "\n".join(map(json.dumps, events)) + "\n", "log.jsonl")
    assert read(path).verdicts == {"passed": 1}


def test_a_walk_begun_again_in_the_same_log_is_counted(tmp_path: Path) -> None:
    text = (LEGACY / "glitch_mining_log_cut.jsonl").read_text(encoding="utf-8")
    found = read(written(tmp_path, text + text, "log.jsonl"))
    assert len(found.tokens) == 4
    assert found.duplicates == 8


def test_packed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress((LEGACY / "glitch_mining_log_cut.jsonl").read_bytes()))
    assert read(path).tokens == legacy("glitch_mining_log_cut.jsonl").tokens


def test_failures_follow_from_asr_and_attempts_where_they_are_whole() -> None:
    assert by_id(legacy("stratified_scan.json"))[8673].failures == 4
    assert by_id(legacy("test_results.json"))[1000].failures == 1
    assert by_id(legacy("validated_tokens.json"))[8673].failures is None  # attempts are not said


def test_both_methods_of_a_comparison_are_kept() -> None:
    token = by_id(legacy("comparison_results.json"))[8673]
    assert (token.glitch, token.confirmed, token.asr) == (True, False, 0.4)


def test_magikarps_verdicts_are_by_its_largest_probability() -> None:
    found = legacy("magikarp.jsonl")
    glitch, passed, filtered = found.tokens
    assert (glitch.id, glitch.text, glitch.p, glitch.glitch) == (8673, "/\\", 0.0004, True)
    assert glitch.said["magikarp"] == "strong_verified"
    assert glitch.said["indicators"] == {"E_{in} L2 Norm": 0.11, "E_{out} Cosine Distance": 0.02}
    assert (passed.p, passed.glitch) == (0.99, False)
    assert (filtered.p, filtered.glitch, filtered.selected) == (0.002, None, False)
    assert found.left_out == {"entries that were not verified": 1, "generated texts": 5}
    assert found.source.settings["vocab_size"] == 4


@pytest.mark.parametrize(("encodeable", "verdict"), [(True, "listed"), (False, "filtered")])
def test_a_verification_without_a_probability_is_no_verdict(
    tmp_path: Path, encodeable: bool, verdict: str
) -> None:
    row = {"i": 5, "raw_vocab": "x", "category": "OK", "decoded": "x"}
    row |= {"verification": [{"encodeable": encodeable, "max_prob": math.nan}]}
    (found,) = read(written(tmp_path, json.dumps(row), "x.jsonl")).tokens
    assert (found.p, found.verdict) == (None, verdict)


def test_texts_that_begin_with_an_apostrophe_are_read_as_the_tool_wrote_them(
    tmp_path: Path,
) -> None:
    """Only the reader of glitchrun's tables removes one."""
    rows = "5,'=\n6,''=\n7,'s\n"
    of_glitchprober = read(written(tmp_path, f"index,token\n{rows}", "a.csv"))
    assert [token.text for token in of_glitchprober.tokens] == ["'=", "''=", "'s"]
    of_glitchrun = read(written(tmp_path, f"token_id,token\n{rows}", "b.csv"))
    assert [token.text for token in of_glitchrun.tokens] == ["=", "'=", "'s"]


def test_cells_of_a_table_have_types() -> None:
    first, second = legacy("tokens.csv").tokens
    assert (first.id, first.p, first.asr, first.failures) == (8673, 1e-6, 1.0, 5)
    assert (second.text, second.confirmed, second.glitch) == (" ==", None, False)


def test_texts_without_ids_are_numbered_below_zero(tmp_path: Path) -> None:
    assert [(token.id, token.text) for token in legacy("texts.json").tokens] == [
        (-1, " been"),
        (-2, "/\\"),
    ]
    found = read(written(tmp_path, "token,p\n been,0.5\nx,\n been,\n", "texts.csv"))
    assert [token.text for token in found.tokens] == [" been", "x"]
    assert (found.entries, found.duplicates) == (3, 1)


def test_errors_of_tests_are_not_findings() -> None:
    tests = legacy("classified_tokens.json").tokens[0].said["tests"]
    assert tests["email_extraction_test"] == "error, counted as a finding"
    assert tests["hallucination_test"] == "positive"


def test_sequences_of_a_genetic_search_are_kept_beside_their_tokens() -> None:
    found = legacy("genetic_results.json")
    assert [sequence["tokens"] for sequence in found.extra["sequences"]] == [[8673, 10939], [8673]]
    assert found.source.claimed_model == "/models/nowllm-0829"


def test_lists_of_findings_are_told_from_lists_of_verdicts() -> None:
    assert legacy("glitch_tokens.json").source.lists == "findings"
    assert legacy("vocab_scan_results.json").source.lists == "verdicts"
    assert legacy("glitch_tokens.json").source.looked_at is None
    assert legacy("glitch_progress.json").source.looked_at == 160
    assert legacy("unicode_results.json").source.looked_at == 58
    assert legacy("vocab_scan_results.json").source.looked_at == 10
    assert legacy("stratified_scan.json").source.looked_at == 2
    left_out = legacy("vocab_scan_results.json").left_out
    assert left_out == {"examined tokens that the file itself leaves out": 7}
    assert legacy("consolidated.json").left_out == {"entries without a token id (-1)": 1}


def test_steps_of_a_run_are_put_together() -> None:
    tokens = by_id(legacy("tokens.jsonl"))
    assert tokens[8673].p == 1e-4  # of the probe that came closest to passing
    assert (tokens[10939].glitch, tokens[10939].confirmed) == (True, False)
    assert tokens[750].verdict == "passed"


def test_an_entry_that_contradicts_an_earlier_one_is_counted(tmp_path: Path) -> None:
    rows = [{"id": 5, "glitch": True}, {"id": 5, "glitch": False, "p": 0.5}]
    found = read(written(tmp_path, rows))
    assert (found.duplicates, found.conflicts) == (1, 1)
    assert (found.tokens[0].glitch, found.tokens[0].p) == (True, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"glitch_token_ids": [1, "2"]}, r"glitch_token_ids\[1\]: expected a whole number"),
        ({"glitch_token_ids": [1, -1]}, r"glitch_token_ids\[1\]"),
        ({"glitch_token_ids": [True]}, r"glitch_token_ids\[0\]"),
        ({"glitch_token_ids": [1], "glitch_tokens": []}, "0 texts beside 1 ids.*take"),
        ({"glitch_token_ids": {"a": 1}}, "expected a list"),
        ({"test_results": [{"token_id": 1}]}, r"test_results\[0\]\.is_glitch: expected true"),
        ({"test_results": [{"is_glitch": True}]}, r"test_results\[0\]: no token id"),
        ({"test_results": [7]}, r"test_results\[0\]: expected an object, got 7"),
        ({"examined": [{"token_id": 1, "asr": "x", "is_glitch": True}]}, r"\[0\]\.asr: expected"),
        ([{"id": 1, "asr": 1.5}], r"\[0\]\.asr: expected a number from 0 to 1"),
        ([{"id": 1, "p": -0.1}], r"\[0\]\.p: expected a number from 0 to 1"),
        ([{"id": 1, "attempts": 2, "failures": 3}], r"\[0\]: 3 failures in 2 attempts"),
        ({"columns": ["token_id", "p"], "data": [[1]]}, "1 cells beside 2 columns"),
        ({"tokens": [{"name": "x"}]}, r"tokens\[0\]: no token id"),
        ({"token_impacts": [], "metadata": 1}, "metadata: expected an object, got 1"),
        ([["a"], [1, 2]], "1 texts beside 2 ids"),
        ({"glitches": [1]}, "(?s)none of the formats.*glitcher-log.*glitchrun-run"),
        ({"glitch_tokens": ["a", "b"]}, "none of the formats"),
        ("[1,\n 2,,]", "line 2, column 4: is not JSON"),
        ("\n", "it is empty"),
        ("hello", "none of the formats"),
        ("token_id,p\n1,0.5\n2,x\n", r"line 3\.p: expected a number, got 'x'"),
        ("token_id,p\n1,0.5\n\n2,0.5,1\n", "line 4: 3 cells beside 2 columns"),
        ("index\n1\n-1\n", r"line 3\.token_id: expected a whole number from 0"),
        ("token_id,glitch\n1,maybe\n", r"line 2\.glitch: expected true or false, got 'maybe'"),
        (f"token_id,token\n1,{'x' * 200_000}\n", "line 2: is not CSV .field larger than"),
        ("1\n2\nthree\n", "line 3: expected a token id, got 'three'"),
        ("1\n" + "9" * 5000, "line 2: expected a token id"),
        (
            '{"i": 1, "raw_vocab": "a", "category": "OK", "verification": [{"max_prob": 2}]}\n#',
            r"line 1\.max_prob: expected a number from 0 to 1",
        ),
    ],
)
def test_malformed_files_are_refused_with_the_place(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(RunError, match=message) as caught:
        read(written(tmp_path, content))
    assert "file.json" in str(caught.value)


_LINE = "Current token: 'a', token id: {}, is glitch token: Yes, entropy: {}\n"


@pytest.mark.parametrize(
    ("value", "entropy"),
    [("4.5286", 4.5286), ("0.", 0.0), ("1e-05", 1e-5), ("nan", None), ("inf", None)],
)
def test_an_entropy_that_glitchminer_printed_is_read_as_a_whole(
    value: str, entropy: float | None, tmp_path: Path
) -> None:
    found = read(written(tmp_path, _LINE.format(7, "1.0") + _LINE.format(5, value)))
    assert [(token.id, token.entropy) for token in found.tokens] == [(7, 1.0), (5, entropy)]


@pytest.mark.parametrize(
    ("token_id", "value", "message"),
    [
        ("5", "1.2.3", "line 2: expected a number after 'entropy:', got '1.2.3'"),
        ("5", "", "line 2: expected a number after 'entropy:', got ''"),
        ("5", "\u0663", "line 2: expected a number after 'entropy:'"),
        ("9" * 5000, "1.0", "line 2: the token id is too large"),
        ("9" * 19, "1.0", "line 2: the number is too large"),
    ],
)
def test_a_printed_line_that_is_damaged_is_refused_and_not_read_in_part(
    token_id: str, value: str, message: str, tmp_path: Path
) -> None:
    text = _LINE.format(7, "1.0") + _LINE.format(token_id, value)
    with pytest.raises(RunError, match=message):
        read(written(tmp_path, text))


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = written(tmp_path, '# a log\n{"event": "start"}\n{"event"\n{"event": "x"}\n', "a.jsonl")
    with pytest.raises(RunError, match=r"a\.jsonl: line 3, column 9: is not JSON"):
        read(path)
    path = written(tmp_path, '{"event": "token_result", "token_id": "7"}\n', "a.jsonl")
    with pytest.raises(RunError, match=r"a\.jsonl: line 1\.token_id: expected a whole number"):
        read(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, f"[{'9' * 5000}]", f"[{'9' * 400}]", '[{"id": 1, "p": 1e999}]', "[1.5]"]
)
def test_hostile_numbers_and_brackets_end_in_a_message(tmp_path: Path, text: str) -> None:
    assert "file.json" in outcome(written(tmp_path, text))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_no_change_to_a_file_ends_in_a_traceback(path: Path, tmp_path: Path) -> None:
    """Values of every kind put anywhere are read, or refused with the file's name."""
    if path.suffix in (".txt", ".csv"):
        return
    source = random.Random(path.name)
    lines = path.suffix == ".jsonl"
    text = path.read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("{") and row.endswith("}")]
    for _ in range(25):
        data = [json.loads(row) for row in rows] if lines else json.loads(text)
        _spoil(data, source)
        spoiled = "\n".join(map(json.dumps, data)) + "\n" if lines else json.dumps(data)
        assert path.name in outcome(written(tmp_path, spoiled, path.name))


_ODD = (None, True, -1, 3, 2.5, float("nan"), "x", "", [], {}, [1], ["a"], {"a": 1}, 10**400)


def _spoil(data: Any, source: random.Random) -> None:
    """Puts something odd in one place, at any depth, or takes it out."""
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = source.choice(keys)
        if isinstance(data[key], dict | list) and data[key] and source.random() < 0.7:
            data = data[key]
            continue
        if source.random() < 0.1:
            del data[key]
        else:
            data[key] = source.choice(_ODD)
        return


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[1, 2, 3]")[:-6])
    for name in ("latin.json", "cut.json.gz", "missing.json"):
        with pytest.raises(RunError, match=name):
            read(tmp_path / name)


def test_numbers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    path = written(tmp_path, '[{"id": 3, "entropy": NaN, "p": Infinity}]')
    assert (read(path).tokens[0].entropy, read(path).tokens[0].p) == (None, None)


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "found.json")
    with pytest.raises(RunError, match="not a regular file"):
        read(tmp_path / "found.json")


@pytest.mark.parametrize("packed", [False, True])
def test_more_than_any_list_of_tokens_is_refused_unread(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_file, "_MOST_BYTES", 1024**2)
    content = b"[" + b" " * 50 * 1024**2 + b"]"
    path = tmp_path / "found.json"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    with pytest.raises(RunError, match="more than 1 MiB"):
        read(path)


def test_carriage_returns_in_cells_that_are_not_quoted(tmp_path: Path) -> None:
    """GlitchProber's lists end their lines with a line feed and do not quote `);\\r`."""
    listed = read(written(tmp_path, "index,token\n5,);\r\n6,a\n", "a.csv")).tokens
    assert [token.text for token in listed] == [");\r", "a"]
    saved = read(written(tmp_path, "index,token\r\n5,);\r\n6,a\r\n", "b.csv")).tokens
    assert [token.text for token in saved] == [");", "a"]


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_numbers_are_written_in_plain_digits(tmp_path: Path, name: str) -> None:
    head = "token_id\n" if name.endswith("csv") else "5\n"
    for wrong in ("1_000", "٣"):
        with pytest.raises(RunError, match="line 2"):
            read(written(tmp_path, f"{head}{wrong}\n", name))


def test_files_of_many_empty_lines_and_objects_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_file, "_MOST_LINES", 9)
    monkeypatch.setattr(result_file, "_MOST_OBJECTS", 9)
    for text, what in (
        ("{}\n" * 11, "lines"),
        ("1\n" * 11, "lines"),
        ("[{}" + ",{}" * 10 + "]", "obj"),
    ):
        with pytest.raises(RunError, match=f"contains 1[12] {what}"):
            read(written(tmp_path, text, "a.jsonl" if text[0] == "{" else "a"))
