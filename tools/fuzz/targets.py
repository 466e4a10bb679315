"""What is fuzzed. A target takes a folder, a random generator and a number, and raises nothing but
a finding."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.cli import main
from glitchrun.errors import ExitCode, GlitchrunError, UsageError
from glitchrun.imports import read as read_results
from glitchrun.model import load
from glitchrun.plan.devices import DeviceMemory
from glitchrun.plan.memory_estimate import estimate
from glitchrun.prompts.chat_template import fault
from glitchrun.spec.digest import results_digest
from glitchrun.spec.experiment_loading import check_files, load_experiment
from glitchrun.spec.nodes import plain
from glitchrun.spec.problem_formats import as_text
from glitchrun.spec.problems import CODES, InvalidSpec
from glitchrun.spec.spec_files import Source, read_source
from glitchrun.spec.strategy import Workload
from glitchrun.spec.types import ModelSpec
from glitchrun.spec.yaml_parser import parse
from tests.support import tiny_models
from tests.support.preloaded import without_figures
from tests.support.tiny_gguf import tiny_gguf
from tools.fuzz.mutate import change_bytes, change_json, specs

_ROOT = Path(__file__).parents[2]
_CODES = {int(code) for code in ExitCode}
_ENVIRONMENT = {"SET": "1"}
_DEVICE = DeviceMemory("cpu", 8 * 10**9, 8 * 10**9, "fuzz")


class Finding(Exception):
    """Input that glitchrun does not handle as it should."""


@dataclass(frozen=True)
class Target:
    """A kind of input."""

    what: str
    examples: int
    """In the full form."""
    try_one: Callable[[Path, random.Random], str]
    """Tries one input, written into an empty folder; returns `accepted` or `refused`."""
    seconds: float = 5.0
    """Processor time that one input may take."""


TARGETS: dict[str, Target] = {}


def target(
    name: str, what: str, examples: int, seconds: float = 5.0
) -> Callable[[Callable[[Path, random.Random], str]], Callable[[Path, random.Random], str]]:
    """Adds a function to `TARGETS`."""

    def add(
        try_one: Callable[[Path, random.Random], str],
    ) -> Callable[[Path, random.Random], str]:
        TARGETS[name] = Target(what, examples, try_one, seconds)
        return try_one

    return add


@cache
def spec_sources() -> tuple[tuple[bytes, Any], ...]:
    """Valid specs as text and as documents: the examples of the tests and those of specs/."""
    found = []
    paths = [*(_ROOT / "tests/examples/valid").glob("*.yaml"), *(_ROOT / "specs").rglob("*.yaml")]
    for path in sorted(paths):
        source = read_source(path)
        assert isinstance(source, Source)
        node, _ = parse(source)
        if node is not None:
            found.append((path.read_bytes(), {**plain(node), "extends": None}))
    return tuple(found)


def _changed_spec(rng: random.Random) -> bytes:
    text, document = rng.choice(spec_sources())
    changes = range(rng.choice((1, 1, 1, 2, 3)))
    if rng.random() < 0.3:
        for _ in changes:
            text = change_bytes(text, rng)
        return text
    document = json.loads(json.dumps(document))
    for _ in changes:
        document = change_json(document, rng)
    if rng.random() < 0.5:
        return json.dumps(document).encode()
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


@target("validate", "changed specs, read and checked", 100_000)
def validate(folder: Path, rng: random.Random) -> str:
    """`validate`, and the loading that `plan` and `apply` begin with."""
    path = folder / "spec.yaml"
    path.write_bytes(_changed_spec(rng))
    problems, _ = check_files([path], _ENVIRONMENT)
    unknown = {problem.code for problem in problems} - set(CODES)
    if unknown or "Traceback" in as_text(problems):
        raise Finding(f"problems {unknown}: {as_text(problems)}")
    sets = rng.choice([[], ["seed=3"], ["steps.0.k=x"], ["template.user=3"], ["matrix="]])
    try:
        experiment = load_experiment(path, sets, _ENVIRONMENT, require_env=rng.random() < 0.5)
    except (InvalidSpec, UsageError):
        return "refused"
    names = [cell.name for cell in experiment.cells]
    if len(set(names)) != len(names):
        raise Finding(f"two cells of one name: {names}")
    for cell in experiment.cells:
        results_digest(cell.spec)
        json.dumps(cell.spec.document, allow_nan=False)
    return "accepted"


@cache
def model() -> Path:
    """A tiny model in a folder that is never changed."""
    import tempfile

    return tiny_models.tiny_llama(Path(tempfile.mkdtemp(prefix="fuzz-model-")) / "model")


def _commands(folder: Path, document: Any, *options: str) -> str:
    """`plan` and `apply` of a spec, in this process."""
    path = folder / "spec.yaml"
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    path.write_bytes(text)
    codes = [
        _invoke(folder, "plan", "spec.yaml"),
        _invoke(folder, "apply", "spec.yaml", "--yes", "--limit", "2", *options),
    ]
    refusals = {ExitCode.USAGE, ExitCode.SPEC_INVALID, ExitCode.PREFLIGHT}
    if codes[0] in refusals and codes[1] == 0:
        raise Finding(f"plan refuses with {codes[0]} what apply runs")
    return "accepted" if codes[1] not in refusals else "refused"


def _invoke(folder: Path, *words: str) -> int:
    with contextlib.chdir(folder), without_figures():
        result = CliRunner(env={"MLFLOW_TRACKING_URI": None, "SET": "1"}).invoke(main, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Finding(f"{words[0]}: {type(result.exception).__name__}") from result.exception
    if result.exit_code not in _CODES:
        raise Finding(f"{words[0]} exits with {result.exit_code}")
    if result.exit_code and not (result.stderr.strip() or "gate" in result.stdout):
        raise Finding(f"{words[0]} exits with {result.exit_code} without a message")
    return result.exit_code


@target("apply", "changed specs of every strategy, planned and applied", 1000, seconds=30)
def apply(folder: Path, rng: random.Random) -> str:
    """`plan` and `apply` of a runnable spec with one or two changes outside its model."""
    from tools.torture.bench import HEAD, STEPS

    document = yaml.safe_load(HEAD + rng.choice(list(STEPS.values())))
    kept = {"model": {"path": str(model()), "device": "cpu"}, "tracking": _store(folder)}
    for _ in range(rng.randint(1, 2)):
        document = change_json(document, rng)
    if isinstance(document, dict):
        document |= kept
    return _commands(folder, document)


def _store(folder: Path) -> dict[str, str]:
    """A file store of one example; creating a database takes seconds."""
    from tests.support.stores import new_root

    if not (folder / "mlruns").exists():
        new_root(folder)
    return {"uri": "sqlite:///mlruns/mlflow.db"}


@target(
    "schema", "specs that Hypothesis draws from the schema, planned and applied", 300, seconds=60
)
def schema(folder: Path, rng: random.Random) -> str:
    """Whatever validates runs, or is refused with a message."""
    outcomes: list[str] = []

    @hypothesis_seed(rng.randrange(2**32))
    @settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(specs(str(model())))
    def one(document: dict[str, Any]) -> None:
        path = folder / "spec.yaml"
        path.write_text(json.dumps({**document, "tracking": _store(folder)}))
        try:
            load_experiment(path)
        except InvalidSpec:
            outcomes.append("refused")
            return
        outcomes.append(_commands(folder, path.read_bytes()))

    one()
    return outcomes[-1] if outcomes else "refused"


@cache
def result_files() -> tuple[Path, ...]:
    """Files of every format that `import` reads."""
    found = [path for path in (_ROOT / "tests/data").rglob("*") if path.is_file()]
    kept = []
    for path in found:
        with contextlib.suppress(GlitchrunError):
            read_results(path)
            kept.append(path)
    return tuple(sorted(kept))


@target("import", "changed result files of every format", 5000)
def import_(folder: Path, rng: random.Random) -> str:
    """`import` without a model."""
    source = rng.choice(result_files())
    data = source.read_bytes()
    if rng.random() < 0.5 and source.suffix == ".json":
        data = json.dumps(change_json(json.loads(data), rng)).encode()
    else:
        data = change_bytes(data, rng)
    path = folder / source.name
    path.write_bytes(data)
    try:
        read_results(path)
    except GlitchrunError as error:
        _check_message(error, path)
        return "refused"
    return "accepted"


def _check_message(error: GlitchrunError, path: Path) -> None:
    if path.name not in str(error) and str(path.parent) not in str(error):
        raise Finding(f"the message does not name {path.name}: {error}") from error


@contextlib.contextmanager
def _copy(folder: Path) -> Iterator[Path]:
    copy = Path(shutil.copytree(model(), folder / "model"))
    yield copy


def _load(path: Path) -> str:
    """What `plan` and `apply` do with a checkpoint, up to the loaded model."""
    try:
        header = read_header(resolve(str(path)))
        estimate(header, "none", [Workload("s", 4, 20)], _DEVICE)
        with contextlib.redirect_stderr(io.StringIO()):
            load(ModelSpec(str(path), device="cpu"), Path("unused"))
    except GlitchrunError as error:
        if error.exit_code != ExitCode.PREFLIGHT:
            raise Finding(f"exit code {error.exit_code}: {error}") from error
        if not str(error).strip():
            raise Finding("a refusal without a message") from error
        return "refused"
    return "accepted"


@target("safetensors", "changed headers of model.safetensors, loaded", 1000)
def safetensors(folder: Path, rng: random.Random) -> str:
    """A checkpoint whose weights' header is changed."""
    with _copy(folder) as copy:
        path = copy / "model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        if rng.random() < 0.5:
            header = json.loads(data[8 : 8 + size])
            text = json.dumps(change_json(header, rng)).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
        else:
            path.write_bytes(change_bytes(data, rng, 8 + size))
        return _load(copy)


