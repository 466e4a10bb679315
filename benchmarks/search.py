"""Measures what each search finds per verification, and what choosing the tokens costs.

    python benchmarks/search.py [SPEC] [TRUTH] [--seeds 5] [--plot found.png]

TRUTH is the tokens.jsonl of a run of SPEC whose last step verified the whole vocabulary, or a
random part of it (default: a few hundred tokens, verified at the start). Searches then get the
verdicts of that table instead of the model's; gradients come from the model. It fails if the
model's own verdicts on a sample of the table differ.

Beside the searches of `mine`: both ends of the norm, and the indicators of Land & Bartolo 2024
(arXiv 2405.05417), which are the norm for embeddings that are not tied, and for tied ones the
cosine to the mean of unused rows, here also without the first principal component.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from glitchrun.events import ProbeResult, Token, Verified
from glitchrun.model import load
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.frozen_suffix import Screener
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Prompt
from glitchrun.report.figures.style import new_figure, style
from glitchrun.report.writing import rounded
from glitchrun.search import Search, Space, build_search
from glitchrun.search.base import Scores
from glitchrun.search.ordered import Ordered
from glitchrun.search.surrogate import indicators
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.searches import SEARCHES
from glitchrun.strategies.context import Context
from glitchrun.strategies.judging import Judge
from glitchrun.strategies.mine import Config
from glitchrun.strategies.mine.run import space as space_of
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import row_norms

SPEC = "specs/smollm2-scan.yaml"
MARKS = (250, 500, 1000, 2000)
KINDS: Mapping[str, Callable[[Verified], bool]] = {
    "glitch": lambda fact: fact.glitch,
    "p < .01": lambda fact: fact.glitch and _probability(fact) < 1e-2,
    "p < .001": lambda fact: fact.glitch and _probability(fact) < 1e-3,
}
ORDERED = {
    "high norm": ("norm", True),
    "cosine to unused rows": ("to_unused", True),
    "… without first component": ("to_unused_without_component", True),
}
"""Name -> indicator, and whether its largest values come first."""


@dataclass(frozen=True)
class Trace:
    """The result of one search."""

    found: Mapping[str, np.ndarray]
    """For each kind, the number found after each verification, `(N,)`."""
    gradients: int
    screens: int
    seconds: float
    """Seconds spent on choosing, without gradients."""


class Asked:
    """Gradients, and the screen of all tokens in the table, each computed once and timed.

    `file` stores them for the next run.
    """

    def __init__(self, take: Callable[[int], tuple[float, Tensor]], file: Path | None) -> None:
        self._take = take
        self._file = file
        self._gradients: dict[int, tuple[float, Tensor]] = {}
        self._scores: dict[str, Any] = {}
        self.seconds: list[float] = []
        """Seconds of each gradient."""
        self.spent = 0.0
        """Seconds this process spent on gradients."""
        if file and file.exists():
            self._gradients, self.seconds, self._scores = torch.load(file, weights_only=False)

    def gradient(self, token_id: int) -> tuple[float, Tensor]:
        if token_id not in self._gradients:
            start = time.perf_counter()
            self._gradients[token_id] = self._take(token_id)
            self.seconds.append(time.perf_counter() - start)
            self.spent += self.seconds[-1]
        return self._gradients[token_id]

    def scores(self, context: Context, prompt: Prompt, ids: Sequence[int]) -> Scores:
        if self._scores.get("ids") != list(ids):
            start = time.perf_counter()
            screener = Screener(
                context.backend, prompt, context.scope(), context.spec.seed, context.free_bytes
            )
            log_p, gap = screener.screen(list(ids))
            seconds = (time.perf_counter() - start) / len(ids)
            self._scores = {"ids": list(ids), "log_p": log_p, "gap": gap, "seconds": seconds}
            self.save()
        return Scores(np.array(self._scores["log_p"]), np.array(self._scores["gap"]))

    @property
    def seconds_a_screen(self) -> float:
        return float(self._scores.get("seconds", 0.0))

    def save(self) -> None:
        if self._file:
            torch.save((self._gradients, self.seconds, self._scores), self._file)


def read_truth(path: Path) -> dict[int, Verified]:
    """Returns the verdicts of the last step in a tokens.jsonl, by ascending token id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["glitch"] is not None and row["probes"]]
    if not rows:
        raise click.UsageError(f"{path} contains no verdicts")
    last = rows[-1]["step"]
    facts = [_fact(row) for row in rows if row["step"] == last]
    return {fact.token.id: fact for fact in sorted(facts, key=lambda fact: fact.token.id)}


def _fact(row: Mapping[str, Any]) -> Verified:
    names = ("token_id", "token", "piece", "category", "norm")
    fields = ("p", "rank", "entropy", "argmax", "gap", "pass", "decided_in")
    probes = {
        name: ProbeResult(*(probe[field] for field in fields))
        for name, probe in row["probes"].items()
    }
    return Verified(Token(*(row[name] for name in names)), probes, row["glitch"], row["emitted"])


