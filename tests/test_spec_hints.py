"""Hints: what a message about a wrong value tells the user to write instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from glitchrun.spec.experiment_loading import check_files
from glitchrun.spec.schema import closed

HEAD = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: example}
"""
MINE = "steps: [{strategy: mine}]\n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("model: {path: p, max_memory: {gpu0: 20GiB}}\n" + MINE, "0, 1, ...), cpu or disk"),
        ("model: {path: p, max_memory: {0: 20 gigs}}\n" + MINE, "20GiB"),
        (
            "model: {path: p, quantization: int3}\n" + MINE,
            "did you mean 'int8'? Allowed: 'int8', 'none', 'float32', 'float16', ",
        ),
        ("model: {path: p, quantization: fp}\n" + MINE, "one of 'none', 'float32'"),
        ('seed: "12"\nmodel: {path: p}\n' + MINE, "write 12 without quotes"),
        ('thresholds: {asr: "0.5"}\nmodel: {path: p}\n' + MINE, "write 0.5 without quotes"),
        ('model: {path: p, allow_pickle: "true"}\n' + MINE, "write true without quotes"),
        ("model: {path: p, revision: 12345}\n" + MINE, "put it in quotes if text is meant"),
        ("model: {path: p, revision: 12e4567}\n" + MINE, "put it in quotes if text is meant"),
        ('seed: "twelve"\nmodel: {path: p}\n' + MINE, ""),
        ('seed: "1.5"\nmodel: {path: p}\n' + MINE, ""),
        ("model: {path: p}\nsteps: [{strategy: mine, id: a b}]\n", "such as mine-2"),
        ("template_variables: {a-b: 1}\nmodel: {path: p}\n" + MINE, "enable_thinking"),
    ],
)
def test_a_wrong_value_gets_a_hint(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    (problem,), _ = check_files([path], {})
    assert hint in problem.hint
    assert bool(hint) == bool(problem.hint)


def test_every_pattern_of_the_schema_is_explained_in_words() -> None:
    patterns = [part for part in _parts(closed()) if isinstance(part.get("pattern"), str)]
    assert len(patterns) > 4
    assert all(part.get("x-form") for part in patterns)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, Mapping):
        yield schema
        for part in schema.values():
            yield from _parts(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _parts(part)
