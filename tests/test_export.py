"""`glitchrun export`: each format is read by its consumer, or has its documented shape."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, GenerationConfig

from glitchrun.cli import export as cli
from glitchrun.cli import main
from glitchrun.errors import UsageError
from glitchrun.events import Entry, Token
from glitchrun.imports import read
from glitchrun.ledger.record import RunRecord
from glitchrun.plan.build import fingerprint_now
from glitchrun.report.exporting import EXPORTS, export
from glitchrun.spec.types import ModelSpec
from tests.support.reporting import run_of, sampled, step, verified
from tests.support.tiny_models import tiny_llama

END = replace(
    verified(9, p=1e-5, passed=False, glitch=True), token=Token(9, "</s>", "</s>", "special", 1.0)
)
PART = replace(
    verified(12, p=0.5, passed=False, glitch=True), token=Token(12, "�", "Ã", "byte", 1.0)
)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Five glitch tokens, two of them severe; one of three sampled tokens is confirmed."""
    found = [
        verified(5, text="=1+1", p=1e-6, passed=False, glitch=True),
        verified(7, text=' a"\n', p=0.2, passed=False, glitch=True),
        verified(8, p=0.01, passed=False, glitch=True),
        END,
        PART,
        verified(20),
    ]
    samples = [sampled(5, 5, text="=1+1"), sampled(7, 1, text=' a"\n'), sampled(8, 0)]
    return run_of(tmp_path, step("mine", "mine", *found), step("asr", "validate", *samples))


@pytest.mark.parametrize(
    ("where", "step_id", "ids"),
    [
        (None, None, [5]),
        ("confirmed", None, [5]),
        ("severe", None, [5, 9]),
        ("glitch", None, [5, 7, 8, 9, 12]),
        (None, "mine", [5, 7, 8, 9, 12]),
        (None, "asr", [5]),
    ],
)
def test_tokens_are_selected_by_the_verdicts_of_the_run(
    record: RunRecord, where: str | None, step_id: str | None, ids: list[int]
) -> None:
    found = export(record, "ids", where, step_id)
    assert json.loads(found.content) == ids
    assert found.tokens == len(ids)


def test_verdicts_that_the_run_does_not_have_are_refused(record: RunRecord) -> None:
    with pytest.raises(UsageError, match="add a step of the strategy validate"):
        export(record, "ids", "confirmed", "mine")
    with pytest.raises(UsageError, match="verified no tokens"):
        export(record, "ids", "severe", "asr")
    with pytest.raises(UsageError, match="no step 'other'; it has: mine, asr"):
        export(record, "ids", None, "other")


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("suppress-tokens", {"suppress_tokens": [5, 7, 8, 12]}),
        ("bad-words", {"bad_words_ids": [[5], [7], [8], [12]]}),
        ("logit-bias", {"logit_bias": {"5": -100, "7": -100, "8": -100, "12": -100}}),
        ("garak", ["=1+1", ' a"\n', " t8"]),
    ],
)
def test_a_list_has_the_shape_of_its_reader(record: RunRecord, form: str, content: Any) -> None:
    found = export(record, form, "glitch")
    assert json.loads(found.content) == content
    assert "left out: " in found.notes[0]


def test_arguments_of_llama_cpp_are_one_in_a_line(record: RunRecord) -> None:
    assert export(record, "llama-cpp", "severe").content == b"--logit-bias 5-inf\n"


