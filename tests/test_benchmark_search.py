"""The search benchmark's code path on a tiny model: it replays what a live search would do."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from benchmarks import search as benchmark
from glitchrun.events import Batch, Verified
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.strategies.context import Context
from glitchrun.strategies.mine import Config
from glitchrun.strategies.mine.run import space


@dataclass(frozen=True)
class Scanned:
    """A tiny model whose vocabulary has been verified; half of what it fails counts as glitch."""

    spec: Path
    truth: Path
    context: Context


def run(context: Context, strategy: str, **params: Any) -> list[Verified]:
    module = STRATEGIES[strategy]
    events = module.run(module.configure(params), context, [])
    facts = [fact for event in events if isinstance(event, Batch) for fact in event.facts]
    return [fact for fact in facts if isinstance(fact, Verified)]


def spec_file(path: Path, model: Path, limit: float) -> Path:
    steps = [{"id": "scan", "strategy": "scan"}]
    document = {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": "tiny"},
        "model": {"path": str(model), "device": "cpu"},
        "template": "chatml",
        "seed": 3,
        "thresholds": {"probability": limit},
        "steps": steps,
    }
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Scanned:
    folder = tmp_path_factory.mktemp("bench")
    first = benchmark.context_of(spec_file(folder / "first.yaml", llama_folder, 1.0))
    failed = [fact.probes["repeat"].p for fact in run(first, "scan") if fact.glitch]
    limit = float(f"{statistics.median(failed):.3g}")
    spec = spec_file(folder / "spec.yaml", llama_folder, limit)
    context = benchmark.context_of(spec)
    truth = folder / "tokens.jsonl"
    truth.write_text("".join(json.dumps(row(fact)) + "\n" for fact in run(context, "scan")))
    return Scanned(spec, truth, context)


def row(fact: Verified) -> dict[str, Any]:
    fields = ("p", "rank", "entropy", "argmax", "gap", "decided_in")
    probes = {
        name: {"pass": result.passed} | {field: getattr(result, field) for field in fields}
        for name, result in fact.probes.items()
    }
    return {
        "step": "scan",
        "token_id": fact.token.id,
        "token": fact.token.text,
        "piece": fact.token.piece,
        "category": fact.token.category,
        "norm": fact.token.norm,
        "probes": probes,
        "glitch": fact.glitch,
        "emitted": fact.emitted,
    }


def test_it_prints_every_search_with_its_cost_and_draws_them(
    scanned: Scanned, tmp_path: Path
) -> None:
    picture, kept = tmp_path / "found.png", tmp_path / "gradients.pt"
    options = ["--seeds", "2", "--walks", "1", "--budget", "240", "--sample", "16"]
    options += ["--plot", str(picture), "--keep", str(kept)]
    arguments = [str(scanned.spec), str(scanned.truth), *options]
    result = CliRunner().invoke(benchmark.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "16 verdicts of the table are the model's own" in result.output
    names = (
        "random",
        "low norm",
        "high norm",
        "gradient (GlitchMiner)",
        "surrogate",
        "screen",
        "cascade",
    )
    for name in names:
        assert result.output.count(f"\n| {name} |") == 2  # what it found, what it cost
    walk = next(line for line in result.output.splitlines()[::-1] if line.startswith("| gradient"))
    verifications, gradients = (float(cell) for cell in walk.split("|")[3:5])
    assert (verifications, gradients) == (240, 30)  # batches of 8
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(torch.load(kept, weights_only=False)[0]) <= 30


@pytest.mark.parametrize("name", ["random", "high norm", "gradient (GlitchMiner)", "surrogate"])
def test_with_budget_for_all_every_search_finds_all(scanned: Scanned, name: str) -> None:
    truth = benchmark.read_truth(scanned.truth)
    told = space(Config(), scanned.context, ())
    asked = benchmark.Asked(lambda token_id: (1.0, torch.ones(64)), None)
    told = benchmark.replace(told, gradient=asked.gradient)
    build = benchmark.builders(told, 32)[name]
    trace = benchmark.replay(lambda: build(1), truth, 10_000, 32, asked)
    for kind, counts in benchmark.KINDS.items():
        assert len(trace.found[kind]) == len(truth)
        assert trace.found[kind][-1] == sum(map(counts, truth.values()))
    assert 0 < trace.found["glitch"][-1] < len(truth)


def test_a_replayed_search_is_the_live_one(scanned: Scanned) -> None:
    live = run(scanned.context, "mine", search="surrogate", budget=120, iterations=99)
    told = space(Config(), scanned.context, ())
    truth = benchmark.read_truth(scanned.truth)
    asked = benchmark.Asked(told.gradient, None)
    build = benchmark.builders(told, 8)["surrogate"]
    trace = benchmark.replay(lambda: build(3), truth, 120, 8, asked)
    assert trace.found["glitch"].tolist() == [
        sum(fact.glitch for fact in live[: n + 1]) for n in range(120)
    ]


def test_a_table_that_is_not_this_models_is_refused(scanned: Scanned, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in scanned.truth.read_text().splitlines()]
    for changed in rows:
        changed["glitch"] = not changed["glitch"]
    other = tmp_path / "tokens.jsonl"
    other.write_text("".join(json.dumps(changed) + "\n" for changed in rows))
    result = CliRunner().invoke(benchmark.main, [str(scanned.spec), str(other), "--sample", "9"])
    assert result.exit_code == 1
    assert "9 of 9 verdicts are not the table's" in result.output
