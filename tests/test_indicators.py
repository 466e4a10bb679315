"""Indicators: their values, the file beside a step, the metrics and what readers see of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glitchrun.errors import ExitCode, PreflightError
from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures import drawings
from glitchrun.report.figures.style import style
from glitchrun.report.indicators import (
    FILE,
    _read,
    auc,
    indicator_data,
    indicator_metrics,
    keep_indicators,
    of_step,
)
from glitchrun.report.step_tables import step_tables
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.indicators import INDICATORS
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary import indicators as module
from glitchrun.vocabulary.indicators import Indicators
from glitchrun.vocabulary.relatives import longer_tokens
from tests.support.commands import applied, invoked
from tests.support.real_tokenizers import smollm2
from tests.support.reporting import rows, run_of, step, verified

ROWS, WIDTH = 60, 8


class Entries:
    """A vocabulary of ordinary tokens, but for two rows without an entry and a byte of no text."""

    def __init__(self, norms: torch.Tensor, **categories: list[int]) -> None:
        self.norms = norms
        self.pieces: list[str | None] = [f"w{row}" for row in range(ROWS - 2)] + [None, None]
        self.pieces[5] = "<0xFF>"
        self._categories = {"unused": [58, 59], "normal": list(range(6, 58)), **categories}

    def ids(self, categories: Any) -> list[int]:
        return [row for name in categories for row in self._categories.get(name, [])]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output embedding; the rows share a component, as those of real models do."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", 7 * 4 * WIDTH)  # blocks of seven rows
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(2, ROWS, WIDTH, generator=generator)
    made[1] += torch.linspace(1, 3, ROWS)[:, None] * torch.ones(WIDTH)
    return made[0], made[1]


def indicators(tables: Any, unused: list[int] | None = None, **categories: list[int]) -> Indicators:
    inputs, outputs = tables
    entries = Entries(inputs.norm(dim=1), **categories)
    return Indicators(lambda: [outputs], entries, tied=False, unused=unused)


def published(table: Any, unused: list[int]) -> dict[str, Any]:
    """Land and Bartolo's definitions, with an exact principal component."""

    def distance(rows: Any, direction: Any) -> Any:
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(direction)
        return 1 - rows @ direction / lengths.clip(min=1e-6)

    table = table.double().numpy()
    component = np.linalg.svd(table - table.mean(axis=0))[2][0]
    without = table - np.outer(table @ component, component)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return {
        "output_norm": np.linalg.norm(table, axis=1),
        "to_unused": distance(table, table[unused].mean(axis=0)),
        "to_unused_without_component": distance(without, without[unused].mean(axis=0)),
        "to_mean": distance(table, unit.mean(axis=0)),
    }


def test_values_are_those_of_the_definitions(tables: Any) -> None:
    found = indicators(tables)
    assert found.reference.ids == (5, 58, 59)
    assert found.reference.source == "2 unused or reserved entries and 1 bytes of no text"
    assert (found.tied, found.main) == (False, "input_norm")
    for name, expected in published(tables[1], [5, 58, 59]).items():
        np.testing.assert_allclose(found.values(name), expected, atol=2e-5)
    np.testing.assert_allclose(found.values("input_norm"), tables[0].norm(dim=1))
    low = np.percentile(found.values("to_unused")[6:58].numpy(), 2)
    assert found.threshold("to_unused") == pytest.approx(low, abs=1e-6)


def test_reference_rows_are_found_in_order_or_named(tables: Any) -> None:
    assert indicators(tables, [3, 4]).reference.ids == (3, 4)
    with pytest.raises(PreflightError, match=r"tokens\.unused: .* has 60 rows, so 60 is none"):
        indicators(tables, [60])
    found = indicators(tables, unused=None, unreachable=[9])
    found._vocabulary.pieces[5] = "x"  # type: ignore[index]
    found._vocabulary._categories["unused"] = []  # type: ignore[attr-defined]
    assert (found.reference.ids, found.reference.source) == ((9,), "1 unreachable tokens")


