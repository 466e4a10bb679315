"""`glitchrun export`: writes the glitch tokens of a run for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from glitchrun.errors import PreflightError, RunError, UsageError
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.plan.build import fingerprint_now
from glitchrun.report.exporting import EXPORTS, WHERE, export
from glitchrun.report.formatting import counted
from glitchrun.report.writing import write_document
from glitchrun.runner.lookup import find_run
from glitchrun.spec.types import ModelSpec
from glitchrun.terminal import emit, say

_GENERATION = "generation_config.json"


_FORMATS = "\n".join(
    f"  {name:<16}{form.description.replace('`', '')}" for name, form in EXPORTS.items()
)


@click.command("export", epilog=f"\b\nFormats:\n{_FORMATS}")
@click.argument("run")
@click.option(
    "--format",
    "form",
    type=click.Choice([*EXPORTS]),
    required=True,
    help="The format of the list; see below.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="-",
    metavar="FILE",
    help="Output file; default, or `-`: standard output.",
)
@click.option(
    "--where",
    type=click.Choice(WHERE),
    help="Which tokens. Default: confirmed if the run sampled attempts, otherwise glitch.",
)
@click.option("--step", metavar="ID", help="Use only the verdicts of this step. Default: all.")
@click.option(
    "--model",
    metavar="PATH",
    help="The model that will use the list, as model.path in a spec. Refused unless its contents "
    "are those of the run's model.",
)
def command(
    run: str, form: str, output: Path, where: str | None, step: str | None, model: str | None
) -> None:
    """Writes the tokens or phrases that RUN found, in a format that another program reads.

    Token ids are checked against the tokenizer of the run's model if it is on this machine.
    """
    to_file = str(output) != "-"
    if EXPORTS[form].binary and not to_file:
        raise UsageError(f"--format {form} needs -o FILE")
    if to_file and output.name == _GENERATION and output.exists():
        raise UsageError(
            f"-o {output}: the file exists and has other settings; write another file and copy "
            "its entry into this one"
        )
    record = find_run(run, ROOT)
    found = export(record, form, where, step)
    checked = _check_model(record, model)
    if to_file:
        write_document(output, found.content, "-o")
    else:
        emit(found.content.decode())
    identity = record.identity
    tokens = counted(found.tokens, f"{found.where} {found.unit}")
    say(f"{tokens} of {identity.name} ({identity.key[:12]}#{identity.attempt})", err=True)
    for note in (*found.notes, checked):
        say(f"  {note}", err=True)


def _check_model(record: RunRecord, path: str | None) -> str:
    """A sentence on the model and the tokenizer that the ids were checked against.

    Raises:
        RunError: `path` is another model, or the ids are not those of the tokenizer.
        ModelUnavailable: `path` is no model.
    """
    measured = str(record.identity.digests.get("model") or "")
    spec = _model_spec(record.spec.get("model") or {}, path)
    try:
        contents = fingerprint_now(spec)
    except PreflightError:
        if path is not None:
            raise
        contents = ""
    if not contents:
        if path is not None:
            raise UsageError(f"--model {path}: the model is not on this machine; download it first")
        return f"ids not checked: the run's model {spec.path} is not on this machine"
    if path is not None and contents != measured:
        raise RunError(
            f"--model {path}: its contents differ from those of the run's model "
            f"({contents[:12]}, not {measured[:12]}), so its tokens may fail for other reasons or "
            "not at all; apply the spec to it with --set model.path=..., and export that run"
        )
    changed = "" if contents == measured else "; the model's files have changed since the run"
    if find_spec("transformers") is None:
        return f"ids not checked: transformers is not installed{changed}"
    return f"{_check_ids(record, spec)}{changed}"


def _model_spec(model: Mapping[str, Any], path: str | None) -> ModelSpec:
    known = {name: model[name] for name in ModelSpec.__dataclass_fields__ if name in model}
    spec = ModelSpec(**known)
    return spec if path is None else replace(spec, path=path, revision=None)


def _check_ids(record: RunRecord, spec: ModelSpec) -> str:
    """Compares the text of every token of the run with the tokenizer's.

    Raises:
        RunError: a text differs.
    """
    from glitchrun.imports import ImportedToken
    from glitchrun.model import tokenizer_of
    from glitchrun.prompts.tokenizer import decode_runs_inside, encode_inside
    from glitchrun.report.phrase_exporting import phrase_rows
    from glitchrun.report.token_rows import token_rows
    from glitchrun.vocabulary import vocabulary_fit

    tokenizer, rows = tokenizer_of(spec.path)
    tokens: Sequence[ImportedToken] = [
        ImportedToken(token.id, "run", token.text)
        for token in {row.token.id: row.token for row in token_rows(record)}.values()
    ]
    vocabulary = record.model.vocabulary_size if record.model else 0
    fits = vocabulary_fit.check_fit(tokens, tokenizer, max(rows, vocabulary))
    changed = [
        row.text
        for row in phrase_rows(record)
        if max(row.ids) >= rows
        or (
            decode_runs_inside(tokenizer, [row.ids]) != [row.text]
            and encode_inside(tokenizer, row.text) != row.ids  # a text that is normalized
        )
    ]
    if changed:
        raise RunError(
            f"the tokens of the phrase {changed[0]!r} have another text in {spec.path}; the model "
            "has been replaced since the run; apply the spec again"
        )
    if vocabulary_fit.misfits(fits):
        remedy = "the model has been replaced since the run; apply the spec again"
        raise vocabulary_fit.misfit_error(record.identity.name, None, spec.path, fits, remedy)
    return f"ids checked against the tokenizer of {spec.path}"