@cache
def _gguf() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        tiny_gguf(path)
        return path.read_bytes()


@target("gguf", "changed headers of GGUF files, read and planned", 3000)
def gguf(folder: Path, rng: random.Random) -> str:
    """A GGUF file whose header is changed; the conversion of its weights is left out."""
    path = folder / "tiny.gguf"
    path.write_bytes(change_bytes(_gguf(), rng, 2000 if rng.random() < 0.7 else 20_000))
    try:
        header = read_header(resolve(str(path)))
        estimate(header, "none", [Workload("s", 4, 20)], _DEVICE)
    except GlitchrunError as error:
        _check_message(error, path)
        return "refused"
    return "accepted"


@target("config", "changed config.json, loaded", 500)
def config(folder: Path, rng: random.Random) -> str:
    """A checkpoint whose configuration is changed."""
    return _changed_file(folder, rng, "config.json")


@target("tokenizer", "changed tokenizer.json and tokenizer_config.json, loaded", 500)
def tokenizer(folder: Path, rng: random.Random) -> str:
    """A checkpoint whose tokenizer is changed."""
    return _changed_file(folder, rng, rng.choice(["tokenizer.json", "tokenizer_config.json"]))


def _changed_file(folder: Path, rng: random.Random, name: str) -> str:
    with _copy(folder) as copy:
        path = copy / name
        data = path.read_bytes()
        if rng.random() < 0.7:
            path.write_text(json.dumps(change_json(json.loads(data), rng)))
        else:
            path.write_bytes(change_bytes(data, rng))
        return _load(copy)


