"""Which changes of a spec change which digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from glitchrun.spec.digest import changed_paths, cosmetic_digest, numerics_digest, results_digest
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.types import Spec

TEXT = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: example}
model: {path: org/model}
steps:
  - {id: mine, strategy: mine, batch_size: 8}
  - {id: again, strategy: test, tokens: {file: tokens.json}, batch_size: 8}
gates: [{metric: mine/glitch, op: ">", value: 0}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokens.json").write_text("[1]")
    return tmp_path


def load(folder: Path, *sets: str, text: str = TEXT) -> Spec:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, sets, {}).cells[0].spec


def digests(spec: Spec) -> dict[str, str]:
    return {
        "results": results_digest(spec),
        "numerics": numerics_digest(spec),
        "cosmetic": cosmetic_digest(spec),
    }


MOVED = [
    ("seed=1", "results"),
    ("model.quantization=int8", "results"),
    ("model.revision=main", "results"),
    ("template=chatml", "results"),
    ("system=Be brief.", "results"),
    ("thresholds.asr=0.6", "results"),
    ("tokens.categories=[normal, byte]", "results"),
    ("tokens.exclude=['^ ']", "results"),
    ("template_variables={effort: low}", "results"),
    ("steps.mine.batch_size=9", "results"),  # a search looks at what its batches showed
    ("steps.mine.k=9", "results"),
    ("steps.again.batch_size=9", "numerics"),
    ("model.device=cpu", "numerics"),
    ("model.max_memory={cpu: 1GiB}", "numerics"),
    ("metadata.name=other", "cosmetic"),
    ("metadata.description=why", "cosmetic"),
    ("metadata.tags={a: b}", "cosmetic"),
    ("gates.0.value=3", "cosmetic"),
    ("tracking.experiment=x", "cosmetic"),
    ("x-note=1", "cosmetic"),
]


@pytest.mark.parametrize(("change", "kind"), MOVED)
def test_each_key_changes_the_digest_of_its_kind(folder: Path, change: str, kind: str) -> None:
    old, new = load(folder), load(folder, change)
    before, after = digests(old), digests(new)
    assert {name for name in before if before[name] != after[name]} == {kind}
    (changed,) = changed_paths(old.document, new.document)
    assert changed[1] == kind


@pytest.mark.parametrize(
    "change", ["seed=0", "steps.mine.k=32", "thresholds.asr=0.50", "thresholds.probability=1"]
)
def test_writing_out_a_default_changes_no_digest(folder: Path, change: str) -> None:
    old, new = load(folder), load(folder, change)
    assert digests(old) == digests(new)
    assert changed_paths(old.document, new.document) == []


def test_the_path_of_the_model_changes_no_digest(folder: Path) -> None:
    assert results_digest(load(folder)) == results_digest(load(folder, "model.path=other/model"))


def test_a_token_file_is_digested_by_its_contents(folder: Path) -> None:
    old = load(folder)
    before = results_digest(old)
    (folder / "moved.json").write_text("[1]")
    assert results_digest(load(folder, f"steps.again.tokens.file={folder}/moved.json")) == before
    (folder / "tokens.json").write_text("[2]")
    assert results_digest(load(folder)) != before


def test_digests_do_not_depend_on_comments_or_the_order_of_keys(folder: Path) -> None:
    lines = TEXT.splitlines()
    turned = "# comment\n" + "\n".join([lines[-1], *lines[2:-1], *lines[:2]])
    assert digests(load(folder)) == digests(load(folder, text=turned))


def test_digests_are_pinned(folder: Path) -> None:
    """A run is resumed by its digest: a change here makes every run of old specs start again."""
    pinned = "apiVersion: glitchrun/v1\nkind: Experiment\nmetadata: {name: a}\nmodel: {path: a/b}\n"
    spec = load(folder, text=pinned + "steps: [{id: s, strategy: scan}]\n")
    assert results_digest(spec)[:16] == "7abaabd7ada36ccf"


def test_changes_are_listed_with_both_values(folder: Path) -> None:
    old, new = load(folder), load(folder, "steps.mine.k=9", "x-a={b: 1}", "model.revision=v2")
    assert sorted(changed_paths(old.document, new.document)) == [
        ("model.revision", "results", None, "v2"),
        ("steps[0].k", "results", 32, 9),
        ("x-a", "cosmetic", None, {"b": 1}),
    ]
