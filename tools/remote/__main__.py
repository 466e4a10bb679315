"""Delivers runs to real MLflow servers while these fail: `make remote`.

1. A server with authentication and SQLite is started on loopback, and a proxy before it that can
   break: refuse, stay silent, send a byte a second, or answer with a page of HTML.
2. In each scenario, `glitchrun apply` of a tiny model runs as a process of its own, and its server
   fails at the first sign of the second step.
3. What the server has at the end is compared with what a local store gets from the same ledger:
   every metric point, param, and artifact of every run.

`--write FILE` replaces the table between the marks in a Markdown file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from tools import pages
from tools.remote.project import Project, compared, contents
from tools.remote.servers import PASSWORD, USER, Proxy, Server, postgres

_HEADS = ("server", "exit code of `apply`", "wait after the run", "delivered by", "contents")


@dataclass
class Outcome:
    """A row of the table."""

    scenario: str
    code: int
    held: float | None
    """Seconds from the run's own end, its report included, to the end of the process."""
    then: str
    """What delivered the rest."""
    result: str

    @property
    def is_right(self) -> bool:
        return self.result == "equal"

    @property
    def is_skipped(self) -> bool:
        """Whether this machine lacks what the scenario needs. The table says so."""
        return self.result.startswith("not run")


def undisturbed(server: Server, folder: Path) -> Outcome:
    """A run while the server works."""
    project = Project(folder, server.uri, "undisturbed")
    done = project.apply()
    return Outcome("none", done.code, done.after, "", compared(project, server))


def restarted(server: Server, folder: Path) -> Outcome:
    """The server is killed in the second step and started again."""
    project = Project(folder, server.uri, "restarted", attempts=6)

    def kill_and_start() -> None:
        server.kill()
        threading.Thread(target=server.start).start()

    done = project.apply(kill_and_start)
    again = "" if done.code == 0 else f"`sync`, exit {project.sync().code}"
    result = compared(project, server)
    return Outcome("killed, started again", done.code, done.after, again, result)


def broken(mode: str, server: Server, folder: Path) -> Outcome:
    """The server fails in the second step in a way of `Proxy`, and works again afterwards."""
    proxy = Proxy(server)
    project = Project(folder, proxy.uri, f"broken-{mode}")
    done = project.apply(lambda: proxy.break_off(mode))
    proxy.break_off("pass")
    again = project.apply()
    result = compared(project, server)
    name = {"silent": "silent", "drip": "a byte a second", "nonsense": "HTML", "refuse": "closes"}
    then = f"`apply`, exit {again.code}"
    return Outcome(f"{name[mode]} from the second step on", done.code, done.after, then, result)


def two_folders(server: Server, folder: Path) -> Outcome:
    """The same spec from two folders at once: two runs, and nothing doubled."""
    projects = [Project(folder / name, server.uri, "two-folders") for name in ("a", "b")]
    codes = [_wait(one) for one in [p.start("apply", "spec.yaml", "--yes") for p in projects]]
    results = {compared(project, server) for project in projects}
    found = len(contents(server.uri, "two-folders", server.store))
    result = "equal" if results == {"equal"} and found == 2 else f"{results}, {found} runs"
    return Outcome("two folders, one spec, at once", max(codes), None, "", result)


def two_studies(server: Server, folder: Path) -> Outcome:
    """Two matrices of three cells at once, in one experiment."""
    more = "matrix: {seeds: 3}"
    projects = [
        Project(folder / name, server.uri, f"study-{name}", attempts=2, more=more)
        for name in ("a", "b")
    ]
    codes = [_wait(one) for one in [p.start("apply", "spec.yaml", "--yes") for p in projects]]
    results = {compared(project, server) for project in projects}
    found = [len(contents(server.uri, project.name, server.store)) for project in projects]
    result = "equal" if results == {"equal"} and found == [4, 4] else f"{results}, {found} runs"
    return Outcome("two studies of 3 cells at once", max(codes), None, "", result)


def _wait(process: subprocess.Popen[str]) -> int:
    process.communicate()
    return process.returncode


def without_proxy(folder: Path) -> Outcome:
    """A server that leaves artifacts to its clients, which write to a shared folder."""
    options = ("--no-serve-artifacts", "--default-artifact-root", f"file://{folder}/shared")
    server = Server(folder / "server", options, auth=False)
    server.start()
    try:
        project = Project(folder / "project", server.uri, "without-proxy")
        done = project.apply()
        result = compared(project, server)
    finally:
        server.kill()
    return Outcome("no proxy for artifacts", done.code, done.after, "", result)


def with_postgres(folder: Path, cells: int) -> Outcome:
    """A matrix on a server whose store is PostgreSQL."""
    name = f"PostgreSQL, {cells} cells"
    if shutil.which("initdb") is None:
        return Outcome(name, 0, None, "", "not run: PostgreSQL is not installed")
    with postgres(folder / "postgres") as uri:
        server = Server(folder / "server", auth=False, store=uri)
        server.start()
        try:
            more = f"matrix: {{seeds: {cells}, max_runs: {cells}}}"
            project = Project(folder / "project", server.uri, "postgres", attempts=1, more=more)
            done = project.apply()
            result = compared(project, server)
            found = len(contents(server.uri, "postgres", server.store))
            result = result if found == cells + 1 else f"{found} runs"
        finally:
            server.kill()
    return Outcome(name, done.code, None, "", result)


def table(outcomes: list[Outcome]) -> list[str]:
    """The lines of a Markdown table of the outcomes, and how many of them were measured."""
    lines = {}
    for one in outcomes:
        held = "" if one.held is None else f"{one.held:.1f} s"
        cells = (one.scenario, str(one.code), held, one.then or "`apply`", one.result)
        lines[one.scenario] = f"| {' | '.join(cells)} |"
    run = sum(not one.is_skipped for one in outcomes)
    said = f"{run} of {len(outcomes)} scenarios run on {pages.when()}, {pages.where()}."
    return [*pages.table(_HEADS, lines), "", said]


def main() -> int:
    """Runs the scenarios and prints the table; 1 if one of them lost something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", type=Path, help="a Markdown file with the marks of the table")
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    parser.add_argument("--cells", type=int, default=20, help="cells of the matrix on PostgreSQL")
    given = parser.parse_args()
    os.environ |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        server = Server(base / "server")
        shared = {
            "undisturbed": undisturbed,
            "restarted": restarted,
            **{
                mode: lambda s, f, mode=mode: broken(mode, s, f)
                for mode in ("silent", "drip", "nonsense", "refuse")
            },
            "two-folders": two_folders,
            "two-studies": two_studies,
        }
        alone = {
            "without-proxy": without_proxy,
            "postgres": lambda folder: with_postgres(folder, given.cells),
        }
        server.start()
        try:
            for name, scenario in shared.items():
                if not given.only or name in given.only:
                    outcomes.append(scenario(server, base / name))
                    print(json.dumps(outcomes[-1].__dict__), flush=True)
        finally:
            server.kill()
        for name, own in alone.items():
            if not given.only or name in given.only:
                outcomes.append(own(base / name))
                print(json.dumps(outcomes[-1].__dict__), flush=True)
    print("\n".join(table(outcomes)))
    if given.write:
        pages.replace(given.write, "remote", table(outcomes))
    return int(not all(one.is_right or one.is_skipped for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