_TEMPLATES = (
    tiny_models.CHATML,
    "{% set ns = namespace(a=1) %}{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(messages[0]['content']) }}{{ bos_token }}",
    "{{ messages | tojson }}{% if add_generation_prompt %}{{ 'a' * 10 }}{% endif %}",
    "{% for i in range(10) %}{{ i }}{% endfor %}{{ raise_exception('no') if false }}",
)
_PIECES = (
    b"{% for i in range(10**9) %}{% endfor %}", b"{{ 'a' * 10**10 }}", b"{{ ''.__class__ }}",
    b"{{ messages.__class__.__mro__ }}", b"{% for a in messages %}", b"{{ cycler.__init__ }}",
    b"{{ 9**9**9 }}", b"{% include 'x' %}", b"{{ self }}", b"{% set messages = 1 %}", b"{{ 1/0 }}",
)  # fmt: skip


@target("template", "changed and hostile chat templates, rendered", 500, seconds=20)
def template(folder: Path, rng: random.Random) -> str:
    """A tokenizer with a changed chat template."""
    text = rng.choice(_TEMPLATES).encode()
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.3:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        else:
            text = change_bytes(text, rng)
    tokenizer = _tokenizer()
    tokenizer.chat_template = text.decode("utf-8", "replace")
    try:
        return "accepted" if fault(tokenizer) is None else "refused"
    except GlitchrunError:
        return "refused"


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model(), local_files_only=True)
