"""A conversation on one loaded model: turns, memory, commands, and the command itself."""

from __future__ import annotations

import gc
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from glitchrun.chat.conversation import ChatSession, ChatSettings, Detokenizer
from glitchrun.chat.loop import COMMANDS, run_chat
from glitchrun.cli import main
from glitchrun.errors import UsageError
from glitchrun.plan import residency
from glitchrun.plan.residency import Residency
from glitchrun.probing.backend import Backend
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.strategies.context import Context
from tests.support.commands import Command
from tests.support.engine import context, one_at_a_time
from tests.support.oracle import FOLDER

LENGTH = 12


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Context:
    return context(llama_folder)


def begin(
    llama: Context, *, seed: int = 1, system: str | None = None, **sampling: Any
) -> ChatSession:
    settings = ChatSettings(SamplingParams(**sampling), LENGTH, seed)
    return ChatSession(Backend(llama.backend.model), llama.template, settings, system)


def say(session: ChatSession, *texts: str) -> list[str]:
    return ["".join(session.ask(text)) for text in texts]


class RecordedOutput:
    """Records what a user would have read."""

    def __init__(self) -> None:
        self.output = ""
        self.notes: list[str] = []

    def text(self, text: str) -> None:
        self.output += text

    def line(self, line: str) -> None:
        self.output += line + "\n"

    def note(self, line: str) -> None:
        self.notes.append(line)


def typed(session: ChatSession, *lines: str, interactive: bool = True) -> RecordedOutput:
    waiting: Iterator[str | None] = iter([*lines, None])
    display = RecordedOutput()
    run_chat(session, lambda: next(waiting), display, interactive=interactive)
    return display


def test_answers_repeat_by_their_seed(llama: Context) -> None:
    first = say(begin(llama), "hello", "again")
    assert first == say(begin(llama), "hello", "again")
    assert first != say(begin(llama, seed=2), "hello", "again")
    session = begin(llama)
    say(session, "something else")
    session.reset()
    assert say(session, "hello", "again") == first


def test_greedy_answers_equal_those_without_a_cache(llama: Context) -> None:
    """The cache changes nothing, over three turns."""
    session = begin(llama, temperature=0)
    say(session, "hello", "again", "and again")
    ids: list[int] = []
    for turn in session.turns:
        ids += turn.asked_ids
        for token_id in turn.answer_ids:
            assert int(one_at_a_time(llama, ids).argmax()) == token_id
            ids.append(token_id)
    assert session.length == len(ids)