def test_what_is_undefined_is_none(tables: Any) -> None:
    tables[1][7] = torch.nan
    tables[1][8] = 0
    found = indicators(tables, [])
    assert found.values("to_unused") is None
    assert found.threshold("to_unused_without_component") is None
    values = found.of([7, 8, 9])
    assert values["to_unused"] == [None] * 3
    assert values["output_norm"][0] is None
    assert values["output_norm"][1] == 0
    tied = Indicators.of_tables(tables[1], tables[1], Entries(tables[1].norm(dim=1)))
    assert (tied.tied, tied.main) == (True, "to_unused")


@pytest.mark.parametrize(
    ("severe", "other", "expected"),
    [([1], [2], 1.0), ([2], [1], 0.0), ([1], [1], 0.5), ([1, 4], [2, 3, 4], (3 + 0.5) / 6)],
)
def test_auc_counts_pairs(severe: list[float], other: list[float], expected: float) -> None:
    assert auc(severe, other) == pytest.approx(expected)


@pytest.fixture
def scanned(tables: Any, tmp_path: Path) -> StepRecord:
    """A step on tokens 6 to 57; the severe ones are the three of lowest input norm, and another."""
    found = indicators(tables)
    low = found.values("input_norm")
    assert low is not None
    order = sorted(range(6, 58), key=lambda i: float(low[i]))
    severe = {*order[:3], order[-1]}
    facts = [
        verified(i, p=1e-5 if i in severe else 0.5, passed=i not in severe, glitch=i in severe)
        for i in range(6, 58)
    ]
    longer = {str(order[0]): {"count": 9, "tokens": [[order[1], " long"], [2, " other"]]}}
    unreachable = {"count": 301, "tokens": [[3, " x", [[4, " "], [5, "x"]]]]}
    related = {"longer": longer, "unreachable": unreachable}
    keep_indicators(tmp_path, indicator_data(found, list(range(6, 58)), related))
    return replace(step("s", "scan", *facts), folder=tmp_path)


def test_metrics_separate_severe_tokens(scanned: StepRecord) -> None:
    metrics = {one.name: one for one in indicator_metrics(scanned)}
    assert len(metrics) == 2 * len(INDICATORS)
    assert metrics["auc.input_norm"].value == pytest.approx(3 / 4)
    # 2 % of 52 tokens: at or below the percentile, which lies between the second and the third.
    assert metrics["lowest.input_norm"].value == 2 / 4
    assert metrics["lowest.input_norm"].n == 4


def test_steps_without_severe_tokens_or_without_the_file_have_no_metrics(
    scanned: StepRecord, tmp_path: Path
) -> None:
    assert list(indicator_metrics(replace(step("s", "scan", verified(6)), folder=tmp_path))) == []
    whole = json.loads((tmp_path / FILE).read_text())
    spoilt = [
        {"version": 1},
        whole | {"thresholds": {}},
        whole | {"values": {name: ["x"] * 52 for name in INDICATORS}},
        whole | {"longer": {"6": {"count": 1, "tokens": [5]}}},
    ]
    for text in (*map(json.dumps, spoilt), "[" * 100_000):
        (tmp_path / FILE).write_text(text)
        _read.cache_clear()
        assert of_step(scanned) is None
        assert list(indicator_metrics(scanned)) == []
    assert list(indicator_metrics(replace(scanned, folder=None))) == []


def test_lines_and_figures_show_the_indicators(scanned: StepRecord, tmp_path: Path) -> None:
    record = run_of(tmp_path / "run", scanned)
    line = rows(record)[0]
    assert list(line["indicators"]) == list(INDICATORS)
    with style():
        figures = {one.name: one for one in drawings(record)}
    assert "2 of the 4 severe tokens are there (50 %)" in figures["indicator"].caption
    assert "AUC 0.75" in figures["indicator"].caption
    assert "2 unused or reserved entries and 1 bytes of no text" in figures["indicator"].caption
    assert "indicators" in figures


