"""Every number that a report gives about tokens, computed again from tokens.jsonl alone."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from glitchrun.events import Control, Measured, ProbeResult, Sampled, Token, Verified
from glitchrun.ledger.record import Metric, RunRecord, StepRecord
from glitchrun.report.html import render
from glitchrun.report.machine_readable import run_json
from glitchrun.report.summary import summary_lines
from glitchrun.report.token_files import write_tokens
from glitchrun.spec.strategy import STRATEGIES
from tests.support.reporting import run_of, step

LIMIT, ASR, ATTEMPTS = 0.02, 0.6, 5
KINDS = ("prefix", "case_space", "whitespace", "other")
Line = dict[str, Any]


def verdict(token_id: int, chance: random.Random) -> Verified:
    """A verdict of two probes, with probabilities over seven decades."""
    probes = {
        name: ProbeResult(
            p=(p := min(1.0, 10 ** chance.uniform(-7, 0.3))),
            rank=1 + (p < 0.5) * chance.randint(1, 50),
            entropy=chance.uniform(0, 6),
            argmax=token_id if p >= 0.5 else 1,
            gap=0.0 if p >= 0.5 else 2.0,
            passed=p >= 0.5,
            decided_in="float32",
            intact=chance.random() < 0.9,
        )
        for name in ("repeat", "question")
    }
    failed = not any(result.passed for result in probes.values())
    glitch = failed and all(result.p < LIMIT for result in probes.values())
    category = chance.choice(["normal", "normal", "byte"])
    token = Token(token_id, f" t{token_id}", f"Ġt{token_id}", category, chance.uniform(1, 4))
    kind = chance.choice(KINDS) if failed else None
    return Verified(token, probes, glitch, kind, "x" if failed else None)


def sampling(token: Token, chance: random.Random) -> Sampled:
    outcomes = tuple(chance.random() < 0.6 for _ in range(5))
    asr = sum(outcomes) / 5
    return Sampled(token, outcomes, asr, asr / 2, (1 + asr) / 2, asr >= ASR, chance.random() < 0.9)


def measured(made: StepRecord, events: Iterable[Measured]) -> StepRecord:
    return replace(made, metrics={e.name: Metric(e.value, e.n) for e in events})


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A scan with controls among its tokens, a search and a validation with controls of theirs."""
    chance = random.Random(5)
    scanned = [verdict(i, chance) for i in range(400)]
    marks = [Control(1, i % 3 > 0, fact) for i, fact in enumerate(scanned[:50])]
    searched = [verdict(i, chance) for i in range(300, 700)]
    apart = [Control(2, True, verdict(i, chance)) for i in range(700, 740)]
    found = [fact.token for fact in searched if fact.glitch]
    tried = [sampling(token, chance) for token in found]
    others = [Control(3, True, sampling(fact.token, chance)) for fact in scanned[100:120]]
    steps = []
    for name, kind, facts, controls in (
        ("scan", "scan", scanned, marks),
        ("mine", "mine", searched, apart),
        ("asr", "validate", tried, others),
    ):
        made = step(name, kind, *facts)  # type: ignore[arg-type]
        only = replace(made.batches[0].batch, facts=tuple(controls), counters={})
        own = replace(
            made.batches[0].batch,
            counters={"not_intact": sum(not _intact(fact) for fact in facts)},
        )
        batches = [own, only]
        timed = tuple(replace(made.batches[0], batch=batch) for batch in batches)
        params = {"attempts": ATTEMPTS, "tokens": {}} if kind == "validate" else {}
        strategy = STRATEGIES[kind]
        events = strategy.metrics(strategy.configure({"controls": 1, **params}), batches, ())
        steps.append(measured(replace(made, batches=timed), events))
    record = run_of(tmp_path_factory.mktemp("runs"), *steps)
    spec = {**record.spec, "thresholds": {"asr": ASR, "probability": LIMIT}}
    return replace(record, spec=spec)


def _intact(fact: Verified | Sampled) -> bool:
    return fact.presented_intact if isinstance(fact, Verified) else fact.intact


