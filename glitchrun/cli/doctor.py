"""`glitchrun doctor`: what is here, what is missing, and the command that adds it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from glitchrun.checkpoint.model_cache import cache_folder, clear, size_of
from glitchrun.cli.apply import ROOT
from glitchrun.cli.surroundings import Finding, all_findings
from glitchrun.errors import ExitCode, UsageError
from glitchrun.terminal import emit_json, say

_MARKS = {"ok": "ok", "note": "note", "missing": "MISSING"}


@click.command("doctor")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--clear-cache", is_flag=True, help="Remove the models converted from GGUF files, and exit."
)
@click.option("--yes", is_flag=True, help="Remove them without confirmation.")
@click.pass_context
def command(context: click.Context, output: str, clear_cache: bool, yes: bool) -> None:
    """Checks versions, devices, memory, disk, the cache of models and the MLflow store.

    Exits 4 when something is missing that a run needs, and names the command that adds it.
    """
    if clear_cache:
        _clear(asking=not yes)
        return
    findings = list(all_findings(ROOT))
    missing = [finding for finding in findings if finding.status == "missing"]
    code = ExitCode.PREFLIGHT if missing else ExitCode.DONE
    if output == "json":
        found = [finding.to_json() for finding in findings]
        emit_json({"findings": found, "exit_code": int(code)})
    else:
        say("\n".join([*_lines(findings), "", _verdict(missing)]))
    context.exit(int(code))


def _clear(*, asking: bool) -> None:
    folder = cache_folder()
    held = size_of(folder / "gguf")
    if not held:
        say(f"{folder} holds no converted models")
        return
    question = f"remove {held / 1e6:,.0f} MB of converted models from {folder}?"
    if asking and not click.confirm(question):
        raise UsageError("nothing was removed; --yes removes without confirmation")
    say(f"removed {clear(folder) / 1e6:,.0f} MB from {folder}")


def _lines(findings: Sequence[Finding]) -> list[str]:
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]:<8}{finding.check:<{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<8}{'':<{width}}  -> {finding.remedy}")
    return lines


def _verdict(missing: Sequence[Finding]) -> str:
    if not missing:
        return "everything that a run needs is here"
    remedies = dict.fromkeys(finding.remedy for finding in missing if finding.remedy)
    return f"{len(missing)} missing; do:\n" + "\n".join(f"  {remedy}" for remedy in remedies)