def test_tables_show_related_tokens(scanned: StepRecord, tmp_path: Path) -> None:
    found = of_step(scanned)
    assert found is not None
    ((longer, _), _) = next(iter(found.longer.values())).tokens
    shown = verified(longer, p=0.7)  # by other probes, which are not comparable
    by_others = step("t", "test", replace(shown, probes={"other": shown.probes["repeat"]}))
    tables = {one.name: one for one in step_tables(run_of(tmp_path / "run", scanned, by_others))}
    first, second = tables["longer"].rows
    assert (first["longer"], first["longer_p"]) == (" long", 1e-5)
    assert (first["longer_verdict"], second["longer_verdict"]) == ("glitch", "not verified")
    assert (second["longer_id"], second["longer_p"], second["of"]) == (2, None, 9)
    (unreachable,) = tables["unreachable"].rows
    assert (unreachable["encoded_as"], unreachable["ids"]) == ("« » «x»", "4, 5")
    assert "300 more are not listed" in tables["unreachable"].description


def test_related_tokens_are_found_in_the_vocabulary() -> None:
    vocabulary = Vocabulary(smollm2(), torch.ones(49152))
    assert vocabulary.encoded(28) == (28,)
    token_id = vocabulary.find("PlaneProtection")
    assert token_id is not None
    found = longer_tokens(vocabulary, [token_id, 49151], first=())
    longer = [vocabulary.text(one) for one in found[token_id].ids]
    assert longer == ["ManagementPlaneProtection"]
    letter = longer_tokens(vocabulary, [vocabulary.find("e") or 0], first={49000})
    assert len(next(iter(letter.values())).ids) == 8


SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {{name: ind}}
model: {{path: {model}, device: cpu}}
template: chatml
tokens: {{unused: {{ids: [0, 1]}}}}
steps:
  - {{id: low, strategy: mine, search: indicator, indicator: to_unused, iterations: 2}}
gates: [{{metric: low/auc.to_unused, op: ">=", value: 0}}]
"""


def test_a_run_keeps_them_and_another_run_reuses_them(
    in_empty_folder: Path, llama_folder: Path
) -> None:
    (in_empty_folder / "ind.yaml").write_text(SPEC.format(model=llama_folder))
    (run,) = applied(in_empty_folder, "ind.yaml")["runs"]
    lines = (Path(run["artifacts_dir"]) / "tokens.jsonl").read_text().splitlines()
    values = [json.loads(line)["indicators"]["to_unused"] for line in lines]
    assert values == sorted(values)
    assert len(values) == 16
    text = (in_empty_folder / "ind.yaml").read_text()
    (in_empty_folder / "ind.yaml").write_text(text.replace("name: ind", "name: again"))
    (again,) = applied(in_empty_folder, "ind.yaml")["runs"]
    assert (Path(again["artifacts_dir"]) / "tokens.jsonl").read_text().splitlines() == lines
    auc_of = [one["metrics"].get("low/auc.to_unused") for one in (run, again)]
    assert auc_of[0] == auc_of[1]
    done = invoked(in_empty_folder, "plan", "ind.yaml", "--set", "tokens.unused.ids=[0, 9999]")
    assert done.exit_code == ExitCode.PREFLIGHT  # apply would refuse it as well


def test_reference_rows_are_part_of_the_key_only_where_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(SPEC.format(model="/m"))
    named = load_experiment(path, []).cells[0].spec
    assert named.tokens.unused == (0, 1)
    from glitchrun.spec.digest import scope_setting

    assert scope_setting(named.tokens) == {"categories": ["normal"], "unused": [0, 1]}
    assert scope_setting(replace(named.tokens, unused=None)) == ["normal"]
