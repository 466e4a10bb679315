"""`glitchrun import`: checks against a real tokenizer, and the written files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glitchrun.cli import main
from glitchrun.imports import ImportedToken, read
from glitchrun.strategies.tokens import read_ids
from glitchrun.vocabulary.vocabulary_fit import check_fit, tallies
from tests.support.real_tokenizers import mistral, mistral_spaced, smollm2
from tests.support.tiny_models import bpe_tokenizer, mistral_tokenizer

LEGACY = Path(__file__).parent / "data" / "legacy"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    mistral_tokenizer(folder / "mistral")
    bpe_tokenizer(folder / "other")
    return folder


def imported(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["import", *map(str, words)])


def fits(tokenizer: Any, *pairs: tuple[int, str | None]) -> list[str]:
    tokens = [ImportedToken(token_id, "here", text) for token_id, text in pairs]
    return [fit.fit for fit in check_fit(tokens, tokenizer, 32_000)]


def test_a_list_with_a_wrong_model_is_imported_for_the_right_one(
    models: Path, tmp_path: Path
) -> None:
    done = imported(
        LEGACY / "glitch_tokens.json", "--model", models / "mistral", "-o", tmp_path / "t"
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert "8 duplicates dropped" in done.stderr
    assert "8 of 8 texts match the model's texts" in done.stderr
    assert "names the model 'meta-llama/Llama-3.2-1B-Instruct'" in done.stderr
    data = json.loads((tmp_path / "t").read_text())
    assert data["counts"]["entries"] == 16
    assert data["checked"]["same"] == 8
    assert data["source"]["claimed_model"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert data["source"]["file"] == "glitch_tokens.json"


def test_texts_get_the_ids_of_the_tokenizer(models: Path, tmp_path: Path) -> None:
    done = imported(LEGACY / "texts.json", "--model", models / "mistral", "-o", tmp_path / "t")
    assert done.exit_code == 0, done.stderr
    assert [token.id for token in read(tmp_path / "t").tokens] == [750, 8673]
    (tmp_path / "x.json").write_text('["/\\\\", "no such token at all"]')
    done = imported(tmp_path / "x.json", "--model", models / "mistral", "-o", tmp_path / "t")
    assert done.exit_code == 1
    assert "[1]: «no␣such␣token␣at␣all» is no token here" in done.stderr


def test_a_wrong_model_is_rejected_with_the_first_differences(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    done = imported(LEGACY / "glitch_tokens.json", "--model", models / "other", "-o", out)
    assert done.exit_code == 1
    assert "glitch_tokens.json: 8 of 8 tokens are not those of" in done.stderr
    assert "glitch_token_ids[0]: id 8673 is «/\\» in the file, not in this voc" in done.stderr
    assert "… and 3 more" in done.stderr
    assert "give --model the model that the file was made with" in done.stderr
    assert not out.exists()


def test_entries_that_do_not_fit_can_be_left_out(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"id": 8673, "text": "/\\"}, {"id": 8674, "text": "/\\"}]))
    refused = imported(path, "--model", models / "mistral")
    assert refused.exit_code == 1
    assert "--mismatches drop" in refused.stderr
    done = imported(path, "--model", models / "mistral", "--mismatches", "drop")
    assert done.exit_code == 0
    assert [row["token_id"] for row in json.loads(done.stdout)["tokens"]] == [8673]
    assert "1 with another text dropped" in done.stderr


@pytest.mark.parametrize("name", ["glitch_mining_log_cut.jsonl", "genetic_results.json"])
def test_a_redacted_list_has_no_text_and_the_same_ids(
    name: str, models: Path, tmp_path: Path
) -> None:
    whole, bare = tmp_path / "whole.json", tmp_path / "bare.json"
    words = (LEGACY / name, "--model", models / "mistral", "--mismatches", "drop")
    assert imported(*words, "-o", whole).exit_code == 0
    assert imported(*words, "--redact", "-o", bare).exit_code == 0
    full, data = json.loads(whole.read_text()), json.loads(bare.read_text())
    assert all(row["token"] for row in full["tokens"])
    assert {row["token"] for row in data["tokens"]} == {None}
    words_left = {type(value) for row in data["tokens"] for value in row.values()}
    assert dict not in words_left
    named = {key for row in data["tokens"] for key, value in row.items() if type(value) is str}
    assert named <= {"verdict", "fit", "place"}
    assert (data["extra"], data["source"]["settings"]) == ({}, {})
    assert data["redacted"] is True
    assert "/" not in data["checked"]["model"]
    assert read_ids(bare) == read_ids(whole)
    assert [row.get("p") for row in data["tokens"]] == [row.get("p") for row in full["tokens"]]


def test_a_redacted_log_has_no_folder_of_another_system_and_no_unknown_event(
    models: Path, tmp_path: Path
) -> None:
    log, bare = tmp_path / "mined.jsonl", tmp_path / "bare.json"
    events = [
        {"event": "start", "model_path": "C:\\Users\\anna\\models\\nowllm"},
        {"event": "met Anna"},
        {"event": "token_verification", "token_id": 9, "is_glitch": True},
    ]
    log.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    words = (log, "--model", models / "mistral", "--redact", "-o", bare)
    assert imported(*words).exit_code == 0
    data = json.loads(bare.read_text())
    assert data["source"]["claimed_model"] == "nowllm"
    assert data["counts"]["left_out"]["events of unknown kind"] == 1
    assert "anna" not in bare.read_text().casefold()


def test_dropping_every_entry_is_rejected(models: Path) -> None:
    file = LEGACY / "glitch_tokens.json"
    assert imported(file, "--model", models / "other", "--mismatches", "drop").exit_code == 1


def test_ids_without_texts_are_checked_only_against_the_size(models: Path, tmp_path: Path) -> None:
    done = imported(LEGACY / "ids.json", "--model", models / "mistral")
    assert done.exit_code == 0
    assert "no texts: ids were checked only against the size of the vocabulary" in done.stderr
    (tmp_path / "ids.json").write_text("[1, 32000]")
    done = imported(tmp_path / "ids.json", "--model", models / "mistral")
    assert done.exit_code == 1
    assert "[1]: id 32000, not in this vocabulary" in done.stderr


@pytest.mark.parametrize(
    "path",
    sorted(path for path in LEGACY.iterdir() if path.name != "texts.json"),
    ids=lambda path: path.name,
)
def test_a_written_file_reads_back_unchanged(path: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens.json"
    done = imported(path, "--model", models / "mistral", "-o", out)
    assert done.exit_code == 0, done.stderr
    before, after = read(path), read(out)
    facts = ("id", "verdict", "p", "rank", "entropy", "norm", "asr", "attempts", "failures")
    assert [[getattr(t, name) for name in facts] for t in after.tokens] == [
        [getattr(t, name) for name in facts] for t in before.tokens
    ]
    assert all(
        old.said.items() <= new.said.items()
        for old, new in zip(before.tokens, after.tokens, strict=True)
    )
    assert after.source.format == "glitchrun-import"
    for name in ("claimed_model", "lists", "looked_at"):
        assert getattr(after.source, name) == getattr(before.source, name)
    assert after.extra == before.extra
    if before.tokens and any(token.selected for token in before.tokens):
        assert read_ids(out) == read_ids(path)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing.json", "--model", "x"], 2, "does not exist"),
        ([str(LEGACY / "ids.json")], 2, "--model"),
        ([str(LEGACY / "ids.json"), "--model", "no-such-folder"], 4, "no such file or folder"),
        ([str(LEGACY / "ids.json"), "--model", "x", "-o", "no/where"], 2, "create it first"),
    ],
)
def test_impossible_requests_are_explained(words: list[str], code: int, message: str) -> None:
    done = imported(*words)
    assert done.exit_code == code
    assert message in done.stderr


def test_a_leading_space_does_not_matter() -> None:
    # `▁been` is 750; tools that decode it alone lose the space.
    assert fits(mistral(), (750, "been"), (750, " been"), (750, "▁been")) == ["same"] * 3
    assert fits(mistral(), (750, "  been")) == ["spaces"]
    for how in ("legacy", "none"):
        assert set(fits(mistral_spaced(how), (750, "been"), (750, " been"))) <= {"same", "spaces"}


def test_case_line_breaks_and_pieces_matter() -> None:
    assert fits(mistral(), (750, "Been"), (750, "be en"), (13, "\n"), (13, "\r")) == [
        "different",
        "different",
        "same",
        "different",
    ]
    assert fits(mistral(), (13, " "), (28705, "")) == ["different", "same"]
    assert fits(smollm2(), (260, "Ġthe"), (260, " the"), (260, "the")) == ["same", "same", "spaces"]


def test_replacement_characters_are_weak_evidence() -> None:
    assert fits(mistral(), (170, "\ufffd"), (171, "\ufffd"), (750, "\ufffd")) == [
        "weak",
        "weak",
        "different",
    ]


def test_every_way_to_fit_is_counted() -> None:
    tokens = [ImportedToken(750, "a", "been"), ImportedToken(99_999, "b"), ImportedToken(750, "c")]
    counts = tallies(check_fit(tokens, mistral(), 32_000))
    assert counts == {
        "same": 1,
        "spaces": 0,
        "weak": 0,
        "unchecked": 1,
        "different": 0,
        "outside": 1,
    }
