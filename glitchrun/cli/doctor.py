"""`glitchrun doctor`: checks the machine, and names the command that adds what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import click

from glitchrun.checkpoint.cache_folder import (
    CONVERSIONS,
    cache_folder,
    remove_conversions,
    size_of,
)
from glitchrun.cli.environment_checks import CheckResult, run_checks
from glitchrun.errors import ExitCode, UsageError
from glitchrun.ledger import ROOT
from glitchrun.report.formatting import size
from glitchrun.terminal import emit_json, say

_MARKS = {"ok": "ok", "note": "note", "missing": "MISSING"}


@click.command("doctor")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--clear-cache", is_flag=True, help="Remove converted models and kept int8 and int4 weights."
)
@click.option("--yes", is_flag=True, help="Remove them without confirmation.")
@click.pass_context
def command(context: click.Context, output: str, clear_cache: bool, yes: bool) -> None:
    """Checks versions, devices, memory, disk, the model cache and the MLflow store.

    Exits with 4 if something is missing that a run needs, and names the command that adds it.
    """
    if clear_cache:
        _clear(asking=not yes)
        return
    results = list(run_checks(ROOT))
    missing = [result for result in results if result.status == "missing"]
    code = ExitCode.PREFLIGHT if missing else ExitCode.DONE
    if output == "json":
        found = [result.to_json() for result in results]
        emit_json({"findings": found, "exit_code": int(code)})
    else:
        say("\n".join([*_lines(results), "", _verdict(missing)]))
    context.exit(int(code))


def _clear(*, asking: bool) -> None:
    folder = cache_folder()
    held = sum(size_of(folder / name) for name in CONVERSIONS)
    if not held:
        say(f"{folder} contains no converted models")
        return
    question = f"remove {size(held)} of converted models from {folder}?"
    if asking and not click.confirm(question):
        raise UsageError("nothing was removed; --yes removes without confirmation")
    say(f"removed {size(remove_conversions(folder))} from {folder}")


def _lines(results: Sequence[CheckResult]) -> list[str]:
    width = max(len(result.check) for result in results)
    lines = []
    for result in results:
        lines.append(f"{_MARKS[result.status]:<8}{result.check:<{width}}  {result.detail}")
        if result.remedy:
            lines.append(f"{'':<8}{'':<{width}}  -> {result.remedy}")
    return lines


def _verdict(missing: Sequence[CheckResult]) -> str:
    if not missing:
        return "all requirements met"
    remedies = dict.fromkeys(result.remedy for result in missing if result.remedy)
    return f"{len(missing)} missing; run:\n" + "\n".join(f"  {remedy}" for remedy in remedies)
