"""`glitchrun ui`: serves the MLflow UI, and prints links to the experiments."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from glitchrun.errors import ExitCode, PreflightError, require
from glitchrun.ledger import ROOT
from glitchrun.terminal import say


@click.command("ui")
@click.argument("spec", required=False, type=click.Path(path_type=Path))
@click.option("--port", default=5000, show_default=True, help="Port to use; 0 for any free one.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
def command(spec: Path | None, port: int, no_open: bool) -> None:
    """Serves the MLflow UI on this machine only, and prints links to the experiments.

    With SPEC, uses its store and its experiment. Ctrl-C stops the server. From another machine,
    use an SSH tunnel: the UI has no password.
    """
    require("mlflow", "filelock")
    from glitchrun.tracking.address import tracking_uri, without_user
    from glitchrun.tracking.server import serving
    from glitchrun.tracking.store import ensure_store

    root = ROOT.resolve()
    given, experiment = _from_spec(spec) if spec else (None, None)
    uri = tracking_uri(given, root)
    ensure_store(uri, root)
    if uri.startswith(("http://", "https://")):
        say("the store is a server with its own UI:")
        _show(without_user(uri), uri, root, experiment, no_open)
        return
    with _exit_on_signals(), serving(uri, root, port) as server:
        server.wait_until_up()
        try:
            _show(server.address, uri, root, experiment, no_open)
            say("press Ctrl-C to stop", err=True)
            code = server.wait()
        except KeyboardInterrupt:
            say("stopped", err=True)
            return
        raise PreflightError(f"the MLflow server ended unexpectedly with exit code {code}")


def _from_spec(spec: Path) -> tuple[str | None, str]:
    from glitchrun.spec.experiment_loading import load_experiment

    first = load_experiment(spec, require_env=True).cells[0].spec
    return first.tracking.uri, first.experiment


def _show(address: str, uri: str, root: Path, experiment: str | None, no_open: bool) -> None:
    """Prints the links, and opens the first one if there is a screen."""
    from glitchrun.tracking.experiment import links

    found = links(address, uri, root, experiment)
    for link in found:
        say(f"{link.title}\n  {link.address}")
    if not found:
        say(f"no runs yet; {address}")
    first = found[0].address if found else address
    if not no_open and _has_screen():
        webbrowser.open(first)


def _has_screen() -> bool:
    """Without a screen, `webbrowser` would start a text browser in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Raises SystemExit on SIGTERM and SIGHUP, so that the server is stopped first."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(ExitCode.SIGTERM)

    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
