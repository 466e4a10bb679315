"""Problems of the probes that a spec defines, and of the steps that name probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.spec.nodes import Document, Path_
from glitchrun.spec.probes import PROBES, PROTOCOLS, TOKEN, Probe, defined_probe, probe_names
from glitchrun.spec.problems import Problem, nearest, one_of
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES

_TEXTS = ("user", "prefill", "system")
_OF_TOKENS = ("positions", "pass")
"""Keys that need `expect: token`."""


def defined_problems(document: Document) -> Iterator[Problem]:
    """Problems of the definitions under `probes` that the schema cannot find."""
    for name, probe in _defined(document).items():
        path: Path_ = ("probes", name)
        if name in PROBES or name in PROTOCOLS:
            what = "protocol" if name in PROTOCOLS else "probe"
            yield document.problem(
                "GR330",
                path,
                f"{name!r} is the name of a built-in {what}",
                f"choose another name, such as my-{name}",
                place=document.key_place(path),
            )
        yield from _places(document, path, probe)
        yield from _contradictions(document, path, probe)


def _places(document: Document, path: Path_, probe: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of `{token}`: once in `user`, at most once in each text of a shot."""
    for key in _TEXTS:
        text = probe.get(key)
        if not isinstance(text, str) or document.is_open((*path, key)):
            continue
        count = text.count(TOKEN)
        if key == "user" and count != 1:
            said = "it is missing" if not count else f"it occurs {count} times"
            hint = "" if count else _misspelled(text)
            message = f"probes.{path[1]}.user must contain {TOKEN} once, but {said}"
            yield document.problem("GR331", (*path, key), message, hint)
        elif key != "user" and count:
            message = f"probes.{path[1]}.{key} must not contain {TOKEN}"
            hint = "the token has its place in `user`, and may occur in shots"
            yield document.problem("GR331", (*path, key), message, hint)


def _misspelled(text: str) -> str:
    if "{" in text and "}" in text:
        found = text[text.index("{") : text.rindex("}") + 1]
        return f"write {TOKEN} in place of {found[:40]!r}"
    return f"write {TOKEN} where the token is to stand, in quotes if YAML needs them"


def _contradictions(document: Document, path: Path_, probe: Mapping[str, Any]) -> Iterator[Problem]:
    expect = probe.get("expect", "token")
    if expect in ("spelling", "length"):
        for key in _OF_TOKENS:
            if key in probe:
                message = f"{key!r} needs expect: token; a {expect} is compared as text"
                yield _at_key(document, (*path, key), message, "remove it")
    if probe.get("raw") is True and "system" in probe:
        message = "a raw probe has no place for a system text"
        hint = "begin `user`, or the first shot, with it"
        yield _at_key(document, (*path, "system"), message, hint)


def _at_key(document: Document, path: Path_, message: str, hint: str) -> Problem:
    return document.problem("GR332", path, message, hint, place=document.key_place(path))


def named_problems(
    document: Document, index: int, step: Mapping[str, Any], *, partial: bool
) -> Iterator[Problem]:
    """Problems of the probes that a step names: unknown ones, and those that it cannot use.

    The probes of a `partial` document (a fragment) may be defined elsewhere.
    """
    named, defined = step.get("probes"), _defined(document)
    path: Path_ = ("steps", index, "probes")
    if isinstance(named, list):
        for position, name in enumerate(named):
            known = [*PROBES, *PROTOCOLS, *defined]
            if isinstance(name, str) and name not in known:
                if partial or document.is_open((*path, position)):
                    return
                yield _unknown(document, (*path, position), name, known)
                return
        if not all(isinstance(name, str) for name in named):
            return
    elif not isinstance(named, str) or named not in PROTOCOLS:
        return
    listed = named if isinstance(named, list) else []
    places: dict[str, Path_] = {name: (*path, place) for place, name in enumerate(listed)}
    probes = [_probe(name, defined) for name in probe_names(named)]
    yield from _unusable(document, path, places, step, [one for one in probes if one])


def _unknown(document: Document, path: Path_, name: str, known: list[str]) -> Problem:
    near = nearest(name, known)
    ordered = known if near is None else [near, *(one for one in known if one != near)]
    choices = one_of(ordered)
    hint = choices if near is None else f"did you mean {near!r}? {choices}"
    message = f"steps[{path[1]}].probes[{path[3]}] cannot be {name!r}: there is no such probe"
    return document.problem("GR103", path, message, hint)


def _unusable(
    document: Document,
    path: Path_,
    places: Mapping[str, Path_],
    step: Mapping[str, Any],
    probes: list[Probe],
) -> Iterator[Problem]:
    strategy = STRATEGIES.get(str(step.get("strategy")))
    if strategy is None or not probes:
        return
    tokens = step.get("tokens")
    of_phrases = isinstance(tokens, dict) and "phrases" in tokens
    if strategy.samples_attempts or of_phrases:
        for probe in probes:
            if probe.is_text:
                message = (
                    f"{step['strategy']} looks for the {'phrase' if of_phrases else 'token'} in "
                    f"what was said, and the probe {probe.name!r} asks for its {probe.expect}"
                )
                hint = "use it in a step that verifies tokens: test, scan or mine"
                yield document.problem("GR333", places.get(probe.name, path), message, hint)
    first, named = probes[0], str(step.get("search", "gradient"))
    search = SEARCHES.get(named) if strategy.searches else None
    guided = search is not None and (search.screened or search.gradients or search.regression)
    if guided and (first.is_text or first.slots > 1):
        why = f"asks for the {first.expect}" if first.is_text else "repeats the token"
        message = (
            f"search: {named} is guided by the first probe, which must contain the token once and "
            f"ask for it; {first.name!r} {why}"
        )
        hint = "put another probe first, or use another search"
        yield document.problem("GR333", places.get(first.name, path), message, hint)


def _probe(name: str, defined: Mapping[str, Any]) -> Probe | None:
    if name in PROBES:
        return PROBES[name]
    try:
        return defined_probe(name, defined[name])
    except (KeyError, TypeError, AttributeError):  # the schema reports what is wrong with it
        return None


def _defined(document: Document) -> dict[str, Any]:
    probes = document.data.get("probes")
    if not isinstance(probes, dict):
        return {}
    return {name: probe for name, probe in probes.items() if isinstance(probe, dict)}
