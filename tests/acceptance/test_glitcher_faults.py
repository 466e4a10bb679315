"""What went wrong in glitcher, provoked through the command line on the small stand-in.

Prompts are put together here from the tokenizer and plain text, and run by plain transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from glitchrun.cli import main
from glitchrun.ledger import read_run
from glitchrun.ledger.record import RunRecord
from glitchrun.strategies.judging import Judge
from tests.support.oracle import FOLDER, PLANTED

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "glitch_tokens.json"
WORD, BYTE, BREAK, BOS = 300, 200, 13, 1  # " re", a part of a character, "\n", "<s>"
PIECE = min(PLANTED)
SCAN = "steps: [{id: scan, strategy: scan, batch_size: 64}]\n"
EVERYTHING = f"""\
seed: 5
tokens: {{categories: [normal, byte, special]}}
thresholds: {{asr: 0.0}}
steps:
  - {{id: scan, strategy: scan, probes: strict}}
  - {{id: asr, strategy: validate, tokens: {{ids: [{WORD}, {PIECE}, {BYTE}, {WORD}, {BREAK}]}},
     attempts: 3, max_new_tokens: 8}}
  - {{id: evo, strategy: genetic, base_text: The quick brown, wanted: 310, impact_tokens: 0,
     pool: {{ids: [{WORD}, {PIECE}, {BYTE}, {BREAK}]}}, population: 6, elite: 1, generations: 2}}
  - {{id: kinds, strategy: classify, tokens: {{ids: [{WORD}, {BYTE}]}}, tests: [refusal],
     controls: 1, attempts: 2, max_new_tokens: 8}}
"""


def apply(name: str, body: str, *words: str, model: Path = FOLDER) -> Result:
    """`glitchrun apply -o json` on a spec of this name in the working directory."""
    head = f"apiVersion: glitchrun/v1\nkind: Experiment\nmetadata: {{name: {name}}}\n"
    Path(f"{name}.yaml").write_text(
        f"{head}model: {{path: {model}, device: cpu, quantization: float32}}\n{body}"
    )
    return CliRunner().invoke(main, ["apply", f"{name}.yaml", "-o", "json", *words])


def runs(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return found


def record(run: Mapping[str, Any]) -> RunRecord:
    return read_run(Path(run["artifacts_dir"]).parent)


def lines(run: Mapping[str, Any], step: str) -> list[dict[str, Any]]:
    text = (Path(run["artifacts_dir"]) / "tokens.jsonl").read_text(encoding="utf-8")
    found = map(json.loads, text.splitlines())
    return [line for line in found if line["step"] == step]


def rows(run: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
    path = Path(run["artifacts_dir"]) / "tables" / f"{table}.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(written["columns"], cells, strict=True)) for cells in written["data"]]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All runs share a working directory, and with it a store."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("faults")
        patch.chdir(path)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield path


@pytest.fixture(scope="module")
def everything(folder: Path) -> Result:
    return apply("everything", EVERYTHING)


@pytest.fixture(scope="module")
def run(everything: Result) -> dict[str, Any]:
    (found,) = runs(everything)
    return found


@pytest.fixture(scope="module")
def scanned(folder: Path) -> dict[str, Any]:
    """Under a name of another family, which must not matter."""
    other = folder / "Llama-3.2-1B-Instruct"
    other.symlink_to(FOLDER)
    (found,) = runs(apply("scanned", f"template: nowllm\n{SCAN}", model=other))
    return found


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@cache
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@torch.no_grad()
def next_token(ids: Sequence[int]) -> torch.Tensor:
    return model()(input_ids=torch.tensor([list(ids)])).logits[0, -1].softmax(-1)


def repeating(token_id: int) -> list[int]:
    """The probe `repeat` as text with an ordinary word, in whose place the token's id is put."""
    text = '[INST]Please repeat the string: "« re»"[/INST] Sure, the string is: "«'
    ids = tokenizer().encode(text).ids
    assert ids.count(BOS) == ids.count(WORD) == 1
    return [token_id if one == WORD else one for one in ids]


@pytest.mark.parametrize("token_id", [WORD, PIECE, BYTE, BREAK, BOS])
def test_probabilities_are_those_of_the_token_id(token_id: int, run: dict[str, Any]) -> None:
    """Faults 7, 8, 9: pieces with and without a space, parts of characters, one BOS."""
    (line,) = (line for line in lines(run, "scan") if line["token_id"] == token_id)
    expected = float(next_token(repeating(token_id))[token_id])
    assert line["probes"]["repeat"]["p"] == pytest.approx(expected, rel=1e-4)


def test_evolved_sequences_are_token_ids(run: dict[str, Any]) -> None:
    """Faults 9, 18: no sequence is converted to text; a wanted token needs no measured impacts."""
    before = tokenizer().encode("[INST]").ids
    after = tokenizer().encode("[INST]The quick brown[/INST]").ids[len(before) :]
    (start,) = rows(run, "evo.baseline")
    assert start["wanted_p"] == pytest.approx(float(next_token([*before, *after])[310]), rel=1e-4)
    bred = rows(run, "evo.sequences")
    assert any(str(BYTE) in row["ids"].split() for row in bred)
    for row in bred:
        p = next_token([*before, *map(int, row["ids"].split()), *after])
        assert row["wanted_p"] == pytest.approx(float(p[310]), rel=1e-4)


