"""The census: a row for each model, a column for each definition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glitchrun.behaviour.significance import wilson
from glitchrun.cli import main
from glitchrun.events import Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.census import census, census_json, definitions
from glitchrun.spec.probes import PROTOCOLS
from tests.support.records import Invented, write_run
from tests.support.reporting import run_of, sampled, step, verified

PS = [0.9, 0.5, 0.2, 0.05, 0.005, 0.0005]


def facts(passed: int, protocol: str | None = None) -> list[Verified]:
    """Tokens with the probabilities `PS`, of which the first `passed` pass."""
    found = [verified(n, p=p, passed=n < passed, glitch=n >= passed) for n, p in enumerate(PS)]
    if protocol is None:
        return found
    names = PROTOCOLS[protocol].probes
    return [replace(one, probes=dict.fromkeys(names, one.probes["repeat"])) for one in found]


def run(folder: Path, model: str, *steps: StepRecord) -> RunRecord:
    record = run_of(folder, *steps)
    identity = replace(record.identity, digests={"model": model})
    return replace(record, identity=identity, spec={"model": {"path": f"/models/{model}"}})


@pytest.fixture
def records(tmp_path: Path) -> list[RunRecord]:
    scan = step("s", "scan", *facts(2))
    magikarp = step("m", "scan", *facts(4, "magikarp"))
    asr = step("asr", "validate", sampled(1, 5), sampled(2, 0), sampled(3, 4))
    asr = replace(asr, params={"tokens": {"from": "s"}})
    searched = replace(step("s", "mine", *facts(0)), params={"search": "cascade"})
    return [
        run(tmp_path / "a", "one", scan, asr),
        run(tmp_path / "b", "one", magikarp),
        run(tmp_path / "c", "two", searched),
    ]


def test_runs_of_a_model_are_one_row_with_a_count_for_each_definition(
    records: list[RunRecord],
) -> None:
    one, two = census(records)
    assert (one.name, two.name) == ("one", "two")
    assert len(one.runs) == 2
    counts = {name: (count.found, count.n) for name, count in one.counts.items()}
    assert counts == {
        "repeat: fails": (4, 6),
        "repeat: p < 0.01": (2, 6),
        "repeat: p < 0.001": (1, 6),
        "magikarp: fails": (2, 6),
        "magikarp: p < 0.01": (2, 6),
        "magikarp: p < 0.001": (1, 6),
        "confirmed": (2, 3),
    }
    assert "magikarp: fails" not in definitions([one, two])  # its rule is p < 0.01
    assert two.counts["repeat: fails"].how == "chosen by a search"
    assert one.counts["confirmed"].how == "taken from s"


def test_the_last_run_of_a_token_counts(records: list[RunRecord], tmp_path: Path) -> None:
    again = run(tmp_path / "d", "one", step("t", "test", verified(5)))
    (one,) = census([records[0], again])
    assert one.counts["repeat: fails"].found == 3


def test_json_has_wilsons_intervals(records: list[RunRecord]) -> None:
    data = census_json(records)
    found = data["models"][0]["counts"]["repeat: fails"]
    rate = wilson(4, 6)
    assert found["share"] == pytest.approx(rate.value)
    assert (found["low"], found["high"]) == pytest.approx((rate.low, rate.high))
    assert set(data["models"][1]["counts"]) <= set(data["definitions"])


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for name, key in (("first", "aaaa000000000000"), ("second", "bbbb000000000000")):
        write_run(tmp_path / "mlruns", Invented(experiment=name, name=name, key=key, tokens=24))

    def report(*words: str) -> Result:
        return CliRunner().invoke(main, ["report", *words])

    return report


def test_the_command_takes_names_and_tags(stored: Any, tmp_path: Path) -> None:
    done = stored("first", "second", "--format", "md")
    assert done.exit_code == 0, done.stderr
    assert "### Glitch tokens of 1 model by definition" in done.stdout
    assert "repeat: p" in done.stdout
    tagged = json.loads(stored("--tag", "team=safety", "--format", "json").stdout)
    assert len(tagged["models"][0]["runs"]) == 2
    assert stored("first", "second").stdout.strip() == "census.html"
    page = (tmp_path / "census.html").read_text(encoding="utf-8")
    assert "Census of glitch tokens" in page
    assert 'id="figure-census"' in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "report needs a RUN"),
        (["--tag", "x"], "write KEY=VALUE"),
        (["--tag", "x=1"], "no finished run has x=1"),
        (["first", "second", "--format", "junit"], "junit reports one run"),
    ],
)
def test_what_is_no_census_is_refused(stored: Any, words: list[str], message: str) -> None:
    done = stored(*words)
    assert done.exit_code == 2
    assert message in done.stderr
