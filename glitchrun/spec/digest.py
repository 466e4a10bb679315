"""Digests of three disjoint parts of a spec, and the differences between two specs.

    results    what decides the results of a run
    numerics   how it is computed: affects rounding and speed, not verdicts
    cosmetic   everything else

The model's contents are not included: its fingerprint is computed from its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from glitchrun.errors import PreflightError, file_access
from glitchrun.spec.probes import PROBES, probe_names
from glitchrun.spec.registry import Registry
from glitchrun.spec.schema import TOKEN_SOURCES, step_with_defaults
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.templates import FAMILIES
from glitchrun.spec.types import Spec, Step, TokenScope

NUMERICS = (
    "model.device",
    "model.max_memory",
    "model.residency",
    "model.keep_quantized",
    "execution",
)
COSMETIC = ("apiVersion", "kind", "metadata", "gates", "tracking", "matrix")
Change = tuple[str, str, Any, Any]
"""Path, kind (results, numerics or cosmetic), old value, new value; None for absent."""


def results_digest(spec: Spec) -> str:
    """SHA-256, in hex, of everything that decides the results except the model itself."""
    versions = {step.strategy: STRATEGIES[step.strategy].version for step in spec.steps}
    raised = {name: version for name, version in versions.items() if version > 1}
    packages = packages_of(spec, spec.steps)
    return digest(
        {
            "revision": spec.model.revision,
            **prompt_settings(spec),
            "seed": spec.seed,
            "tokens": scope_setting(spec.tokens),
            "thresholds": asdict(spec.thresholds),
            "steps": [step_setting(step) for step in spec.steps],
            **limit_setting(spec),
            **definitions_of(spec.steps),
            **({"versions": raised} if raised else {}),
            **({"packages": packages} if packages else {}),
        }
    )


def prompt_settings(spec: Spec) -> dict[str, Any]:
    """Quantization, template and system text, which decide the results of every step."""
    template = asdict(spec.template) if is_dataclass(spec.template) else spec.template
    variables = dict(spec.template_variables or {})
    return {
        "quantization": spec.model.quantization,
        "template": template,
        **({"variables": variables} if variables else {}),
        "system": spec.system,
    }


def definitions_of(steps: Iterable[Step]) -> dict[str, Any]:
    """The probes that the spec defines and the steps name, under `probes`; empty for none."""
    found = {name: probe.definition() for step in steps for name, probe in step.probes.items()}
    return {"probes": found} if found else {}


def packages_of(spec: Spec, steps: Iterable[Step]) -> dict[str, str]:
    """The package and version of the template, and of each strategy, search and probe of the steps,
    that another package adds."""
    chosen: list[tuple[Registry[Any], object]] = [(FAMILIES, spec.template)]
    for step in steps:
        chosen.append((STRATEGIES, step.strategy))
        chosen.append((SEARCHES, step.params.get("search")))
        chosen += [(PROBES, name) for name in probe_names(step.params.get("probes"))]
    return {
        f"{registry.kind} {name}": origin
        for registry, name in chosen
        if isinstance(name, str) and name in registry and (origin := registry.origin(name))
    }


def numerics_digest(spec: Spec) -> str:
    """SHA-256, in hex, of device, memory limits, batch sizes and engine."""
    memory = spec.model.max_memory
    batches = [
        step.params.get("batch_size", "auto")
        for step in spec.steps
        if not STRATEGIES[step.strategy].batch_size_changes_results
    ]
    return digest(
        {
            "device": spec.model.device,
            "max_memory": dict(memory) if memory else None,
            "batch_sizes": batches,
            "engine": spec.execution.engine,
            **({} if spec.model.residency == "auto" else {"residency": spec.model.residency}),
        }
    )


def cosmetic_digest(spec: Spec) -> str:
    """SHA-256, in hex, of names, tags, gates, tracking and `x-` keys, secrets redacted."""
    items = spec.document.items()
    return digest({key: value for key, value in items if kind_of(key) == "cosmetic"})


def changed_paths(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The differences between two resolved documents (`Spec.document`), in the order of the new
    one."""
    changes = []
    for path, before, after in _differences(old, new, ""):
        changes.append((path, _kind(path, old, new), before, after))
    return changes


