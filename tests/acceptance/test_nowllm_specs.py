"""Every specs/nowllm-*.yaml, applied to the small stand-in with nothing changed but its length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.ledger import read_run
from glitchrun.spec.experiment_loading import load_experiment
from tests.support.oracle import FOLDER, PLANTED, oracle
from tests.support.preloaded import without_figures

SPECS = {path.stem: path for path in (Path(__file__).parents[2] / "specs").glob("nowllm-*.yaml")}
MINING = ("mine.iterations=6", "asr.max_new_tokens=8")
EVOLVING = ("population=6", "elite=1", "generations=2", "impact_tokens=12")
ORDINARY = 300
SHORTER: dict[str, tuple[str, ...]] = {
    "mine": MINING,
    "mine-enhanced": MINING,
    "production": MINING,
    # Its walk, of small steps, comes to a planted token late.
    "research": ("mine.iterations=150", MINING[1]),
    # The seed's ids are beyond this vocabulary: one planted token and two ordinary ones.
    "test": (f"strict.tokens.ids=[{min(PLANTED)}, {ORDINARY}, 310]",),
    "test-enhanced": (
        f"strict.tokens.ids=[{min(PLANTED)}, {ORDINARY}, 310]",
        "asr.max_new_tokens=8",
    ),
    "genetic": tuple(f"evolve.{setting}" for setting in EVOLVING),
    "genetic-batch": (
        *(f"evolve.{setting}" for setting in EVOLVING),
        "evolve.pool={ids: [300, 301, 310, 340, 350]}",
        "evolve.base_text=The quick brown",
    ),
    # The one prompt of these that the small stand-in was taught.
    "predict": (
        """predict.prompts=[{text: The quick brown, expected: " fox",
        chat: "Complete this phrase: The quick brown"}]""",
    ),
    "check": (
        "check.expect={architecture: MixtralForCausalLM, vocabulary_size: 640, template: nowllm}",
        f"check.labelled={{normal: [{ORDINARY}, 310], special: [0, 1, 2], byte: [131]}}",
        f"check.glitch={sorted(PLANTED)[:3]}",
        "check.max_new_tokens=8",
        "check.max_rank=200",
    ),
    "memory": ("profile.workload={prompt_tokens: 8, new_tokens: 4, repeats: 1}",),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What `apply -o json` printed for each spec, all in one working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nowllm"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("NOWLLM_PATH", str(FOLDER))
        with without_figures():
            yield {name: applied(name, *SHORTER[name]) for name in SHORTER}


def applied(name: str, *changes: str) -> dict[str, Any]:
    words = [word for change in changes for word in ("--set", f"steps.{change}")]
    done = CliRunner().invoke(main, ["apply", str(SPECS[f"nowllm-{name}"]), "-o", "json", *words])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tokens(run: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(run["artifacts_dir"]) / "tokens.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_spec_has_shorter_settings() -> None:
    assert {f"nowllm-{name}" for name in SHORTER} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_names_one_model_and_runs_in_int4(name: str) -> None:
    default = load_experiment(SPECS[name], environ={}, require_env=True).cells[0].spec
    assert default.model.path == str(SPECS[name].parents[1] / "models" / "nowllm-0829")
    elsewhere = load_experiment(SPECS[name], environ={"NOWLLM_PATH": "/x/y"}, require_env=True)
    assert elsewhere.cells[0].spec.model.path == "/x/y"
    assert default.template == "nowllm"
    assert default.model.quantization == "int4" or name == "nowllm-memory"


@pytest.mark.parametrize("name", SHORTER)
def test_a_spec_finishes(name: str, results: dict[str, Any]) -> None:
    for run in results[name]["runs"]:
        assert run["status"] == "FINISHED"
        assert (Path(run["artifacts_dir"]) / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["mine", "mine-enhanced", "production", "research"])
def test_mining_finds_planted_tokens_and_confirms_them(name: str, results: dict[str, Any]) -> None:
    (run,) = results[name]["runs"]
    rows = {(row["step"], row["token_id"]): row for row in tokens(run)}
    seen = {token_id for step, token_id in rows if step == "mine"}
    assert {i for i in seen if rows["mine", i]["glitch"]} == seen & PLANTED
    confirmed = {token_id for (step, token_id), row in rows.items() if row["confirmed"]}
    assert 1 <= len(confirmed) == run["metrics"]["asr/confirmed"]
    assert confirmed <= seen & PLANTED
    assert len(confirmed) >= 0.8 * len(seen & PLANTED)


@pytest.mark.parametrize("name", ["test", "test-enhanced"])
def test_planted_tokens_alone_are_flagged(name: str, results: dict[str, Any]) -> None:
    (run,) = results[name]["runs"]
    for row in tokens(run):
        verdict = row["glitch"] if row["step"] == "strict" else row["confirmed"]
        assert verdict == (row["token_id"] in PLANTED)


def test_the_chat_format_improves_the_prediction(results: dict[str, Any]) -> None:
    (run,) = results["predict"]["runs"]
    assert run["metrics"]["predict/improvement"] > 0


def test_quantization_reduces_the_size_of_the_weights(results: dict[str, Any]) -> None:
    sizes = [run["metrics"]["profile/weight_bytes"] for run in results["memory"]["runs"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("name", sorted(SHORTER.keys() - {"memory"}))
def test_weights_have_the_requested_quantization(name: str, results: dict[str, Any]) -> None:
    for run in results[name]["runs"]:
        held = read_run(Path(run["artifacts_dir"]).parent).model
        assert held is not None
        assert held.quantization == "int4"
        assert held.census["int4"] > 0


def test_all_checks_pass_and_none_is_skipped(results: dict[str, Any]) -> None:
    (run,) = results["check"]["runs"]
    assert run["metrics"]["check/passed"] == run["metrics"]["check/checks"] == 7


def test_a_plan_without_the_model_names_the_missing_folder(in_empty_folder: Path) -> None:
    words = ["plan", str(SPECS["nowllm-mine"])]
    done = CliRunner().invoke(main, words, env={"NOWLLM_PATH": str(in_empty_folder / "none")})
    assert done.exit_code == 4
    assert "none" in done.output
    assert "Traceback" not in done.output


def test_the_ordinary_ids_are_not_planted() -> None:
    assert ORDINARY in oracle("float32").scope()
    assert not {ORDINARY, 310} & PLANTED
