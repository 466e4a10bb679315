"""Rates of earlier runs, and the duration that follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.events import Batch, Control, ProbeResult, Sampled, Screened, Token, Verified
from glitchrun.events_json import batch_to_json
from glitchrun.ledger.timings import PROMPT_TOKENS, Timing, read_timings
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.duration import duration
from glitchrun.plan.memory_estimate import estimate
from glitchrun.plan.rates import EQUIVALENT, ModelSize, Rates, product_flops
from glitchrun.plan.work import step_work, workloads
from glitchrun.spec.types import ModelSpec, Spec, Step
from tests.support import raw_checkpoints as raw

MODEL = ModelSize("this", "none", "cpu", 1e8, 5 * 10**8, 50_000)
VERIFY = Timing("verify", 1000, 50.0, "aaaaaaaaaaaaaaaa", 1, "this", "none", "cpu", 1e8)


def _no_speed() -> float | None:
    return None


def _rates(*timings: Timing, model: ModelSize = MODEL) -> Rates:
    return Rates(model, timings, lambda: 2e11)


def test_rate_of_this_model_is_that_of_its_runs() -> None:
    rate = _rates(VERIFY).of("verify")
    assert (rate.seconds, rate.exact) == (0.05, True)
    assert rate.source == "rates measured in run aaaaaaaa"


def test_kind_that_was_not_measured_follows_from_the_one_measured_longest() -> None:
    screen = replace(VERIFY, kind="screen", amount=10, seconds=1.0)
    rate = _rates(VERIFY, screen).of("sample")
    assert rate.seconds == pytest.approx(0.05 * EQUIVALENT["sample"])
    assert not rate.exact


def test_latest_three_runs_are_averaged() -> None:
    runs = [replace(VERIFY, at=at, run=f"run {at}", seconds=10.0 * at) for at in range(1, 6)]
    rate = _rates(*runs).of("verify")
    assert rate.seconds == pytest.approx((30 + 40 + 50) / 3000)
    assert rate.run == "run 5"


def test_another_quantization_counts_where_there_is_no_run_with_this_one() -> None:
    int4 = replace(VERIFY, quantization="int4", seconds=100.0, run="b" * 16)
    assert _rates(int4, VERIFY).of("verify").seconds == 0.05
    rate = _rates(int4).of("verify")
    assert (rate.seconds, rate.basis) == (0.1, "quantization")
    assert rate.source == "rates of another quantization, measured in run bbbbbbbb"


def test_another_model_is_scaled_by_its_parameters_without_the_overhead() -> None:
    other = replace(VERIFY, fingerprint="other", parameters=5e7, seconds=27.0)
    rate = _rates(other).of("verify")
    assert rate.seconds == pytest.approx(0.002 + 2 * 0.025)
    assert rate.basis == "other model"


@pytest.mark.parametrize(
    "change", [{"parameters": 1e6}, {"parameters": 1e10}, {"parameters": None}, {"device": "cuda"}]
)
def test_timings_that_cannot_be_scaled_do_not_count(change: Mapping[str, Any]) -> None:
    other = replace(VERIFY, **{"fingerprint": "other", **change})
    rate = _rates(other).of("verify")
    assert rate.source == "estimated from the speed of this CPU"
    assert rate.seconds == pytest.approx(2 * 1e8 * 18 / (0.7 * 2e11) + 0.002)


def test_speed_is_assumed_where_nothing_can_be_measured() -> None:
    on_gpu = replace(MODEL, kind="cuda")
    for rates in (Rates(MODEL, (), _no_speed), _rates(model=on_gpu)):
        rate = rates.of("verify")
        assert rate.basis == "assumed"
        assert rate.seconds > 0


def test_start_is_that_of_earlier_runs_or_follows_from_the_size() -> None:
    start = replace(VERIFY, kind="start", amount=1, seconds=27.5)
    assert _rates(start).start().seconds == 27.5
    assert _rates(VERIFY).start().seconds == pytest.approx(15 + 1 + 10)


def test_speed_of_this_cpu_is_measured_once() -> None:
    speed = product_flops()
    assert speed is not None
    assert speed > 1e8
    assert product_flops() == speed


# Durations


def _duration(folder: Path, timings: Sequence[Timing], *steps: Step) -> Any:
    header = read_header(resolve(str(raw.folder(folder))))
    spec = Spec("x", ModelSpec("m"), steps)
    work = step_work(spec, header.vocab)
    memory = estimate(header, "none", workloads(spec, work), DeviceMemory("cpu", 8 << 30, 0, "x"))
    size = replace(MODEL, parameters=memory.active_parameters)
    return duration(header, memory, work, Rates(size, timings, lambda: 1e11))


def test_duration_is_the_work_at_the_rates(tmp_path: Path) -> None:
    start = replace(VERIFY, kind="start", amount=1, seconds=7.0)
    found = _duration(tmp_path, [VERIFY, start], Step("all", "scan", {"probes": "strict"}))
    assert found.steps == {"all": pytest.approx(10 * 3 * 0.05)}
    assert found.likely == pytest.approx(7 + 1.5)
    assert found.most == pytest.approx(2 * 7 + 2 * 1.5 + 10)
    assert found.to_json()["source"] == "rates measured in run aaaaaaaa"


def test_prompt_of_a_continuation_counts_as_some_of_its_tokens(tmp_path: Path) -> None:
    rate = replace(VERIFY, kind="sample", seconds=100.0)
    asked = {"tokens": {"ids": [1, 2]}, "attempts": 1, "temperature": 0, "max_new_tokens": 1}
    found = _duration(tmp_path, [rate], Step("asr", "validate", asked))
    assert found.steps["asr"] == pytest.approx(0.1 * 2 * 3 * (1 + PROMPT_TOKENS))


def test_bound_without_rates_is_at_low_speed_and_above_the_likely_time(tmp_path: Path) -> None:
    asr = Step("asr", "validate", {"tokens": {"ids": [1, 2]}})
    found = _duration(tmp_path, [VERIFY], Step("all", "scan", {}), asr)
    assert found.most > _duration(tmp_path, [], asr).most > 60
    assert found.likely < found.most


# Reading timings


def _ledger(root: Path, key: str, *, host: str = "here", lines: Sequence[Any] = ()) -> Path:
    folder = root / "runs" / "x" / key / "attempt-1"
    folder.mkdir(parents=True)
    identity = {"key": key}
    spec = {"model": {"quantization": "int8"}}
    document = {"identity": identity, "spec": spec, "created_at": 1}
    (folder / "run.json").write_text(json.dumps(document))
    plan = {"fingerprint": "this", "memory": {"parameters": 9, "active_parameters": 4.0}}
    head = [
        {"kind": "session", "at": 1000, "host": host, "plan": plan},
        {"kind": "model", "at": 2000, "model": {"device": "cpu"}},
        {"kind": "step", "at": 5000, "step": "a"},
    ]
    text = "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in (*head, *lines))
    (folder / "ledger.jsonl").write_text(text)
    return folder / "ledger.jsonl"


def _batch(facts: Sequence[Any], counters: Mapping[str, int], **more: float) -> dict[str, Any]:
    end = {"done": 1, "total": None, "seconds": 2.0, "counters": counters, "search_seconds": 0.5}
    return {"kind": "batch", "at": 6000, "step": "a", "facts": facts, **end, **more}


PROBE = {"p": 0.5, "decided_in": "float32"}
LINES = [
    _batch([{"kind": "screened", "token_ids": [1, 2]}], {"screens": 2}, seconds=0.0),
    _batch(
        [
            {
                "kind": "verified",
                "text": '"decided_in": "done": ]',
                "probes": {"a": PROBE, "b": PROBE},
            }
        ],
        {"forwards": 1},
    ),
    _batch([{"kind": "verified", "probes": {"a": PROBE}}], {"gradients": 3}),
    _batch([{"kind": "sampled"}], {"drawn": 50, "continuations": 5}),
    _batch([{"kind": "entry"}], {"drawn": 70}),
    _batch([{"kind": "entry"}], {"evaluations": 6}),
    {"kind": "gates", "at": 9000, "gates": []},
    {"kind": "ended", "at": 9500, "status": "FINISHED"},
]


def test_timings_count_the_work_of_each_kind(tmp_path: Path) -> None:
    _ledger(tmp_path, "k", lines=LINES)
    found = {one.kind: (one.amount, one.seconds) for one in read_timings(tmp_path, "here")}
    assert found == {
        "screen": (2, 0.5),
        "verify": (3, 4.0),
        "gradient": (3, 0.5),
        "sample": (50 + 5 * PROMPT_TOKENS, 2.0),
        "answer": (70, 2.0),
        "score": (6, 2.0),
        "start": (1, 4.5),
    }
    one = read_timings(tmp_path, "here")[0]
    assert (one.run, one.at, one.fingerprint, one.quantization) == ("k", 1000, "this", "int8")
    assert (one.device, one.parameters) == ("cpu", 4.0)


def test_batches_are_read_as_the_ledger_writes_them(tmp_path: Path) -> None:
    token = Token(1, "a", "a", "normal", 1.0)
    probe = ProbeResult(0.5, 1, 0.0, 1, 0.0, True, "float32")
    verified = Verified(token, {"a": probe, "b": probe}, False, None)
    sampled = Sampled(token, (True,), 1.0, 0.2, 1.0, True)
    batches = [
        Batch((Screened((1, 2), (0.0, 0.0), (0.0, 0.0)),), 2, 2, 0.0, {"screens": 2}, 0.5),
        Batch((verified, Control(1, True, verified)), 2, None, 2.0, {"forwards": 2}),
        Batch((sampled,), 1, 1, 2.0, {"drawn": 50}),
    ]
    lines = [{"kind": "batch", "at": 1, "step": "a", **batch_to_json(one)} for one in batches]
    _ledger(tmp_path, "k", lines=lines)
    found = {one.kind: one.amount for one in read_timings(tmp_path, "here")}
    assert found == {"screen": 2, "verify": 4, "sample": 50}


def test_steps_in_the_store_count_for_the_run_that_measured_them(tmp_path: Path) -> None:
    uses = {"kind": "uses", "at": 5000, "step": "a", "key": "s", "attempt": 1, "extent": None}
    stored = tmp_path / "steps" / "s" / "attempt-1"
    stored.mkdir(parents=True)
    text = json.dumps(LINES[0], separators=(",", ":")) + "\n"
    (stored / "ledger.jsonl").write_text(text)
    _ledger(tmp_path, "measured", lines=[{**uses, "reused": False}])
    _ledger(tmp_path, "reused", lines=[{**uses, "reused": True}, *LINES[-2:]])
    found = read_timings(tmp_path, "here")
    assert [(one.run, one.kind, one.amount) for one in found] == [("measured", "screen", 2)]


def test_interrupted_run_has_timings_and_other_machines_have_none(tmp_path: Path) -> None:
    _ledger(tmp_path, "interrupted", lines=LINES[:2])
    _ledger(tmp_path, "elsewhere", host="there", lines=LINES)
    found = read_timings(tmp_path, "here")
    assert {(one.run, one.kind) for one in found} == {
        ("interrupted", "screen"),
        ("interrupted", "verify"),
    }


def test_damaged_ledger_is_skipped(tmp_path: Path) -> None:
    _ledger(tmp_path, "good", lines=LINES)
    damaged = _ledger(tmp_path, "damaged", lines=LINES)
    damaged.write_text(damaged.read_text().replace('"seconds":2.0', '"seconds":"long"'))
    (tmp_path / "runs" / "x" / "empty" / "attempt-1").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "empty" / "attempt-1" / "ledger.jsonl").write_text("not JSON")
    assert {one.run for one in read_timings(tmp_path, "here")} == {"good"}
    assert read_timings(tmp_path / "none", "here") == []