def test_every_id_is_run_once(llama: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    step = Backend.step

    def counted(self: Backend, ids: torch.Tensor, cache: Any, **options: Any) -> Any:
        ran.extend(ids[0].tolist())
        return step(self, ids, cache, **options)

    monkeypatch.setattr(Backend, "step", counted)
    session = begin(llama)
    say(session, "hello", "again", "and again")
    session.next_tokens(3)
    said = [one for turn in session.turns for one in (*turn.asked_ids, *turn.answer_ids)]
    assert ran == said


def tensor_bytes() -> int:
    """Bytes of every tensor alive."""
    gc.collect()
    # By type: isinstance would ask lazy modules for what they warn about.
    alive = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    stores = [tensor.untyped_storage() for tensor in alive]
    return sum({store.data_ptr(): store.nbytes() for store in stores}.values())


def test_memory_is_flat_after_twenty_turns_and_a_reset(llama: Context) -> None:
    session = begin(llama)
    session.positions = None  # twenty turns need more than its 512
    say(session, "hello")
    session.reset()
    before = tensor_bytes()
    say(session, *(f"question {number}" for number in range(20)))
    assert len(session.turns) == 20
    text = llama.backend.model.config
    a_position = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    grown = tensor_bytes() - before
    # A conversation needs memory for its own keys and values and one row of logits.
    assert 0 < grown <= session.length * a_position + 2 * llama.backend.model.vocab_size * 4
    session.reset()
    assert tensor_bytes() == before


def test_a_conversation_continues_after_an_interrupted_pass(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, whole = begin(llama, temperature=0), begin(llama, temperature=0)
    say(session, "hello")
    step = Backend.step

    def broken(self: Backend, *args: Any, **options: Any) -> Any:
        step(self, *args, **options)  # the cache has been appended to
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Backend, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            session.next_tokens(3, "and now?")
    assert say(session, "again") == say(whole, "hello", "again")[1:]


def test_the_next_token_table_shows_the_models_probabilities(llama: Context) -> None:
    session = begin(llama)
    say(session, "hello")
    turn = session.turns[0]
    p = one_at_a_time(llama, [*turn.asked_ids, *turn.answer_ids]).softmax(dim=-1)
    rows = session.next_tokens(5)
    assert [row.token_id for row in rows] == p.topk(5).indices.tolist()
    assert [row.p for row in rows] == pytest.approx(p.topk(5).values.tolist(), rel=1e-4)
    length, answer = session.length, say(begin(llama), "hello", "again")[1]
    assert session.next_tokens(5, "again") != rows
    assert session.length == length  # looking ahead asks nothing
    assert say(session, "again") == [answer]


def test_looking_ahead_before_the_first_question(llama: Context) -> None:
    session = begin(llama, temperature=0)
    (row,) = session.next_tokens(1, "hello")
    say(session, "hello")
    assert session.turns[0].answer_ids[0] == row.token_id
    with pytest.raises(UsageError, match="nothing has been said"):
        begin(llama).next_tokens(1)


def test_an_answer_ends_with_the_models_end_id(
    llama: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(llama, temperature=0)
    say(session, "hello")
    third = session.turns[0].answer_ids[2]
    monkeypatch.setattr(session, "_stop_ids", frozenset({third}))
    session.reset()
    say(session, "hello")
    cut = session.turns[0]
    assert (cut.ended, third not in cut.answer_ids) == ("end", True)


def test_a_note_says_what_cut_an_answer(llama: Context) -> None:
    session = begin(llama)
    display = typed(session, "hello")
    assert session.turns[0].ended == "length"
    assert display.notes == [f"cut after {LENGTH} tokens; --max-new-tokens allows more"]
    for _ in session.ask("again"):
        session.stop()
    assert (session.turns[1].ended, len(session.turns[1].answer_ids)) == ("stopped", 1)
    assert "[stopped]" in typed(session, "/history").output


def test_the_models_positions_bound_a_conversation(llama: Context) -> None:
    session = begin(llama)
    say(session, "hello")
    session.positions = session.length + 40
    with pytest.raises(UsageError, match="/reset starts a new conversation"):
        say(session, "hello " * 50)
    session.positions = session.length + len(session._render("x")) + 3
    display = typed(session, "x")
    assert session.turns[-1].ended == "context"
    assert session.length == session.positions
    assert "positions are used up" in display.notes[0]
    assert "leave no room" in typed(session, "x").notes[0]


def test_a_system_text_is_carried_or_refused(llama: Context) -> None:
    session = begin(llama, system="Be brief.")
    say(session, "hello")
    assert "Be brief." in llama.backend.model.tokenizer.decode(session.turns[0].asked_ids)
    display = typed(session, "/system", "/system Be long.", "/system", "/system -", "/system")
    assert display.output == "Be brief.\nBe long.\nno system text\n"
    assert session.turns == []
    nowllm = context(Path(llama.spec.model.path), template="nowllm")
    silent = begin(nowllm)
    assert "cannot carry a system text" in typed(silent, "/system Be brief.").notes[0]


def test_commands_show_ids_history_and_help(llama: Context) -> None:
    session = begin(llama)
    display = typed(session, "say <#300>", "/ids", "/history", "/next 2", "/help", "/exit", "never")
    assert len(session.turns) == 1
    assert "     300  " in display.output
    assert "user: say <#300>\nassistant: " in display.output
    assert "rank        id  probability  token\n   1 " in display.output
    assert all(command.usage in display.output for command in COMMANDS.values())


def test_a_double_slash_begins_a_text_with_a_slash(llama: Context) -> None:
    session = begin(llama)
    typed(session, "//etc is a folder")
    assert session.turns[0].user == "/etc is a folder"


@pytest.mark.parametrize("line", ["/frob", "/next 0", "/ids", "/next", "say <#99999>"])
def test_wrong_lines_are_noted_or_end_a_script(llama: Context, line: str) -> None:
    display = typed(begin(llama), line)
    assert len(display.notes) == 1
    assert not display.output
    with pytest.raises(UsageError):
        typed(begin(llama), line, interactive=False)


@pytest.mark.parametrize(
    "text", ["plain words", " with space ", "東京 and Москва", "Straße\n\nnew", "half \ufffd"]
)
def test_streamed_pieces_are_the_text(llama: Context, text: str) -> None:
    tokenizer = llama.backend.model.tokenizer
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = [detokenizer.push(one) for one in ids] + [detokenizer.end()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces[:-1]) or "\ufffd" in text


def test_a_partial_character_is_held_back_and_shown_at_the_end(llama: Context) -> None:
    tokenizer = llama.backend.model.tokenizer
    ids = tokenizer.encode("東", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(ids[0]) == ""
    assert detokenizer.end() == "\ufffd"


def test_a_stop_text_over_several_tokens_is_never_shown(llama: Context) -> None:
    tokenizer = llama.backend.model.tokenizer
    detokenizer = Detokenizer(tokenizer, "<end>")
    ids = tokenizer.encode("a <e b<end>c", add_special_tokens=False)
    said = ""
    for one in ids:
        said += detokenizer.push(one)
        if detokenizer.stopped:
            break
    assert said + detokenizer.end() == "a <e b"
    assert detokenizer.stopped


# The command itself, with standard input a pipe and a terminal.


@pytest.fixture
def spec(tmp_path: Path, llama_folder: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(
        "apiVersion: glitchrun/v1\nkind: Experiment\nmetadata: {name: chat}\n"
        f"model: {{path: {llama_folder}}}\ntemplate: chatml\nseed: 1\n"
        "steps: [{id: t, strategy: test, tokens: {ids: [40]}}]\n"
    )
    return path


def started(spec: Path, *words: str, **streams: int) -> Command[bytes]:
    command = ("chat", spec.name, *words)
    return Command(bytes, spec.parent, command, **{"stdin": subprocess.PIPE, **streams})


def piped(spec: Path, lines: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["chat", str(spec), *words], input=lines)


def test_a_piped_chat_prints_the_answers_alone(llama: Context, spec: Path) -> None:
    words = ("--set", "system=Be brief.", "--max-new-tokens", str(LENGTH))
    done = piped(spec, "hello\n\nagain\n/reset\nhello\n", *words)
    hello, again = say(begin(llama, system="Be brief."), "hello", "again")
    assert done.stdout == f"{hello}\n{again}\n{hello}\n"
    assert done.exit_code == 0
    assert done.stderr.count("loading ") == 1
    assert done.stderr.count("cut after") == 3


def test_options_set_how_answers_are_sampled(llama: Context, spec: Path) -> None:
    words = ("--seed", "2", "--max-new-tokens", str(LENGTH), "--temperature", "0.5")
    (other,) = say(begin(llama, seed=2, temperature=0.5), "hello")
    assert piped(spec, "hello\n", *words).stdout == f"{other}\n"


def test_a_wrong_piped_command_ends_with_two(spec: Path) -> None:
    # The template is detected by the folder's name; named in the spec, it would be refused because
    # of the system text.
    found = ("--set", f"model.path={FOLDER}", "--set", "template=auto", "--set", "system=x")
    done = piped(spec, "/frob\nhello\n", *found)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no /frob" in done.stderr
    assert "cannot carry the spec's system text: it is left out" in done.stderr


def test_one_cell_of_a_matrix_is_chosen_by_name(spec: Path) -> None:
    spec.write_text(spec.read_text() + "matrix: {axes: {seed: [1, 2]}}\n")
    assert piped(spec, "").exit_code == 2
    assert piped(spec, "", "--only", "frob").exit_code == 2
    assert piped(spec, "", "--only", "seed=2").exit_code == 0


def test_a_streamed_model_is_refused(spec: Path) -> None:
    done = piped(spec, "hello\n", "--set", "model.residency=streamed")
    assert done.exit_code == 4
    assert "use --set model.residency=resident" in done.stderr


def test_a_model_that_only_fits_if_streamed_is_refused(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def streamed(*args: Any) -> Residency:
        return replace(residency.choose(*args), chosen="streamed", reason="it does not fit")

    monkeypatch.setattr("glitchrun.plan.build.choose", streamed)
    done = piped(spec, "hello\n")
    assert done.exit_code == 4
    assert "it does not fit, and a chat cannot stream it" in done.stderr


def until(process: Command[bytes], mark: bytes) -> None:
    """Reads notes up to one that contains `mark`."""
    assert process.stderr
    said = b""
    while mark not in said:
        line = process.stderr.readline()
        assert line, said.decode()
        said += line


def answer_stopped(spec: Path) -> Command[bytes] | None:
    """A chat whose first answer Ctrl-C ended, or None if the answer ended first."""
    # With greedy sampling this model never ends an answer, which takes all of its positions.
    words = ("--max-new-tokens", "100000", "--temperature", "0", "--set", "template=raw")
    process = started(spec, *words)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)  # an answer has begun
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if b"(stopped)" in line:
            return process
        if b"(cut" in line or b"Ctrl-C again" in line:
            break
    process.kill()
    process.communicate()
    return None


def test_ctrl_c_once_ends_an_answer_and_twice_leaves(spec: Path) -> None:
    process = next(found for _ in range(5) if (found := answer_stopped(spec)))
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"/history\n")
    process.stdin.flush()
    while b"user: hello" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    until(process, b"Ctrl-C again")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def read_terminal(main: int, mark: bytes) -> bytes:
    """Returns what a terminal shows up to `mark`, or all the rest if it is empty."""
    said = b""
    while not mark or mark not in said:
        assert select.select([main], [], [], 120)[0], said
        try:
            said += os.read(main, 4096)
        except OSError:  # Linux: the other side has closed
            return said
    return said


def wait_until_asleep(pid: int) -> None:
    """Waits until a process that has printed its prompt also waits for a line.

    CPython handles a signal that arrives between the two only after the line.
    """
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.01)


def test_a_terminal_has_a_prompt_and_ctrl_d_leaves(spec: Path) -> None:
    main, side = pty.openpty()
    process = started(spec, "--max-new-tokens", "3", stdin=side, stdout=side, stderr=side)
    try:
        os.close(side)
        said = b""
        for line in (b"/frob\n", b"/help\n", b"\x04"):
            said += read_terminal(main, b"> ")
            if line == b"\x04":
                wait_until_asleep(process.pid)
                process.send_signal(signal.SIGINT)
                said += read_terminal(main, b"> ")
            os.write(main, line)
        said += read_terminal(main, b"")
        assert process.wait(60) == 0
    finally:  # otherwise the process would wait for a line forever
        process.kill()
        process.wait()
        os.close(main)
    assert b"there is no /frob" in said
    assert b"Ctrl-D leaves" in said
    assert b"Ctrl-C again, or type /exit" in said
