"""`glitchrun list`: the available strategies, searches, templates and probes."""

from __future__ import annotations

from collections.abc import Callable

import click

from glitchrun.spec.probes import PROBES
from glitchrun.spec.schema import strategies
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.templates import TEMPLATE_MODES, TEMPLATE_NAMES
from glitchrun.terminal import emit_json, say

_MODES = {
    "auto": "detected from the model",
    "tokenizer": "the tokenizer's own chat template",
    "raw": "nothing around the text",
}


@click.command("list")
@click.argument("what", type=click.Choice(["strategies", "searches", "templates", "probes"]))
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(what: str, output: str) -> None:
    """Shows what a spec can name."""
    sources: dict[str, Callable[[], dict[str, str]]] = {
        "strategies": _strategies,
        "searches": _searches,
        "templates": _templates,
        "probes": _probes,
    }
    found = sources[what]()
    if output == "json":
        rows = [{"name": name, "description": text} for name, text in found.items()]
        emit_json(rows)
        return
    width = max(map(len, found))
    for name, text in found.items():
        say(f"{name:<{width}}  {text}")


def _strategies() -> dict[str, str]:
    return {name: fragment["description"] for name, fragment in strategies().items()}


def _searches() -> dict[str, str]:
    return {name: search.description for name, search in SEARCHES.items()}


def _templates() -> dict[str, str]:
    from glitchrun.prompts.families import FAMILIES

    shown = {name: repr(FAMILIES[name].user) for name in TEMPLATE_NAMES}
    return {**{name: _MODES[name] for name in TEMPLATE_MODES}, **shown}


def _probes() -> dict[str, str]:
    return {name: f"{probe.user!r} {probe.prefill!r}" for name, probe in PROBES.items()}