def test_each_row_of_the_vocabulary_is_verified_once(run: dict[str, Any]) -> None:
    """Faults 5, 13, 20."""
    assert [line["token_id"] for line in lines(run, "scan")] == list(range(640))
    assert run["metrics"]["scan/verified"] == 640
    assert [line["token_id"] for line in lines(run, "asr")] == [WORD, PIECE, BYTE, BREAK]


def test_tokens_not_presented_intact_are_counted(run: dict[str, Any]) -> None:
    kept = {line["token_id"]: line["presented_intact"] for line in lines(run, "scan")}
    assert kept[WORD]
    assert not kept[BYTE]
    assert run["metrics"]["scan/not_intact"] == list(kept.values()).count(False)
    for step in ("asr", "evo", "kinds"):
        assert run["metrics"][f"{step}/not_intact"] > 0


def test_an_asr_threshold_of_zero_needs_a_failed_attempt(run: dict[str, Any]) -> None:
    """Fault 14."""
    confirmed = {line["token_id"]: line["confirmed"] for line in lines(run, "asr")}
    assert confirmed == {WORD: False, PIECE: True, BYTE: False, BREAK: False}
    page = (Path(run["artifacts_dir"]) / "report.html").read_text(encoding="utf-8")
    assert "failed at least one of their attempts (3 each; thresholds.asr = 0)" in page


def test_the_model_is_loaded_once_for_all_steps(everything: Result) -> None:
    """Fault 15."""
    assert everything.stderr.count("loading ") == 1


def test_a_dropped_system_text_is_reported(run: dict[str, Any]) -> None:
    """That of a probe is counted; that of the spec is refused."""
    assert record(run).notes["dropped_system"] == 640 + 4
    refused = apply("silent", f"system: Be brief.\n{SCAN}")
    assert refused.exit_code == 4
    assert "nowllm cannot carry a system text" in refused.stderr


def test_tokens_are_verified_in_batches(run: dict[str, Any]) -> None:
    """One forward pass serves many tokens, and every pass is used."""
    (scan, *_) = record(run).steps
    counters = [timed.batch.counters for timed in scan.batches]
    rechecked = sum(one.get("rechecked", 0) for one in counters)
    assert sum(one["forwards"] for one in counters) <= 3 * 640 / 32 + 2 * rechecked


def test_a_resumed_run_still_counts_its_categories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = "steps: [{id: t, strategy: test, tokens: {ids: [300]}}, {id: p, strategy: predict, "
    body += "prompts: [{text: a}], formats: [raw]}]\n"
    with monkeypatch.context() as broken:
        broken.setattr("glitchrun.strategies.predict.run.cases", lambda *_: 1 / 0)
        assert apply("told", body).exit_code == 1
    (resumed,) = runs(apply("told", body))
    model = record(resumed).model
    assert model
    assert model.categories == {"byte": 178, "normal": 459, "special": 3}


def test_a_run_resumed_after_an_error_equals_an_undisturbed_one(
    scanned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults 6, 12, 13: swallowed errors, tokens counted twice, thresholds by model name."""
    whole, calls = Judge.judge, []

    def failing(self: Judge, token_ids: Sequence[int]) -> Any:
        calls.append(token_ids)
        if len(calls) == 3:
            raise ValueError("broken")
        return whole(self, token_ids)

    monkeypatch.setattr(Judge, "judge", failing)
    stopped = apply("resumed", SCAN)
    assert stopped.exit_code == 1
    assert "FAILED" in CliRunner().invoke(main, ["status", "resumed.yaml"]).output
    (resumed,) = runs(apply("resumed", SCAN))
    assert lines(resumed, "scan") == lines(scanned, "scan")
    assert len(calls) == 1 + -(-len(lines(resumed, "scan")) // 64)
    assert {one["token_id"] for one in lines(resumed, "scan") if one["glitch"]} == PLANTED


def test_tokens_of_another_model_are_refused() -> None:
    """Fault 2: the ids in a file that names a wrong model."""
    body = f"steps: [{{id: t, strategy: test, tokens: {{file: {LEGACY}}}}}]\n"
    refused = apply("other", body)
    assert refused.exit_code == 4
    assert "token ids outside the model's vocabulary" in refused.stderr


def test_a_skipped_check_does_not_count_as_passed() -> None:
    """Two of the seven checks need a known glitch token and a memory budget."""
    (found,) = runs(apply("checks", "steps: [{id: ck, strategy: check, max_rank: 200}]\n"))
    outcomes = {row["check"]: row["outcome"] for row in rows(found, "ck.checks")}
    skipped = {name for name, outcome in outcomes.items() if outcome == "skip"}
    assert skipped == {"verification", "memory"}
    assert found["metrics"]["ck/passed"] == 5
    told = CliRunner().invoke(main, ["report", found["run_id"], "--format", "junit"])
    assert told.exit_code == 0, told.output
    suite = ElementTree.fromstring(told.stdout.encode()).find("testsuite")
    assert suite is not None
    cases = [
        case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None
    ]
    assert cases == ["ck: verification", "ck: memory"]
