"""The Python interface: runs as pandas tables, and `apply` for notebooks.

Importing this module imports neither torch, mlflow nor pandas; each is imported by what needs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glitchrun.errors import (
    GlitchrunError,
    Interrupted,
    PreflightError,
    RunError,
    UsageError,
    require,
)
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.report.exporting import export
from glitchrun.report.step_tables import step_tables
from glitchrun.report.token_files import FIELDS as ATTEMPT_FIELDS
from glitchrun.report.token_files import attempt_lines, token_lines
from glitchrun.report.writing import write_document
from glitchrun.runner.lookup import find_run, readable_runs
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.problems import InvalidSpec

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GlitchrunError",
    "Interrupted",
    "InvalidSpec",
    "PreflightError",
    "Run",
    "RunError",
    "UsageError",
    "apply",
    "find_runs",
    "load_run",
]


class Run:
    """A run as its ledger records it, finished or not."""

    def __init__(self, record: RunRecord) -> None:
        self.record = replace(record, folder=record.folder.resolve())
        """Everything that the ledger says, with the batches of every step."""

    def __repr__(self) -> str:
        identity = self.record.identity
        return (
            f"<Run {identity.experiment} · {identity.name}, {self.status}, "
            f"{identity.key[:12]}#{identity.attempt}>"
        )

    @property
    def name(self) -> str:
        """Name of the run: the matrix cell's, or the experiment's where there is no matrix."""
        return self.record.identity.name

    @property
    def experiment(self) -> str:
        """Name of the experiment: `metadata.name`, unless `tracking.experiment` is given."""
        return self.record.identity.experiment

    @property
    def key(self) -> str:
        """Hex digest of all that can change the results; `load_run` takes its beginning."""
        return self.record.identity.key

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1; `apply --fresh` starts the next one."""
        return self.record.identity.attempt

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED, KILLED or DAMAGED."""
        return self.record.status

    @property
    def folder(self) -> Path:
        """Folder of the attempt, with its ledger."""
        return self.record.folder

    @property
    def artifacts(self) -> Path:
        """Folder of the artifacts: report.html, tokens.jsonl, plots/ and others."""
        return self.record.artifacts

    @property
    def spec(self) -> Mapping[str, Any]:
        """The resolved spec, with every default filled in and secrets redacted."""
        return self.record.spec

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the spec, and those that `glitchrun tag` set or removed."""
        return self.record.tags

    @property
    def metrics(self) -> dict[str, float | None]:
        """Every metric by its full name, such as `asr/confirmed`; None where it is undefined."""
        return {name: metric.value for name, metric in self.record.metrics.items()}

    @property
    def gates(self) -> pd.DataFrame:
        """The gates with their outcome (pass, fail or inconclusive), one row each.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _frame([asdict(gate) for gate in self.record.gates])

    @property
    def tokens(self) -> pd.DataFrame:
        """One row for each token of each step, with the columns of tokens.jsonl.

        The mapping `probes` becomes a column for each value, such as `probes.repeat.p`. A value
        that the step did not measure is missing (`pandas.NA`).

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _frame(list(token_lines(self.record)))

    @property
    def attempts(self) -> pd.DataFrame:
        """One row for each continuation that `validate` sampled, with the columns of
        attempts.jsonl; `ids` is a tuple of token ids.

        Empty for runs of earlier versions, which did not keep what was said.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _frame(list(attempt_lines(self.record)), ATTEMPT_FIELDS)

    def table(self, step: str, name: str) -> pd.DataFrame:
        """The rows of a step's own table, such as `table("next", "predictions")` of `predict`.

        Raises:
            UsageError: the run has no such table; the message lists the tables that it has.
            MissingExtra: pandas is not installed.
        """
        found = step_tables(self.record)
        for table in found:
            if (table.step, table.name) == (step, name):
                return _frame(table.rows, [column.name for column in table.columns])
        names = ", ".join(f"{table.step}.{table.name}" for table in found) or "none"
        raise UsageError(f"{self!r} has no table {step}.{name}; it has: {names}")

    def export(
        self,
        form: str,
        file: str | os.PathLike[str],
        where: str | None = None,
        step: str | None = None,
    ) -> Path:
        """Writes the tokens found, as `glitchrun export` does, without its checks of the model.

        Args:
            form: A format, such as `suppress-tokens` or `parquet`.
            file: The file to write.
            where: `confirmed`, `severe` or `glitch`; None as for the command.
            step: The step whose verdicts count; None for all.

        Raises:
            UsageError: the format or the step does not exist, or the run has no such verdicts.
            RunError: the file cannot be written.
        """
        path = Path(file)
        write_document(path, export(self.record, form, where, step).content, "file")
        return path


def load_run(run: str | os.PathLike[str], root: str | os.PathLike[str] = ROOT) -> Run:
    """One run.

    Args:
        run: As for the commands: a folder, the beginning of a key, a name, an MLflow run id, or
            `latest`. `KEY#N` is attempt N; without it the newest attempt is taken.
        root: Tracking root.

    Raises:
        UsageError: no run is meant, or more than one; the message lists the candidates.
        RunError: the run's files cannot be read.
    """
    return Run(find_run(os.fspath(run), Path(root)))


def find_runs(
    experiment: str | None = None,
    *,
    name: str | None = None,
    status: str | None = None,
    root: str | os.PathLike[str] = ROOT,
) -> list[Run]:
    """Every readable run, attempt by attempt, oldest first.

    Args:
        experiment: Only runs of this experiment.
        name: Only runs with this name.
        status: Only runs with this status, such as `FINISHED`.
        root: Tracking root.
    """
    wanted = {"experiment": experiment, "name": name, "status": status}
    found = [Run(record) for record in readable_runs(Path(root))]
    return [
        run
        for run in found
        if all(value is None or getattr(run, key) == value for key, value in wanted.items())
    ]


def apply(
    spec: str | os.PathLike[str],
    set: Mapping[str, Any] | None = None,
    *,
    only: str | None = None,
    fresh: bool = False,
    redo: Iterable[str] = (),
    until: Mapping[str, int] | None = None,
    limit: int | None = None,
    root: str | os.PathLike[str] = ROOT,
) -> list[Run]:
    """Executes a spec as `glitchrun apply` does: runs that are finished are returned as they are.

    A gate that fails raises nothing: see `Run.gates`. Progress goes to standard error. Ctrl-C and
    SIGTERM stop the run cleanly where this is called in the main thread.

    Args:
        spec: Path of the spec.
        set: Values to override, by path, such as `{"model.quantization": "int4"}`.
        only: Name of the one matrix cell to run.
        fresh: Start a new attempt even where one is finished, and measure every step again.
        redo: Ids of steps to measure again in a new attempt, with the steps that read from them.
        until: Verifications after which searches end early, by the id of the step.
        limit: Most items that each step examines, for a smoke run; None for no such limit.
        root: Tracking root.

    Raises:
        InvalidSpec: the spec has problems; the message lists each with its line and remedy.
        UsageError: `only` names no cell, another option no step, or a value of `set` is of a type
            that YAML has no word for.
        PreflightError: the model or the tracking store is not available, or does not fit.
        RunError: a run failed. What it had finished is kept; the next call resumes it.
        Interrupted: Ctrl-C or SIGTERM; the next call resumes the run.
    """
    sets = [f"{path}={_yaml(path, value)}" for path, value in (set or {}).items()]
    experiment = load_experiment(Path(spec), sets, require_env=True)
    require("torch", "transformers", "mlflow", "rich")
    from glitchrun.runner import apply as runner
    from glitchrun.runner.options import Options
    from glitchrun.runner.progress import Display

    options = Options(only=only, fresh=fresh, redo=frozenset(redo), until=until or {}, limit=limit)
    applied = runner.apply(experiment, Path(root).resolve(), options, Display())
    if applied.exit_code in (130, 143):
        raise Interrupted(applied.exit_code)
    if applied.failures:
        raise RunError("\n".join(applied.failures))
    return [Run(outcome.record) for outcome in applied.outcomes]


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pd.DataFrame:
    require("pandas")
    import pandas as pd

    frame = pd.json_normalize(list(rows)) if rows else pd.DataFrame(columns=list(columns))
    return frame.convert_dtypes()


def _yaml(path: str, value: Any) -> str:
    """A value of `set` as YAML. Numbers of numpy and torch are written as Python's."""

    def plain(part: Any) -> Any:
        if isinstance(part, os.PathLike):
            return os.fspath(part)
        if hasattr(part, "tolist"):
            return part.tolist()
        raise UsageError(
            f"set: {path} has a value of type {type(part).__name__}; give text, a number, true, "
            "false, None, a path, or lists and dictionaries of these"
        )

    return json.dumps(value, default=plain)