def kind_of(path: str) -> str:
    """results, numerics or cosmetic, for a path outside `steps`."""
    parts = path.split(".")
    if parts[0] in COSMETIC or parts[0].startswith("x-"):
        return "cosmetic"
    heads = (parts[0], ".".join(parts[:2]))
    return "numerics" if any(head in NUMERICS for head in heads) else "results"


def _kind(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if path.startswith("probes.") and not _is_asked(path.split(".")[1], old, new):
        return "cosmetic"
    if path.split(".")[0] == "model" and kind_of(path) == "numerics" and _measures(old, new):
        return "results"
    if not (path.startswith("steps[") and path.endswith("].batch_size")):
        return kind_of(path)
    index = int(path[len("steps[") : path.index("]")])
    strategies = {
        document["steps"][index]["strategy"]
        for document in (old, new)
        if index < len(document.get("steps", ()))
    }
    return "results" if any(map(_batches_matter, strategies)) else "numerics"


def _is_asked(probe: str, *documents: Mapping[str, Any]) -> bool:
    """Whether a step of them names a probe that the spec defines."""
    steps = (step for document in documents for step in document.get("steps", ()))
    return any(probe in step["probes"] for step in steps if isinstance(step.get("probes"), list))


def _batches_matter(name: str) -> bool:
    """Whether the batch size of a strategy changes results; so it is assumed of an unknown one."""
    strategy = STRATEGIES.get(name)
    return strategy is None or strategy.batch_size_changes_results


def measures_machine(names: Iterable[str]) -> bool:
    """Whether one of the strategies measures the machine: then device and memory limits are
    results."""
    found = map(STRATEGIES.get, names)
    return any(strategy is not None and strategy.measures_machine for strategy in found)


def _measures(*documents: Mapping[str, Any]) -> bool:
    """Whether a step of them measures the machine."""
    steps = (step for document in documents for step in document.get("steps", ()))
    return measures_machine(step["strategy"] for step in steps)


def limit_setting(spec: Spec) -> dict[str, int]:
    """The limit of a smoke run; empty for any other run, so that its keys do not change."""
    return {} if spec.limit is None else {"limit": spec.limit}


def scope_setting(tokens: TokenScope) -> Any:
    """The categories in scope, the expressions that exclude tokens of them, and the ids of the
    reference rows, if the spec names them."""
    categories = sorted(tokens.categories)
    if not tokens.exclude and tokens.unused is None:
        return categories
    exclude = {"exclude": sorted(tokens.exclude)} if tokens.exclude else {}
    unused = {} if tokens.unused is None else {"unused": sorted(tokens.unused)}
    return {"categories": categories, **exclude, **unused}


def step_setting(step: Step) -> dict[str, Any]:
    """The settings that decide the results of a step: its parameters with defaults filled in. Files
    of tokens are replaced by digests of their contents.

    Raises:
        PreflightError: a file cannot be read.
    """
    made = step_with_defaults({"id": step.id, "strategy": step.strategy, **_thawed(step.params)})
    if not STRATEGIES[step.strategy].batch_size_changes_results:
        made.pop("batch_size", None)
    for source in TOKEN_SOURCES:
        file = made.get(source, {}).get("file")
        if not isinstance(file, str):
            continue
        with file_access(file, f"the tokens of step {step.id!r} cannot be read", PreflightError):
            if Path(file).is_file():  # its contents count, not its path
                made[source] = {**made[source], "file": file_digest(Path(file))}
    return made


def digests_of(spec: Spec) -> dict[str, str]:
    """The digests of a spec by name: results, numerics and cosmetic."""
    return {
        "results": results_digest(spec),
        "numerics": numerics_digest(spec),
        "cosmetic": cosmetic_digest(spec),
    }


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of the contents of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256, in hex, of plain data, in which 1.0 counts as 1."""
    canonical = json.dumps(
        _thawed(value), sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _thawed(value: Any) -> Any:
    """Plain data that JSON can write, with 1.0 as 1."""
    if isinstance(value, Mapping):
        return {str(key): _thawed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_thawed(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(old.get(key), new.get(key), inner)
    elif path == "steps" and isinstance(old, list) and isinstance(new, list):
        for index, (before, after) in enumerate(zip_longest(old, new)):
            yield from _differences(before, after, f"{path}[{index}]")
    elif _thawed(old) != _thawed(new):
        yield path, _thawed(old), _thawed(new)