def context_of(spec_path: Path) -> Context:
    """Loads the model of a spec's first cell; returns the context of its strategies."""
    spec = load_experiment(spec_path).cells[0].spec
    model = load(spec.model)
    return Context(
        spec=spec,
        backend=best_backend(model)[0],
        vocabulary=Vocabulary(model.tokenizer, row_norms(model.embedding_blocks())),
        template=detect(spec.template, model.tokenizer, model.config, spec.model.path),
        free_bytes=1 << 31,
        earlier={},
    )


def builders(space: Space, batch: int) -> dict[str, Callable[[int], Search]]:
    """Returns, by name, functions that build a search for a seed."""
    measures = indicators(space)

    def named(search: str, **settings: Any) -> Callable[[int], Search]:
        config = Config(search=search, batch_size=batch, **settings)
        return lambda seed: build_search(search, replace(space, seed=seed), config)

    def walk(seed: int) -> Search:
        # The reference starts at the least norm; other seeds start anywhere.
        picked = int(np.random.default_rng(seed).choice(space.ids.numpy()))
        return named("gradient", k=32, start=picked if seed else None)(seed)

    def ordered(measure: str, largest: bool) -> Callable[[int], Search]:
        places = measures[measure].sort(descending=largest, stable=True).indices
        return lambda seed: Ordered(space.ids[places].tolist())

    plain = {"random": named("random"), "low norm": named("low-norm")}
    by_indicator = {n: ordered(*which) for n, which in ORDERED.items() if which[0] in measures}
    learned = ["surrogate", *(("screen", "cascade") if space.scores else ())]
    last = {name: named(name) for name in learned}
    return {**plain, **by_indicator, "gradient (GlitchMiner)": walk, **last}


def replay(
    build: Callable[[], Search], truth: Mapping[int, Verified], budget: int, batch: int,
    asked: Asked, screens: int = 0,
) -> Trace:  # fmt: skip
    """Runs a search on the table. `screens` is the number of tokens screened for it."""
    facts: list[Verified] = []
    before, start = asked.spent, time.perf_counter()
    search = build()
    while len(facts) < budget and (ids := search.propose(min(batch, budget - len(facts)))):
        verdicts = [truth[token_id] for token_id in ids]
        search.update(verdicts)
        facts += verdicts
    seconds = time.perf_counter() - start - (asked.spent - before)
    found = {
        kind: np.cumsum([counts(fact) for fact in facts], dtype=float)
        for kind, counts in KINDS.items()
    }
    return Trace(found, search.counters["gradients"], screens, seconds)


def check(context: Context, truth: Mapping[int, Verified], sample: int) -> float:
    """Compares verdicts on a sample with the table; returns the seconds per verification."""
    ids = sorted(np.random.default_rng(0).choice(list(truth), sample, replace=False).tolist())
    judge = Judge(context, tuple(next(iter(truth.values())).probes))
    start = time.perf_counter()
    live = judge.judge(ids)
    seconds = (time.perf_counter() - start) / sample
    wrong = [f.token.id for f in live if _gist(f) != _gist(truth[f.token.id])]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {sample} verdicts are not the table's: ids {wrong[:9]}")
    print(f"{sample} verdicts of the table are the model's own; {seconds * 1e3:.0f} ms each")
    return seconds


def _gist(fact: Verified) -> tuple[Any, ...]:
    probes = {name: (r.passed, r.argmax, rounded(r.p, 2)) for name, r in fact.probes.items()}
    return fact.glitch, probes


def _probability(fact: Verified) -> float:
    return max(result.p for result in fact.probes.values())


