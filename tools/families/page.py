"""Writes docs/models.md: every family in transformers and its test results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tools.families.trial import Result

_REAL = {
    "llama": "SmolLM2-135M-Instruct, real weights",
    "gemma3_text": "Gemma 3 270M, real weights",
}
_HEAD = """# Models

Which families of causal language models run, and how. Every entry of transformers' own list
(`MODEL_FOR_CAUSAL_LM_MAPPING`, transformers {version}) was built from a configuration of a few
layers with random weights. Verification, sampling and prediction were compared with the model's
plain forward pass: one whole prompt at a time, without a cache. `make models` writes this page. A
test checks that it lists every entry, and runs the families that cache more than keys and values.
SmolLM2-135M-Instruct (`llama`) and Gemma 3 270M (`gemma3_text`) were also run with their real
weights; the other families were not.

glitchrun selects the engine by checking the model when it loads it, not by its name. `apply` prints
the engine and the reason after `engine:`, and the report shows both.

| engine | what it means |
|---|---|
| fast | glitchrun's own forward pass on plain tensors; its logits are compared with the model's |
| generic, its cache | the model's forward pass; the cache of the prefix is reused |
| generic, its cache for one token at a time | prompts run whole; continuations use the cache |
| generic, whole prompts | every new token runs the whole text again: correct, but slower |

*Screen* shows whether `search: screen` and `cascade` work: they need the keys and values of every
position. *Gradient* shows whether `search: gradient` works. Where the screen does not work, the run
ends before any step begins; `search: surrogate` works on every family that runs.

{counts}

| family | class | tested | engine | screen | gradient |
|---|---|---|---|---|---|
"""
_REFUSED = """
## Refused

{count} families are refused at load time, with the reason:

| family | class | why |
|---|---|---|
"""
_UNBUILT = """
## Not tested

{count} classes could not be built with a small configuration. If their checkpoint loads, they run
like any other model, on the engine that the check at load time selects.

| family | class | why |
|---|---|---|
"""


def page(results: Iterable[Result], version: str) -> str:
    """The text of the page."""
    found = list(results)
    runs = [row(one) for one in found if one.outcome in ("runs", "wrong")]
    refused = [one for one in found if one.outcome == "refused"]
    unbuilt = [one for one in found if one.outcome == "not built"]
    parts = [_HEAD.format(version=version, counts=_counts(found)), *runs]
    for head, some in ((_REFUSED, refused), (_UNBUILT, unbuilt)):
        if some:
            parts += [head.format(count=len(some)), *(_reason_row(one) for one in some)]
    return "".join(parts)


def row(result: Result) -> str:
    """One row of the table of families that run."""
    tested = _REAL.get(result.kind, "small, random")
    if result.outcome == "wrong":
        tested = f"**{result.reason}**"
    cells = (f"`{result.kind}`", f"`{result.name}`", tested, result.engine)
    return f"| {' | '.join((*cells, _yes(result.screen), _yes(result.gradient)))} |\n"


def _reason_row(result: Result) -> str:
    why = result.reason.partition(". Its config.json")[0].replace("|", "/").replace("\n", " ")
    return f"| `{result.kind}` | `{result.name}` | {why} |\n"


def _counts(results: list[Result]) -> str:
    outcomes = Counter(one.outcome for one in results)
    engines = Counter(one.engine for one in results if one.engine)
    ways = "; ".join(f"{count} {engine}" for engine, count in engines.most_common())
    return (
        f"Of {len(results)} entries {outcomes['runs']} run ({ways}),\n{outcomes['refused']} are "
        f"refused, {outcomes['not built']} could not be built small."
    )


def _yes(true: bool) -> str:
    return "yes" if true else "no"
