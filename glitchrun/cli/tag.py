"""`glitchrun tag`: sets or removes tags of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from glitchrun.errors import PreflightError, UsageError, require
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.ledger.identity import change_tags, read_tags
from glitchrun.runner.lookup import find_run
from glitchrun.spec.mlflow_rules import MAX_TAG_VALUE, tag_objection
from glitchrun.terminal import say, visible


@click.command("tag")
@click.argument("run")
@click.argument("tags", metavar="KEY=VALUE...", nargs=-1, required=True)
def command(run: str, tags: tuple[str, ...]) -> None:
    """Sets tags of RUN, also in MLflow; an empty VALUE removes a tag.

    The results and the state of the run do not change. If MLflow cannot be reached, the next
    `glitchrun sync` delivers the tags.
    """
    root = ROOT.resolve()
    changes = _parsed(tags)
    record = find_run(run, root)
    change_tags(record.folder, changes)
    record = replace(record, tagged=read_tags(record.folder))
    identity = record.identity
    shown = "  ".join(f"{name}={text}" for name, text in record.tags.items()) or "no tags"
    say(visible(f"{identity.name} ({identity.key[:12]}#{identity.attempt}): {shown}"))
    if why := _deliver(record, root):
        say(f"not yet in MLflow: {why}", err=True)


def _parsed(tags: Sequence[str]) -> dict[str, str]:
    found = {}
    for tag in tags:
        name, sign, text = tag.partition("=")
        if not sign:
            raise UsageError(f"{tag!r} is no tag: write KEY=VALUE, or KEY= to remove it")
        if why := tag_objection(name):
            raise UsageError(f"the tag {name!r} {why}")
        if len(text) > MAX_TAG_VALUE:
            raise UsageError(f"the tag {name!r} is longer than {MAX_TAG_VALUE:,} characters")
        found[name] = text
    return found


def _deliver(record: RunRecord, root: Path) -> str | None:
    """Why MLflow does not have the tags now; None if it has."""
    try:
        require("mlflow", "filelock")
        from glitchrun.tracking.sync import deliver_tags

        found = deliver_tags(record, root)
    except PreflightError as error:
        return f"{error}; `glitchrun sync` delivers them"
    if found is None:
        return "it does not have the run; `glitchrun sync` delivers it"
    return "the run was deleted there" if found.is_deleted else None
