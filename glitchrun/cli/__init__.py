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

# Name: (`module:attribute`, the line that `glitchrun --help` shows).
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("glitchrun.cli.init:command", "Write a new spec that validates."),
    "validate": ("glitchrun.cli.validate:command", "Check spec files and folders."),
    "plan": ("glitchrun.cli.plan:command", "Show what apply would do, and what it needs."),
    "apply": ("glitchrun.cli.apply:command", "Execute a spec: start, resume or skip its runs."),
    "diff": ("glitchrun.cli.diff:command", "Show what changed in a spec since a run."),
    "status": ("glitchrun.cli.status:command", "List runs with their progress."),
    "report": ("glitchrun.cli.report:command", "Write the report of a run."),
    "chat": ("glitchrun.cli.chat:command", "Chat with the model of a spec."),
    "explain": ("glitchrun.cli.explain:command", "Show the items behind a metric of a run."),
    "compare": (
        "glitchrun.cli.compare:command",
        "Compare runs and imported results.",
    ),
    "export": (
        "glitchrun.cli.export:command",
        "Write the tokens of a run for other programs.",
    ),
    "import": (
        "glitchrun.cli.import_:command",
        "Import results of other tools, and lists.",
    ),
    "list": (
        "glitchrun.cli.list_:command",
        "List strategies, searches, templates or probes.",
    ),
    "schema": ("glitchrun.cli.schema:command", "Print the JSON Schema of a spec."),
    "sync": ("glitchrun.cli.sync:command", "Deliver runs to MLflow that it does not have."),
    "tag": ("glitchrun.cli.tag:command", "Set or remove tags of a run, also in MLflow."),
    "rm": ("glitchrun.cli.rm:command", "Remove a run, also in MLflow."),
    "gc": ("glitchrun.cli.gc:command", "Remove measured steps that no run refers to."),
    "ui": ("glitchrun.cli.ui:command", "Open the MLflow UI, on this machine only."),
    "doctor": ("glitchrun.cli.doctor:command", "Check that this machine has what a run needs."),
}


class LazyGroup(click.Group):
    """A command group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

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
                return super().invoke(ctx)
        except InvalidSpec as error:
            from glitchrun.spec.problem_formats import as_text

            say(as_text(error.problems), err=True)
            ctx.exit(error.exit_code)
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


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glitchrun")
def main() -> None:
    """Declarative experiments on glitch tokens in language models."""
