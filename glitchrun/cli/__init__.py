"""The command `glitchrun`: arguments in, exit code out.

Subcommands are imported when they are called, so that `--help` and `validate` start fast and work
without torch, transformers and mlflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from glitchrun import __version__
from glitchrun.boundary import OUT_OF_MEMORY, is_out_of_memory
from glitchrun.errors import ExitCode, GlitchrunError, file_access
from glitchrun.spec.problems import InvalidSpec
from glitchrun.terminal import output_lost, protect_streams, say, visible_lines

COMMANDS = {
    "init": "Write a new spec that validates.",
    "validate": "Check spec files and folders.",
    "plan": "Show what apply would do, and what it needs.",
    "apply": "Execute a spec: start, resume or skip its runs.",
    "diff": "Show what changed in a spec since a run.",
    "status": "List runs with their progress.",
    "report": "Write the report of a run.",
    "chat": "Chat with the model of a spec.",
    "explain": "Show the items behind a metric of a run.",
    "compare": "Compare runs and imported results.",
    "export": "Write the tokens of a run for other programs.",
    "import": "Import results of other tools, and lists.",
    "list": "List strategies, searches, templates or probes.",
    "schema": "Print the JSON Schema of a spec.",
    "sync": "Deliver runs to MLflow that it does not have.",
    "tag": "Set or remove tags of a run, also in MLflow.",
    "rm": "Remove a run, also in MLflow.",
    "gc": "Remove measured steps that no run refers to.",
    "ui": "Open the MLflow UI, on this machine only.",
    "doctor": "Check that this machine has what a run needs.",
}
"""The commands, and the line about each that `glitchrun --help` shows. A command is `command` in
the module of its name."""
_MODULES = {"import": "import_", "list": "list_"}
"""Modules that cannot have the name of their command."""


class LazyGroup(click.Group):
    """A command group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"glitchrun.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command line on protected streams. A reader that stops reading does not change the
        exit code.

        Raises:
            SystemExit: always, with the exit code.
        """
        protect_streams()
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            if end.code in (None, 0) and (lost := output_lost()) is not None:
                say(f"glitchrun: standard output is incomplete: {lost.strerror}", err=True)
                raise SystemExit(int(ExitCode.ERROR)) from lost
            raise

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command. Turns a GlitchrunError, and an OSError about a file, into a message and
        an exit code."""
        try:
            with file_access("a file", "the command cannot continue"):
                return self._invoke(ctx)
        except GlitchrunError as error:
            say(f"glitchrun: {error}", err=True)
            ctx.exit(error.exit_code)
        except click.ClickException as error:
            error.message = visible_lines(error.message)  # type: ignore[misc]
            raise
        except KeyboardInterrupt:
            say("glitchrun: stopped", err=True)
            ctx.exit(ExitCode.SIGINT)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            say(f"glitchrun: {OUT_OF_MEMORY}", err=True)
            ctx.exit(ExitCode.ERROR)

    def _invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except InvalidSpec as error:
            from glitchrun.spec.problem_formats import as_text

            say(as_text(error.problems), err=True)
            ctx.exit(error.exit_code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glitchrun")
def main() -> None:
    """Declarative experiments on glitch tokens in language models."""