def show(traces: Mapping[str, Sequence[Trace]], marks: Sequence[int], verify: float,
         asked: Asked) -> None:  # fmt: skip
    """Prints two Markdown tables: what was found, and the costs at the largest budget."""
    gradient = float(np.median(asked.seconds)) if asked.seconds else 0.0
    heads = [f"{kind} @{mark}" for kind in KINDS for mark in marks]
    print("\n| search | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for name, runs in traces.items():
        cells = [_cell([t.found[kind] for t in runs], mark) for kind in KINDS for mark in marks]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| search | runs | verifications | gradients | screens | choosing s | all s |")
    print("|---" * 7 + "|")
    for name, runs in traces.items():
        n = np.mean([len(trace.found["glitch"]) for trace in runs])
        costs = ("gradients", "screens", "seconds")
        taken, screens, chose = (np.mean([getattr(t, a) for t in runs]) for a in costs)
        total = n * verify + taken * gradient + screens * asked.seconds_a_screen + chose
        print(f"| {name} | {len(runs)} | {n:.0f} | {taken:.0f} | {screens:.0f} "
              f"| {chose:.1f} | {total:.0f} |")  # fmt: skip
    print(f"\nMeasured here: a verification {verify * 1e3:.0f} ms (in batches), "
          f"a gradient {gradient * 1e3:.0f} ms, "
          f"a screen {asked.seconds_a_screen * 1e3:.1f} ms.")  # fmt: skip


def _cell(curves: Sequence[np.ndarray], mark: int) -> str:
    values = [curve[min(mark, len(curve)) - 1] for curve in curves]
    spread = f" ± {np.std(values, ddof=1):.0f}" if len(values) > 1 else ""
    return f"{np.mean(values):.0f}{spread}"


def plot(traces: Mapping[str, Sequence[Trace]], truth: Mapping[int, Verified], path: Path) -> None:
    """Plots found against verified tokens, one panel per kind; bands are one standard deviation."""
    with style():
        figure = new_figure((12, 4))
        panels = figure.subplots(1, len(KINDS))
        for axes, (kind, counts) in zip(panels, KINDS.items(), strict=True):
            for name, runs in traces.items():
                shortest = min(len(trace.found[kind]) for trace in runs)
                curves = np.stack([trace.found[kind][:shortest] for trace in runs])
                mean, spread = curves.mean(axis=0), curves.std(axis=0)
                (line,) = axes.plot(np.arange(1, shortest + 1), mean, label=name)
                axes.fill_between(np.arange(1, shortest + 1), mean - spread, mean + spread,
                                  color=line.get_color(), alpha=0.2, lw=0)  # fmt: skip
            total = sum(map(counts, truth.values()))
            axes.set_title(f"{kind}: {total:,} among {len(truth):,} tokens")
            axes.set_xlabel("tokens verified")
        panels[0].set_ylabel("found")
        panels[0].legend(fontsize=8)
        figure.savefig(path, dpi=120)


def _first(context: Context, probes: Sequence[str]) -> Prompt:
    return next(iter(context.prompts(probes).values()))


def verified_here(context: Context, size: int) -> dict[int, Verified]:
    """Verifies a random part of the vocabulary."""
    scope = context.scope()
    picked = np.random.default_rng(0).choice(scope, min(size, len(scope)), replace=False)
    facts = Judge(context, ("repeat",)).judge(sorted(picked.tolist()))
    return {fact.token.id: fact for fact in facts}


@click.command()
@click.argument("spec", default=SPEC, type=click.Path(exists=True, path_type=Path))
@click.argument("truth", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--walks", type=click.IntRange(0), help="Seeds of the gradient search, which is slow."
)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1))
@click.option("--budget", default=max(MARKS), show_default=True, type=click.IntRange(1))
@click.option(
    "--sample", default=64, show_default=True, help="Verdicts to compare with the model's."
)
@click.option(
    "--keep",
    "kept",
    type=click.Path(path_type=Path),
    help="Stores gradients and screens in this file for the next run.",
)
@click.option("--screen/--no-screen", default=True, help="Whether to run the screened searches.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Writes a PNG.")
def main(
    spec: Path, truth: Path | None, seeds: int, walks: int | None, batch: int, budget: int,
    sample: int, kept: Path | None, picture: Path | None, screen: bool,
) -> None:  # fmt: skip
    context = context_of(spec)
    table = read_truth(truth) if truth else verified_here(context, 600)
    verify = check(context, table, min(sample, len(table)))
    probes = tuple(next(iter(table.values())).probes)
    search_space = space_of(Config(probes=probes), context, ())
    asked = Asked(search_space.gradient, kept)
    search_space = replace(search_space, ids=torch.tensor(list(table)), gradient=asked.gradient)
    if screen:
        search_space = replace(
            search_space, scores=asked.scores(context, _first(context, probes), list(table))
        )
    most = min(budget, len(table))
    marks = [mark for mark in MARKS if mark <= most] or [most]
    traces: dict[str, list[Trace]] = {}
    for name, build in builders(search_space, batch).items():
        runs = seeds if name not in ("low norm", *ORDERED) else 1
        if name.startswith("gradient") and walks is not None:
            runs = walks
        screens = len(table) if name in SEARCHES and SEARCHES[name].screened else 0
        traces[name] = [
            replay(lambda: build(seed), table, budget, batch, asked, screens)  # noqa: B023
            for seed in range(runs)
        ]
        asked.save()
    traces = {name: runs for name, runs in traces.items() if runs}
    counts = ", ".join(f"{sum(map(c, table.values())):,} {kind}" for kind, c in KINDS.items())
    print(f"{len(table):,} tokens: {counts}")
    show(traces, marks, verify, asked)
    if picture:
        plot(traces, table, picture)


if __name__ == "__main__":
    main()