@pytest.fixture(scope="module")
def lines(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    path, _ = write_tokens(record, tmp_path_factory.mktemp("written"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verified(lines: Iterable[Line]) -> list[Line]:
    """Lines with a verdict: controls that a step looked at as such alone have none."""
    return [line for line in lines if line["glitch"] is not None]


def sampled(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line["confirmed"] is not None]


def last(lines: Iterable[Line]) -> list[Line]:
    """One line for each token: the last step's."""
    return list({line["token_id"]: line for line in lines}.values())


def p(line: Line) -> float:
    return max(result["p"] for result in line["probes"].values())


def failed(line: Line) -> bool:
    return not any(result["pass"] for result in line["probes"].values())


def wilson(hits: int, n: int) -> tuple[float, float]:
    z, rate = 1.959963984540054, hits / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def severity_of(lines: Iterable[Line]) -> dict[str, Any]:
    found = last(verified(lines))
    glitch = [line for line in found if line["glitch"]]
    kinds = Counter(line["emitted"] for line in glitch)
    return {
        "verified": len(found),
        "glitch": len(glitch),
        "severe": sum(p(line) < 1e-3 for line in glitch),
        "mild": sum(p(line) < 1e-2 for line in glitch),
        "near_miss": sum(failed(line) and not line["glitch"] for line in found),
        "emitted": {kind: kinds[kind] for kind in KINDS},
    }


def test_a_line_s_verdict_follows_from_its_probes(lines: list[Line]) -> None:
    for line in verified(lines):
        assert line["glitch"] == (failed(line) and p(line) < LIMIT)
        assert (line["emitted"] is None) == (not failed(line))
    for line in sampled(lines):
        assert line["confirmed"] == (line["asr"] >= ASR)
        assert line["asr"] == line["failures"] / line["attempts"]


def test_metrics(record: RunRecord, lines: list[Line]) -> None:
    for made in record.steps:
        of_step = [line for line in lines if line["step"] == made.id]
        expected = dict(metrics_of(of_step))
        timed = {name for name in made.metrics if name.endswith("_per_second")} | {"rechecked"}
        # Work, which is in the batches' counters.
        timed |= {"resampled", "gradients", "screens", "search_seconds", "distinct"}
        assert made.metrics.keys() - timed == expected.keys()
        for name, value in expected.items():
            assert made.metrics[name].value == pytest.approx(value, rel=1e-6), (made.id, name)


def metrics_of(lines: list[Line]) -> Iterator[tuple[str, float]]:
    own, tried = verified(lines), sampled(lines)
    if own:
        yield "verified", len(own)
        yield "glitch", sum(line["glitch"] for line in own)
        yield "severe", sum(line["glitch"] and p(line) < 1e-3 for line in own)
        yield "glitch_rate", sum(line["glitch"] for line in own) / len(own)
    if tried:
        yield "validated", len(tried)
        yield "confirmed", sum(line["confirmed"] for line in tried)
        yield "attempts", sum(line["attempts"] for line in tried)
        yield "attempts_saved", sum(ATTEMPTS - line["attempts"] for line in tried)
        yield "stopped_early", sum(line["attempts"] < ATTEMPTS for line in tried)
        yield "asr_mean", sum(line["asr"] for line in tried) / len(tried)
    yield "not_intact", sum(not line["presented_intact"] for line in own + tried)
    of_controls = [line for line in lines if line["control_of"] is not None]
    marked = [line["false_alarm"] for line in of_controls if not line["control_elsewhere"]]
    beside = [line["false_alarm"] for line in of_controls if line["control_elsewhere"]]
    yield "controls_elsewhere", len(beside)
    yield "false_alarms_elsewhere", sum(beside)
    low, high = wilson(sum(marked), len(marked))
    yield "controls", len(marked)
    yield "false_alarms", sum(marked)
    yield "false_alarm_rate", sum(marked) / len(marked)
    yield "false_alarm_low", low
    yield "false_alarm_high", high


def test_the_document(record: RunRecord, lines: list[Line]) -> None:
    data = json.loads(json.dumps(run_json(record)))
    assert data["headline"]["number"] == sum(line["confirmed"] for line in last(sampled(lines)))
    assert data["severity"] == severity_of(lines)
    assert data["emitted"] == severity_of(lines)["emitted"]
    assert data["verdicts"] == list(tallies_of(lines))
    assert data["bands"] == list(bands_of(lines))
    assert data["probe_patterns"] == list(patterns_of(lines))
    for row, again in zip(data["false_alarms"], alarms_of(lines), strict=True):
        kinds = row.pop("kinds")
        most = row["controls"] >= 3 and 2 * row["alarms"] >= row["controls"]
        assert row.pop("doubtful") == (["latin"] if most else [])
        assert (row.pop("elsewhere"), row.pop("elsewhere_alarms")) == (0, 0)
        assert row.pop("sampled") == (row["step"] == "asr")
        assert row == pytest.approx(again)
        for name in ("flagged", "tokens", "alarms", "controls"):
            assert sum(kind[name] for kind in kinds) == row[name]
        for kind in kinds:
            bounds = wilson(kind["alarms"], kind["controls"]) if kind["controls"] else (None, None)
            assert (kind["low"], kind["high"]) == pytest.approx(bounds, rel=1e-6)


def tallies_of(lines: list[Line]) -> Iterator[Line]:
    for name in ("scan", "mine", "asr"):
        of_step = [line for line in lines if line["step"] == name]
        rows = []
        for category in ("normal", "byte"):
            here = [line for line in of_step if line["category"] == category]
            own, tried = verified(here), sampled(here)
            glitch, cleared = sum(line["glitch"] for line in own), sum(not failed(x) for x in own)
            rows.append(
                {
                    "step": name,
                    "category": category,
                    "verified": len(own),
                    "passed": cleared,
                    "near_miss": len(own) - cleared - glitch,
                    "glitch": glitch,
                    "sampled": len(tried),
                    "confirmed": sum(line["confirmed"] for line in tried),
                }
            )
        yield from sorted(rows, key=lambda row: -row["verified"] - row["sampled"])


def bands_of(lines: list[Line]) -> Iterator[Line]:
    tried = {line["token_id"]: line for line in sampled(lines)}
    found = [line for line in last(verified(lines)) if failed(line)]
    for low, high in ((0, 1e-5), (1e-5, 1e-4), (1e-4, 1e-3), (1e-3, 1e-2), (1e-2, 0.1), (0.1, 1)):
        here = [line for line in found if low <= p(line) < high]
        also = [tried[line["token_id"]] for line in here if line["token_id"] in tried]
        kinds = Counter(line["emitted"] for line in here)
        yield {
            "low": low,
            "high": high,
            "failed": len(here),
            "glitch": sum(line["glitch"] for line in here),
            "emitted": {kind: kinds[kind] for kind in KINDS},
            "sampled": len(also),
            "confirmed": sum(line["confirmed"] for line in also),
        }


def patterns_of(lines: list[Line]) -> Iterator[Line]:
    for name in ("scan", "mine"):
        groups: dict[tuple[bool, bool], list[Line]] = {}
        for line in verified(lines):
            if line["step"] == name:
                key = (line["probes"]["repeat"]["pass"], line["probes"]["question"]["pass"])
                groups.setdefault(key, []).append(line)
        for key, here in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
            yield {
                "step": name,
                "passed": {"repeat": key[0], "question": key[1]},
                "tokens": len(here),
                "severe": sum(line["glitch"] and p(line) < 1e-3 for line in here),
            }


def alarms_of(lines: list[Line]) -> Iterator[Line]:
    for name in ("scan", "mine", "asr"):
        of_step = [line for line in lines if line["step"] == name]
        marked = [line for line in of_step if line["control_of"] is not None]
        own = [line["glitch"] for line in verified(of_step)]
        own += [line["confirmed"] for line in sampled(of_step)]
        low, high = wilson(sum(line["false_alarm"] for line in marked), len(marked))
        yield {
            "step": name,
            "flagged": sum(own),
            "tokens": len(own),
            "alarms": sum(line["false_alarm"] for line in marked),
            "controls": len(marked),
            "alike": sum(line["control_alike"] for line in marked),
            "low": low,
            "high": high,
        }


def test_the_sentences(record: RunRecord, lines: list[Line]) -> None:
    found, tried = severity_of(lines), last(sampled(lines))
    top = run_json(record)["headline"]
    samples, worst, verdicts = map(_numbers, top["result"])
    intervals, *alarms, emitted = map(_numbers, top["caveats"])
    assert samples[:2] == [sum(line["confirmed"] for line in tried), len(tried)]
    highest = max(line["asr"] for line in tried)
    assert worst[0] == sum(line["asr"] == highest for line in tried)
    assert {found["verified"], found["glitch"], found["near_miss"]} <= {*verdicts}
    clear = sum(line["asr_low"] >= ASR for line in tried if line["confirmed"])
    assert (clear == 0) == ("No confirmed token" in top["caveats"][0])
    assert clear in (0, intervals[0])
    for numbers, again in zip(alarms, alarms_of(lines), strict=True):
        assert {again[name] for name in ("controls", "alarms", "flagged", "tokens")} <= {*numbers}
    assert {found["emitted"]["prefix"], found["emitted"]["case_space"]} <= {*emitted}
    assert {found["glitch"], found["severe"], found["mild"]} <= {*_numbers(top["details"][0])}
    shown = "\n".join(summary_lines(record))
    assert all(text in shown for text in top["sentences"])


def _numbers(text: str) -> list[int]:
    """The whole numbers in a sentence, without percentages."""
    return [int(n.replace(",", "")) for n in re.findall(r"\b\d[\d,]*\b(?![.%])", text)]


def test_the_page(record: RunRecord, lines: list[Line]) -> None:
    html = render(record)
    found = severity_of(lines)
    cards = dict(re.findall(r"<dt>([^<]+)</dt><dd>([\d,]+) <small>", html))
    assert {cards["verified"], cards["severe"], cards["glitch"]} == {
        str(found[name]) for name in ("verified", "severe", "glitch")
    }
    assert cards["p &lt; 0.01"] == str(found["mild"])
    rows = table_of(html, "bands")
    again = list(bands_of(lines))
    for row, band in zip(rows, again, strict=False):
        assert row[1] == str(band["failed"])
        assert row[2] == share(band["failed"], found["verified"])
        assert row[3] == str(band["glitch"])
        assert [int(cell.split()[0]) for cell in row[4:8]] == list(band["emitted"].values())
        assert row[8:] == (
            [str(band["sampled"]), str(band["confirmed"])] if band["sampled"] else ["–"] * 2
        )
    assert rows[-1][1] == str(sum(band["failed"] for band in again))
    assert [row[2:] for row in table_of(html, "patterns")] == [
        [str(row["tokens"]), str(row["severe"])] for row in patterns_of(lines)
    ]
    for row, alarm in zip(table_of(html, "alarms"), alarms_of(lines), strict=True):
        assert row[1] == f"{alarm['flagged']} of {alarm['tokens']}"
        assert row[3] == str(alarm["controls"])
        assert row[5:7] == [str(alarm["alarms"]), share(alarm["alarms"], alarm["controls"])]
    severest = sorted((line for line in last(verified(lines)) if line["glitch"]), key=p)[:12]
    listed = table_of(html, "severest")
    assert [row[1] for row in listed] == [str(line["token_id"]) for line in severest]
    assert [float(row[2]) for row in listed] == pytest.approx([p(x) for x in severest], rel=1e-2)


def table_of(html: str, name: str) -> list[list[str]]:
    """The cells of a table's rows, as text."""
    (table,) = re.findall(rf'<table id="{name}">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[re.sub("<[^>]+>", "", cell).strip() for cell in row] for row in cells]


def share(part: int, whole: int) -> str:
    from glitchrun.report.formatting import share as written

    return written(part, whole)
