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
from glitchrun.spec.defaults import step_with_defaults
from glitchrun.spec.probes import PROBES
from glitchrun.spec.registry import Registry
from glitchrun.spec.schema import TOKEN_SOURCES
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.templates import FAMILIES
from glitchrun.spec.types import Spec, TokenScope

NUMERICS = ("model.device", "model.max_memory", "execution")
COSMETIC = ("apiVersion", "kind", "metadata", "gates", "tracking", "matrix")
Change = tuple[str, str, Any, Any]
"""Path, kind (results, numerics or cosmetic), old value, new value; None for absent."""


def results_digest(spec: Spec) -> str:
    """SHA-256, in hex, of everything that decides the results except the model itself."""
    steps = [_step_results(step.id, step.strategy, step.params) for step in spec.steps]
    template = asdict(spec.template) if is_dataclass(spec.template) else spec.template
    variables = dict(spec.template_variables or {})
    packages = _packages(spec)
    return _digest(
        {
            "revision": spec.model.revision,
            "quantization": spec.model.quantization,
            "template": template,
            **({"variables": variables} if variables else {}),
            "system": spec.system,
            "seed": spec.seed,
            "tokens": _scope(spec.tokens),
            "thresholds": asdict(spec.thresholds),
            "steps": steps,
            **({"packages": packages} if packages else {}),
        }
    )


def _packages(spec: Spec) -> dict[str, str]:
    """The package and version of each strategy, template, search and probe that another package
    adds."""
    chosen: list[tuple[Registry[Any], object]] = [(FAMILIES, spec.template)]
    for step in spec.steps:
        chosen.append((STRATEGIES, step.strategy))
        chosen.append((SEARCHES, step.params.get("search")))
        probes = step.params.get("probes")
        chosen += [(PROBES, name) for name in probes or () if not isinstance(probes, str)]
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
    return _digest(
        {
            "device": spec.model.device,
            "max_memory": dict(memory) if memory else None,
            "batch_sizes": batches,
            "engine": spec.engine,
        }
    )


def cosmetic_digest(spec: Spec) -> str:
    """SHA-256, in hex, of names, tags, gates, tracking and `x-` keys, secrets redacted."""
    items = spec.document.items()
    return _digest({key: value for key, value in items if kind_of(key) == "cosmetic"})


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


def _scope(tokens: TokenScope) -> Any:
    categories = sorted(tokens.categories)
    if not tokens.exclude:
        return categories
    return {"categories": categories, "exclude": sorted(tokens.exclude)}


def _step_results(name: str, strategy: str, params: Mapping[str, Any]) -> dict[str, Any]:
    step = step_with_defaults({"id": name, "strategy": strategy, **_thawed(params)})
    if not STRATEGIES[strategy].batch_size_changes_results:
        step.pop("batch_size", None)
    for source in TOKEN_SOURCES:
        file = step.get(source, {}).get("file")
        if not isinstance(file, str):
            continue
        with file_access(file, f"the tokens of step {name!r} cannot be read", PreflightError):
            if Path(file).is_file():  # its contents count, not its path
                step[source] = {**step[source], "file": _file_digest(Path(file))}
    return step


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(value: Any) -> str:
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
