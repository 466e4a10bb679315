"""Chat templates that never end, or take all the memory there is."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from glitchrun.errors import ExitCode, PreflightError
from glitchrun.prompts import bounded_process as module
from glitchrun.prompts import chat_template
from glitchrun.prompts.bounded_process import WorkFailed, run_bounded
from glitchrun.prompts.chat_template import fault, write
from glitchrun.prompts.template import Conversation
from tests.support.real_tokenizers import with_chat_template
from tests.support.tiny_models import bpe_tokenizer

ASK = Conversation(user="hello")
BODY = "{{ messages[0]['content'] }}"
HOSTILE = {
    "a long string": "{{ 'a' * 10**10 }}",
    "a string that doubles": (
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}"
        "{% endfor %}{{ n.s|length }}"
    ),
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a power of a power": "{{ 9**(9**9) }}",
    "a list": "{{ (([0] * 10**5) * 10**5)|length }}",
    "a join": "{{ range(99999)|join('a' * 10**5) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a padding": "{{ 'a'.center(10**10) }}",
    "recursion": "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
    "much text": "{% for i in range(2000) %}{{ 'a' * 10**5 }}{% endfor %}",
    "a sum of lists": (
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}"
        "{% endfor %}"
    ),
    "an index": "{{ messages[7].content.text }}",
    "a wrong type": "{{ 1 + 'a' }}",
    "a division": "{{ 1 // 0 }}",
    "its own refusal": "{{ raise_exception('no such role') }}",
    "its own syntax": "{% for %}",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = bpe_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_SECONDS", 1)
    monkeypatch.setattr(chat_template, "run_bounded", run_bounded)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the processes forked so far; other tests may have children of their own."""
    children: list[int] = []
    fork = os.fork

    def record() -> int:
        child = fork()
        children.append(child)
        return child

    monkeypatch.setattr(os, "fork", record)
    return children


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_template_is_refused_and_named(
    what: str, tokenizer: PreTrainedTokenizerFast, forked: list[int]
) -> None:
    bad = with_chat_template(tokenizer, HOSTILE[what] + BODY)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(PreflightError, match="chat template fails") as caught:
        write(bad, ASK)
    assert caught.value.exit_code == ExitCode.PREFLIGHT
    assert "glitchrun list templates" in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 3
    assert fault(bad) is not None
    assert len(forked) == 2
    for child in forked:
        with pytest.raises(ChildProcessError):  # it was waited for
            os.waitpid(child, os.WNOHANG)


def test_a_hostile_template_takes_little_memory(tokenizer: PreTrainedTokenizerFast) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what in ("a long string", "a string that doubles", "a sum of lists"):
        with pytest.raises(PreflightError, match="512 MiB"):
            write(with_chat_template(tokenizer, HOSTILE[what] + BODY), ASK)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest, in KiB
    assert children < before + 600 * 1024


def test_a_template_renders_as_transformers_renders_it(tokenizer: PreTrainedTokenizerFast) -> None:
    text = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index0 > 5 %}{% break %}{% endif %}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ '\\ud800é' }}"
        "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ dict(b=1) }}"
    )
    own = with_chat_template(tokenizer, text)
    messages = [{"role": "user", "content": ASK.user}]
    assert write(own, ASK) == own.apply_chat_template(messages, tokenize=False)


def test_the_child_ignores_the_signal_handlers_of_this_process(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        parent = os.getpid()

        def work() -> str:
            os.kill(os.getpid(), signal.SIGINT)  # as a terminal sends it to the whole group
            os.kill(parent, signal.SIGINT)
            return f"{len(heard)}"

        assert run_bounded(work) == "0"
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_work_without_an_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WALL_SECONDS", 0.2)

    def work() -> str:
        signal.pause()
        return ""

    with pytest.raises(WorkFailed, match="not finished"):
        run_bounded(work)


def test_a_crash_of_the_child_is_reported(tmp_path: Path) -> None:
    def work() -> str:
        os.kill(os.getpid(), signal.SIGSEGV)
        return ""

    with pytest.raises(WorkFailed, match="SIGSEGV"):
        run_bounded(work)
    assert not list(tmp_path.iterdir())
