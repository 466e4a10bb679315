"""A project that delivers to a server, and what the server must have of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tiny_models import tiny_llama
from tools.remote.servers import PASSWORD, USER, Server

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: {name}}}
model: {{path: ./model, device: cpu}}
template: chatml
seed: 3
steps:
  - {{id: scan, strategy: scan}}
  - id: asr
    strategy: validate
    tokens: {{from: scan}}
    attempts: {attempts}
    max_new_tokens: 12
{more}
"""
ROOT = Path(__file__).parents[2]


@dataclass
class Project:
    """A folder with a spec and a tiny model, and its commands."""

    folder: Path
    uri: str
    name: str = "remote"
    attempts: int = 3
    more: str = ""
    """Lines added to the spec."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "model").exists():
            tiny_llama(self.folder / "model")
        text = SPEC.format(name=self.name, attempts=self.attempts, more=self.more)
        (self.folder / "spec.yaml").write_text(text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts `glitchrun WORDS` with the server as its store."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "glitchrun", *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def apply(self, at_second_step: Callable[[], None] = lambda: None) -> Ended:
        """Applies the spec. `at_second_step` runs when the step `asr` is under way."""
        process = self.start("apply", "spec.yaml", "--yes")
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("scan: finished"):
                time.sleep(1.0)  # the step `asr` has begun
                at_second_step()
        code = process.wait()
        return Ended(code, "".join(lines), time.time() - self._ended_at() / 1000)

    def _ended_at(self) -> int:
        """When the last run ended, in milliseconds since the epoch."""
        ledgers = self.folder.glob("mlruns/runs/*/*/attempt-*/ledger.jsonl")
        last = [json.loads(path.read_text().splitlines()[-1]) for path in ledgers]
        return max(int(entry["at"]) for entry in last)

    def sync(self) -> Ended:
        """Delivers what the server does not have."""
        process = self.start("sync")
        said, _ = process.communicate()
        return Ended(process.returncode, said, 0.0)

    def expected(self) -> dict[str, Any]:
        """What a store must have of this project: the same ledger, delivered to a local store."""
        uri = f"sqlite:///{self.folder}/expected/mlflow.db"
        local = self.start("sync", "--to", uri)
        said, _ = local.communicate()
        assert local.returncode == 0, said
        return contents(uri, self.name)


@dataclass
class Ended:
    """How a command ended."""

    code: int
    said: str
    after: float
    """Seconds from the run's own end, its report included, to the end of the process."""


def contents(uri: str, experiment: str, store: str = "") -> dict[str, Any]:
    """All that a store has of an experiment's runs, by the id of the ledger. A second run of one
    ledger has its id with `again`.

    Args:
        uri: The server, or a local store.
        experiment: Name of the experiment.
        store: The server's own store. Histories are read from it, because a server with
            authentication takes a quarter of a second for each of hundreds of requests.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri, registry_uri=uri)
    histories = MlflowClient(store, registry_uri=store) if store else client
    known = client.get_experiment_by_name(experiment)
    runs = client.search_runs([known.experiment_id]) if known else []
    found: dict[str, Any] = {}
    for ledger, content in (_content(client, histories, run) for run in runs):
        found[f"{ledger} again" if ledger in found else ledger] = content
    return found


def _content(client: Any, histories: Any, run: Any) -> tuple[str, dict[str, Any]]:
    run_id = run.info.run_id
    points = {
        name: _history(histories, run_id, name)
        for name in sorted(run.data.metrics)
        if not name.startswith("system/")  # samples of the machine exist only while a run runs
    }
    files = sorted(_files(client, run_id, ""))
    content = {
        "status": run.info.status,
        "params": dict(sorted(run.data.params.items())),
        "points": points,
        "files": files,
    }
    return run.data.tags.get("glitchrun.ledger", run.info.run_name), content


def _history(client: Any, run_id: str, name: str) -> list[tuple[int, int, float]]:
    found = client.get_metric_history(run_id, name)
    return sorted((point.step, point.timestamp, point.value) for point in found)


def _files(client: Any, run_id: str, path: str) -> Iterator[tuple[str, int]]:
    for one in client.list_artifacts(run_id, path or None):
        if one.is_dir:
            yield from _files(client, run_id, one.path)
        else:
            yield one.path, one.file_size


def compared(project: Project, server: Server) -> str:
    """`equal`, or the first difference of what the server has and what it must have."""
    ours, theirs = project.expected(), contents(server.uri, project.name, server.store)
    missing = sum(key not in theirs for key in ours)
    if missing:
        return f"{missing} of {len(ours)} runs missing"
    if doubled := sum(f"{key} again" in theirs for key in ours):
        return f"{doubled} of {len(ours)} runs twice"
    for key, content in ours.items():
        for part, value in content.items():
            if theirs[key][part] != value:
                return f"{part} differ: {_difference(value, theirs[key][part])}"
    return "equal"


def _difference(ours: Any, theirs: Any) -> str:
    if isinstance(ours, Mapping):
        names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
        return f"{names[:3]} {ours.get(names[0])!r:.120} {theirs.get(names[0])!r:.120}"
    return f"{ours!r:.200} {theirs!r:.200}"