def test_a_spreadsheet_reads_no_formula_and_import_reads_the_texts(
    record: RunRecord, tmp_path: Path
) -> None:
    content = export(record, "csv", "glitch").content
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [row["token"] for row in rows] == ["'=1+1", ' a"\n', "</s>", " t8", "�"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    assert (rows[0]["asr"], rows[0]["confirmed"], rows[0]["p"]) == ("1.0", "true", "1e-06")
    (tmp_path / "list.csv").write_bytes(content)
    found = read(tmp_path / "list.csv")
    assert [token.text for token in found.tokens] == ["=1+1", ' a"\n', "</s>", " t8", "�"]
    assert found.verdicts == {"confirmed": 1, "unconfirmed": 2, "glitch": 2}
    (tmp_path / "garak.json").write_bytes(export(record, "garak", "glitch").content)
    texts = [token.text for token in read(tmp_path / "garak.json").tokens]
    assert texts == ["=1+1", ' a"\n', " t8"]


def test_any_text_survives_export_and_import(tmp_path: Path) -> None:
    texts = [
        "'=",
        "''",
        "a\rb",
        "\r\n",
        "\r",
        "\0",
        '"',
        "=x",
        " '-",
        "\t",
        "\u2028",
        "\ufeff",
        ",",
    ]
    found = [
        verified(at, text=text, p=1e-5, passed=False, glitch=True) for at, text in enumerate(texts)
    ]
    content = export(run_of(tmp_path, step("mine", "mine", *found)), "csv").content
    (tmp_path / "list.csv").write_bytes(content)
    assert {token.id: token.text for token in read(tmp_path / "list.csv").tokens} == dict(
        enumerate(texts)
    )


def test_a_table_has_types(record: RunRecord) -> None:
    frame = pd.read_parquet(io.BytesIO(export(record, "parquet", "glitch").content))
    assert list(frame["token_id"]) == [5, 7, 9, 8, 12]
    assert frame["token"][0] == "=1+1"
    assert list(frame["severe"]) == [True, False, True, False, False]
    assert frame["asr"].dtype == "float64"


@pytest.mark.parametrize("form", ["suppress-tokens", "bad-words"])
@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"do_sample": True, "top_k": 0}])
def test_generate_never_emits_a_listed_token(
    tmp_path: Path, llama_folder: Path, form: str, sampling: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    prompt = torch.tensor([[40, 41, 42]])

    def generated(**options: Any) -> set[int]:
        torch.manual_seed(1)
        rows = model.generate(
            prompt, max_new_tokens=60, pad_token_id=0, eos_token_id=-1, **sampling, **options
        )
        return set(rows[0, 3:].tolist())

    usual = generated()
    facts = [verified(token_id, passed=False, glitch=True) for token_id in usual]
    record = run_of(tmp_path, step("mine", "mine", *facts))
    (tmp_path / "generation_config.json").write_bytes(export(record, form).content)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert usual
    assert not generated(generation_config=config) & usual


# Phrases --------------------------------------------------------------------------------------


def phrase(text: str, ids: list[int], kind: str, **cells: Any) -> Entry:
    row = {"phrase": text, "ids": ids, "control": kind, "control_ids": [90, 91]}
    return Entry("phrases", {**row, "control_result": "pass", **cells})


def phrases_of(tmp_path: Path, *others: Any) -> RunRecord:
    """Three phrases that fail, the second of them severe; one of two sampled ones is confirmed."""
    tested = [
        phrase(" solid gold", [5, 6], "characters", result="fail", p=0.2, said="x"),
        phrase("=é", [7, 8, 9], "usual", result="fail", p=1e-9, said="y", control_result="fail"),
        phrase("ok", [5, 7], "characters", result="pass", p=0.9, said="ok"),
        phrase("  ", [3, 3], "characters", result="fail", p=0.5, said=""),
    ]
    asked = [
        phrase(" solid gold", [5, 6], "characters", result="pass", asr=0.2, attempts=5, failures=1),
        phrase("=é", [7, 8, 9], "usual", result="fail", asr=0.9, attempts=10, failures=9),
    ]
    return run_of(
        tmp_path, step("pairs", "test", *tested), step("asr", "validate", *asked), *others
    )


@pytest.mark.parametrize(
    ("form", "where", "content"),
    [
        ("ids", None, [[7, 8, 9]]),
        ("ids", "severe", [[7, 8, 9]]),
        ("ids", "glitch", [[7, 8, 9], [5, 6], [3, 3]]),
        ("bad-words", "glitch", {"bad_words_ids": [[7, 8, 9], [5, 6], [3, 3]]}),
        ("vllm-bad-words", "glitch", {"bad_words": [" solid gold"]}),
        ("garak", "glitch", [" solid gold"]),
    ],
)
def test_phrases_are_sequences_or_texts(
    tmp_path: Path, form: str, where: str | None, content: Any
) -> None:
    found = export(phrases_of(tmp_path), form, where)
    assert json.loads(found.content) == content
    assert found.unit == "phrase"
    left_out = [note for note in found.notes if note.startswith("left out: 2 phrases whose text")]
    assert len(left_out) == (form in ("vllm-bad-words", "garak"))


def test_phrases_as_a_table(tmp_path: Path) -> None:
    record = phrases_of(tmp_path)
    rows = list(csv.DictReader(io.StringIO(export(record, "csv", "glitch").content.decode())))
    assert [row["phrase"] for row in rows] == ["'=é", " solid gold", "  "]
    assert [row["ids"] for row in rows] == ["7 8 9", "5 6", "3 3"]
    assert [row["confirmed"] for row in rows] == ["true", "false", ""]
    assert [row["control_passes"] for row in rows] == ["false", "true", "true"]
    assert (rows[0]["asr"], rows[1]["p"], rows[0]["steps"]) == ("0.9", "0.2", "pairs asr")
    frame = pd.read_parquet(io.BytesIO(export(record, "parquet", "glitch").content))
    assert list(frame["severe"]) == [True, False, False]
    assert frame["p"].dtype == "float64"


@pytest.mark.parametrize("form", ["suppress-tokens", "logit-bias", "llama-cpp"])
def test_formats_of_single_tokens_refuse_phrases_and_name_others(tmp_path: Path, form: str) -> None:
    with pytest.raises(UsageError, match="use one of bad-words, vllm-bad-words, csv"):
        export(phrases_of(tmp_path), form)
    with pytest.raises(UsageError, match="no step of the strategy validate on phrases"):
        export(phrases_of(tmp_path), "ids", "confirmed", "pairs")


def test_phrases_beside_tokens_are_exported_by_their_step(tmp_path: Path) -> None:
    record = phrases_of(tmp_path, step("mine", "mine", verified(8, passed=False, glitch=True)))
    found = export(record, "ids")
    assert json.loads(found.content) == [8]
    assert found.notes == ("not in the list: 4 phrases of asr and pairs; export them with --step",)
    assert json.loads(export(record, "ids", step="asr").content) == [[7, 8, 9]]


def test_generate_never_emits_a_listed_phrase(tmp_path: Path, llama_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder)

    def generated(**options: Any) -> list[int]:
        torch.manual_seed(1)
        options |= {"max_new_tokens": 60, "pad_token_id": 0, "eos_token_id": -1}
        rows = model.generate(torch.tensor([[40, 41, 42]]), do_sample=True, top_k=4, **options)
        return [*map(int, rows[0, 3:])]

    def pairs(ids: list[int]) -> set[tuple[int, ...]]:
        return {*pairwise(ids)}

    usual = pairs(generated())
    rows = [
        phrase("x", [*ids], "usual", result="fail", p=0.1, said="") for ids in sorted(usual)[::2]
    ]
    record = run_of(tmp_path, step("pairs", "test", *rows))
    (tmp_path / "generation_config.json").write_bytes(export(record, "bad-words").content)
    config = GenerationConfig.from_pretrained(tmp_path)
    said = generated(generation_config=config)
    assert not pairs(said) & {tuple(row.cells["ids"]) for row in rows}
    assert set(said) & {one for row in rows for one in row.cells["ids"]}  # alone they may come


@pytest.fixture
def exported(
    record: RunRecord, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The command, on a run of the tiny model whose ids have other texts there."""
    digest = {"model": fingerprint_now(ModelSpec(str(llama_folder)))}
    spec = {**record.spec, "model": {"path": str(llama_folder)}}
    own = replace(record, identity=replace(record.identity, digests=digest), spec=spec)
    monkeypatch.setattr(cli, "find_run", lambda run, root: own)
    return lambda *words: CliRunner().invoke(main, ["export", "latest", *map(str, words)])


def test_ids_of_another_vocabulary_are_refused(exported: Callable[..., Result]) -> None:
    done = exported("--format", "ids")
    assert done.exit_code == 1
    assert "tokens are not those of" in done.stderr


def test_a_list_is_refused_for_another_model(
    exported: Callable[..., Result], tmp_path: Path
) -> None:
    other = tiny_llama(tmp_path / "other", seed=5)
    done = exported("--format", "ids", "--model", other)
    assert done.exit_code == 1
    assert "its contents differ from those of the run's model" in done.stderr
    assert exported("--format", "ids", "--model", tmp_path / "none").exit_code == 4


def test_ids_are_written_where_the_model_is_not_available(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(record, spec={"model": {"path": str(tmp_path / "gone")}})
    monkeypatch.setattr(cli, "find_run", lambda run, root: gone)
    words = ["export", "latest", "--format", "ids", "-o", str(tmp_path / "ids.json")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.stderr
    assert "1 confirmed token of " in done.stderr
    assert "ids not checked" in done.stderr
    assert [token.id for token in read(tmp_path / "ids.json").tokens] == [5]


def test_a_generation_config_is_not_replaced(
    exported: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text("{}")
    done = exported("--format", "bad-words", "-o", tmp_path / "generation_config.json")
    assert done.exit_code == 2
    assert "copy its entry" in done.stderr
    assert exported("--format", "parquet").exit_code == 2


def test_the_reference_describes_every_format() -> None:
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    section = page.partition("### glitchrun export RUN")[2].partition("\n### ")[0]
    for name in EXPORTS:
        assert section.count(f"`{name}`") >= 2
