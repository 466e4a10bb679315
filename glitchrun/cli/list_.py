"""`glitchrun list`: the available strategies, searches, templates, and probes with protocols."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from glitchrun.spec.probes import PROBES, PROTOCOLS, TOKEN
from glitchrun.spec.registry import Registry
from glitchrun.spec.schema import fragments
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.templates import FAMILIES, TEMPLATE_MODES
from glitchrun.terminal import emit_json, say

_REPEATS = re.compile(rf"(?:{re.escape(TOKEN)}){{4,}}")


@click.command("list")
@click.argument("what", type=click.Choice(["strategies", "searches", "templates", "probes"]))
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(what: str, output: str) -> None:
    """Lists the names that a spec can use."""
    sources: dict[str, Callable[[], dict[str, str]]] = {
        "strategies": _strategies,
        "searches": _searches,
        "templates": _templates,
        "probes": _probes,
    }
    found = sources[what]()
    registries: dict[str, Registry[Any]] = {
        "strategies": STRATEGIES,
        "searches": SEARCHES,
        "templates": FAMILIES,
        "probes": PROBES,
    }
    packages = _packages(registries[what]) if what in registries else {}
    if output == "json":
        emit_json(
            [
                {"name": name, "description": text}
                | ({"package": packages[name]} if name in packages else {})
                for name, text in found.items()
            ]
        )
        return
    width = max(map(len, found))
    for name, text in found.items():
        package = f"  (from {packages[name]})" if name in packages else ""
        say(f"{name:<{width}}  {text}{package}")


def _packages(registry: Registry[Any]) -> dict[str, str]:
    """The package of each object that is not built in."""
    return {name: package for name in registry if (package := registry.origin(name))}


def _strategies() -> dict[str, str]:
    return {name: fragment["description"] for name, fragment in fragments().items()}


def _searches() -> dict[str, str]:
    return {name: search.description for name, search in SEARCHES.items()}


def _templates() -> dict[str, str]:
    return {**TEMPLATE_MODES, **{name: repr(family.user) for name, family in FAMILIES.items()}}


def _probes() -> dict[str, str]:
    probes = {
        name: f"{_repeats_counted(probe.user)!r} {probe.prefill!r}"
        for name, probe in PROBES.items()
    }
    protocols = {
        name: f"protocol: a glitch token {protocol.rule} ({protocol.source})"
        for name, protocol in PROTOCOLS.items()
    }
    return probes | protocols


def _repeats_counted(user: str) -> str:
    return _REPEATS.sub(lambda found: f"{TOKEN} ({len(found[0]) // len(TOKEN)} times)", user)
