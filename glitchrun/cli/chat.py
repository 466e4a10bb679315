"""`glitchrun chat`: a conversation with the model of a spec."""

from __future__ import annotations

import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from glitchrun.errors import DoesNotFit, ExitCode, PreflightError, UsageError, require
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.semantics import LEAST_TEMPERATURE
from glitchrun.spec.types import Experiment
from glitchrun.terminal import emit, say

if TYPE_CHECKING:
    from glitchrun.chat.conversation import ChatSession
    from glitchrun.plan.build import PlannedRun


@click.command("chat")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="K=V", help="Override a value of the spec.")
@click.option("--only", metavar="NAME", help="Chat with the matrix cell of this name.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 1000),
    default=0.7,
    show_default=True,
    help="Sampling temperature; 0 is greedy.",
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1, 1_000_000), default=256, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Default: the spec's seed.")
@click.pass_context
def command(
    context: click.Context,
    spec: Path,
    sets: tuple[str, ...],
    only: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int | None,
) -> None:
    """Chats with the model of SPEC in its template. /help lists the commands.

    The model is loaded once. If standard input is not a terminal, each of its lines is a message
    or a command, and only answers are written to standard output.
    """
    if not (temperature == 0 or temperature >= LEAST_TEMPERATURE):
        raise UsageError(f"--temperature must be 0 or at least {LEAST_TEMPERATURE}: {temperature}")
    if not top_p > 0:
        raise UsageError(f"--top-p must be above 0: {top_p}")
    experiment = load_experiment(spec, sets, require_env=True)
    require("torch", "transformers")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see `apply`
    from glitchrun.chat.conversation import ChatSettings
    from glitchrun.chat.loop import run_chat
    from glitchrun.probing.token_choice import SamplingParams

    run = _run(experiment, only)
    settings = ChatSettings(
        SamplingParams(temperature, top_p),
        max_new_tokens,
        run.cell.spec.seed if seed is None else seed,
    )
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    session = _session(run, settings)
    keys = _Keys(session)
    with _signals_to(keys):
        try:
            run_chat(session, _reader(keys, terminal), _Screen(terminal), interactive=terminal)
        except _Quit as quitting:
            context.exit(int(quitting.exit_code))


def _run(experiment: Experiment, only: str | None) -> PlannedRun:
    """The cell to chat with.

    Raises:
        PreflightError: its model is to be streamed, or does not fit into memory.
    """
    from glitchrun.plan.build import build

    names = [cell.name for cell in experiment.cells]
    if only is None and len(names) > 1:
        raise UsageError(f"this spec has {len(names)} cells; choose one with --only: {names}")
    if only is not None and only not in names:
        raise UsageError(f"--only {only!r} names no run of this spec; it has: {names}")
    runs = build(experiment, lambda key: None).runs
    run = next(run for run in runs if only is None or run.cell.name == only)
    if run.cell.spec.model.residency == "streamed":
        raise PreflightError(
            "model.residency: streamed: a chat would read the whole model for every token; use "
            "--set model.residency=resident"
        )
    if run.action == "blocked":
        raise DoesNotFit(f"{run.cell.name}: {run.reason}")
    if run.residency is not None and run.residency.chosen == "streamed":
        raise DoesNotFit(f"{run.cell.name}: {run.residency.reason}, and a chat cannot stream it")
    return run


def _session(run: PlannedRun, settings: object) -> ChatSession:
    from glitchrun.chat.conversation import ChatSession
    from glitchrun.probing.backend_selection import generic_backend
    from glitchrun.prompts.detect import detect
    from glitchrun.runner.models import Models

    spec = run.cell.spec
    model = Models(_note).get(spec.model)
    template = detect(
        spec.template, model.tokenizer, model.config, spec.model.path, spec.template_variables
    )
    _note(f"template: {template.name} ({template.rule})")
    system = spec.system
    if system and not template.carries_system:
        _note(f"the template {template.name} cannot carry the spec's system text: it is left out")
        system = None
    return ChatSession(generic_backend(model), template, settings, system)  # type: ignore[arg-type]


def _note(line: str) -> None:
    say(line, err=True)


class _Screen:
    """Writes answers to standard output. On a terminal, control characters are escaped."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal

    def text(self, text: str) -> None:
        emit(_harmless(text) if self._terminal else text)

    def line(self, line: str) -> None:
        emit((_harmless(line) if self._terminal else line) + "\n")

    def note(self, line: str) -> None:
        _note(f"({line})")


def _harmless(text: str) -> str:
    """`text` without escape sequences that control the terminal or reverse its text. Joiners stay:
    emoji and some scripts need them."""
    return "".join(f"⟨U+{ord(one):04X}⟩" if _is_harmful(one) else one for one in text)


def _is_harmful(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Zl", "Zp"):
        return character not in "\n\t"
    return unicodedata.category(character) == "Cf" and unicodedata.bidirectional(character) != "BN"


class _Quit(BaseException):
    """A signal ended the chat. A BaseException, so that no library suppresses it."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__("quit")
        self.exit_code = exit_code


class _Keys:
    """Handles Ctrl-C: the first one ends the current answer, the second one the chat."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._pressed = False
        self.reading = False
        """Whether a line is being read: only then does a first Ctrl-C raise KeyboardInterrupt."""
        self.missed = False
        """Whether Ctrl-C came between the end of an answer and reading the next line."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if number == signal.SIGTERM:
            raise _Quit(ExitCode.SIGTERM)
        if self._pressed:
            raise _Quit(ExitCode.SIGINT)
        self._pressed = True
        if self.reading:
            raise KeyboardInterrupt
        if self._session.generating:
            self._session.stop()
        else:
            self.missed = True

    def forget(self) -> None:
        """Treats the next Ctrl-C as a first one, after a line was read."""
        self._pressed = False


@contextmanager
def _signals_to(keys: _Keys) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, keys.receive) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _reader(keys: _Keys, terminal: bool) -> Callable[[], str | None]:
    """A function that returns the next line, and None at the end of input."""
    if terminal and find_spec("readline"):
        import_module("readline")  # importing it adds line editing and history

    def read() -> str | None:
        while True:
            try:
                keys.reading = True
                if keys.missed:
                    raise KeyboardInterrupt
                line = input("> ") if terminal else sys.stdin.readline()
            except EOFError:
                say()
                return None
            except KeyboardInterrupt:
                keys.missed = False
                _note("(press Ctrl-C again, or type /exit, to quit)")
                continue
            finally:
                keys.reading = False
            keys.forget()
            return line.rstrip("\r\n") if terminal or line else None

    return read
