"""What a spec resolves to on its model, and the kept answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glitchrun.plan.build import Plan, build
from glitchrun.runner import resolved_cache
from glitchrun.runner.resolved import Resolver
from glitchrun.runner.resolved_cache import Answers
from glitchrun.spec.experiment_loading import load_experiment
from tests.support.oracle import FOLDER

SPEC = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: resolved}
model: {path: ORACLE, device: cpu}
steps:
  - {id: all, strategy: scan}
  - {id: some, strategy: mine, search: range, ranges: [[300, 319], [310, 329]], sample_size: 15}
  - {id: asr, strategy: validate, tokens: {from: all}, attempts: 2}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLITCHRUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resolved"


def _planned(folder: Path, *sets: str, resolver: Resolver | None = None) -> Plan:
    path = folder / "spec.yaml"
    path.write_text(SPEC.replace("ORACLE", str(FOLDER)))
    spec = load_experiment(path, sets)
    return build(spec, lambda key: None, fetch=False, resolve=resolver or Resolver())


def _no_tokenizer(*arguments: Any) -> Any:
    raise AssertionError("the tokenizer was loaded")


def test_plan_counts_the_tokens_in_scope(tmp_path: Path, cache: Path) -> None:
    (run,) = _planned(tmp_path).runs
    # 459 normal tokens; 20 in each range, of which 15 are drawn, and 30 in both together.
    assert [work.tokens for work in run.work] == [459, 30, 459]
    (run,) = _planned(tmp_path, "tokens.exclude=['^[a-z]']").runs
    assert run.work[0].tokens is not None
    assert 0 < run.work[0].tokens < 459


def test_plan_with_kept_answers_is_the_same_and_loads_no_tokenizer(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("tokens.exclude=[z]",)
    first = _planned(tmp_path, *sets).runs[0]
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(Resolver, "tokenizer", _no_tokenizer)
    again = _planned(tmp_path, *sets).runs[0]
    assert (again.key, again.digests, again.work) == (first.key, first.digests, first.work)
    # Neither a seed nor the attempts change what the tokenizer answers.
    _planned(tmp_path, *sets, "seed=7", "steps[2].attempts=3")
    with pytest.raises(AssertionError, match="the tokenizer was loaded"):
        _planned(tmp_path, "tokens.exclude=[y]")


def test_refusal_is_found_again(tmp_path: Path, cache: Path) -> None:
    for _ in range(2):
        (run,) = _planned(tmp_path, "tokens.categories=[unused]").runs
        assert run.action == "blocked"
        assert "nothing is in scope" in run.reason


@pytest.mark.parametrize(
    ("phrases", "reason"),
    [
        ("{texts: [hello there, a]}", "texts[1]: no other tokenization of this text is known"),
        ("{texts: [hello there, a], limit: 1}", ""),
    ],
)
def test_phrase_that_cannot_be_examined_is_refused_before_the_model_is_loaded(
    phrases: str, reason: str, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "spec.yaml"
    head = SPEC.partition("steps:")[0].replace("ORACLE", str(FOLDER))
    path.write_text(f"{head}steps: [{{strategy: test, tokens: {{phrases: {phrases}}}}}]\n")
    (run,) = build(load_experiment(path), lambda key: None, resolve=Resolver()).runs
    assert run.action == ("blocked" if reason else "start")
    assert reason in run.reason
    assert not reason or run.reason.startswith(f"{path}:5:")


# Answers


def _asked(answer: Any) -> tuple[list[int], Callable[[], Any]]:
    asked: list[int] = []

    def ask() -> Any:
        asked.append(1)
        return answer

    return asked, ask


@pytest.mark.parametrize("answer", [None, [1, 2], {"a": [None, "é"]}])
def test_answer_is_kept_for_its_question_and_settings(cache: Path, answer: Any) -> None:
    asked, ask = _asked(answer)
    for _ in range(2):
        assert Answers("model").get("what", {"b": 1}, ask) == answer
    assert len(asked) == 1
    Answers("model").get("what", {"b": 2}, ask)
    Answers("model").get("else", {"b": 1}, ask)
    Answers("other").get("what", {"b": 1}, ask)
    assert len(asked) == 4


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"sum": 1, "answers": 2}',
        '{"sum": "", "answers": {"what": 3}}',
        "\ud800",
        "[" * 10**5,
    ],
)
def test_file_that_is_not_as_it_was_written_is_ignored(cache: Path, content: str) -> None:
    asked, ask = _asked(5)
    Answers("model").get("what", None, ask)
    (path,) = cache.iterdir()
    path.write_bytes(content.encode(errors="surrogatepass"))
    assert Answers("model").get("what", None, ask) == 5
    assert len(asked) == 2
    assert json.loads(path.read_text())["answers"]


def test_answers_of_another_state_of_the_program_are_ignored(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = _asked(5)
    Answers("model").get("what", None, ask)
    monkeypatch.setattr(resolved_cache, "_program", lambda: ["another version"])
    Answers("model").get("what", None, ask)
    assert len(asked) == 2


def test_nothing_is_kept_without_a_fingerprint_or_where_it_cannot_be_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = _asked(5)
    Answers(None).get("what", None, ask)
    assert not cache.exists()
    cache.parent.mkdir()
    cache.write_text("a file in place of the folder")
    assert Answers("model").get("what", None, ask) == 5
    assert len(asked) == 2


def test_what_is_raised_is_not_kept(cache: Path) -> None:
    def fails() -> Any:
        raise ValueError("slow")

    answers = Answers("model")
    with pytest.raises(ValueError, match="slow"):
        answers.get("what", None, fails)
    assert answers.get("what", None, lambda: 1) == 1
