"""A genetic step's tables and metrics, as its fragment declares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from glitchrun.events import Batch, Entry, Measured
from glitchrun.fitness import Ids, increase, reduction
from glitchrun.prompts.render import intact_sequences
from glitchrun.prompts.tokenizer import decode_runs_inside
from glitchrun.search.evolution import Birth, Evolution, Generation
from glitchrun.strategies.genetic.task import Scores, Task

EVALUATED = ("impacts", "sequences")
"""The tables whose rows are evaluations."""
_BEST = 20
_ANCESTORS = 100
_LIKELY = 12
"""Most likely next tokens shown, before and after each."""

Row = dict[str, Any]


def baseline(task: Task) -> Row:
    """The row of the prompt without a sequence: goals, their probabilities and ranks."""
    p = task.scorer.distribution(())
    target = int(p.argmax()) if task.given is None else task.given
    vocabulary = task.context.vocabulary
    row = {
        "base_text": task.config.base_text,
        "objective": task.objective,
        "format": task.config.format,
        "target": vocabulary.text(target),
        "target_id": target,
        "target_given": task.given is not None,
        "target_p": float(p[target]),
        "target_rank": _rank(p, target),
        "wanted": None,
        "wanted_id": task.wanted,
        "wanted_p": None,
        "wanted_rank": None,
        "pool": len(task.pool),
        "prompt": task.place.prefix_text + "{sequence}" + task.place.suffix_text,
    }
    if task.wanted is not None:
        row["wanted"] = vocabulary.text(task.wanted)
        row["wanted_p"] = float(p[task.wanted])
        row["wanted_rank"] = _rank(p, task.wanted)
    return row


def goals(row: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids of the target and the wanted token, if any, and their probabilities, from a baseline."""
    names = [name for name in ("target", "wanted") if row[f"{name}_id"] is not None]
    return tuple(row[f"{n}_id"] for n in names), tuple(row[f"{n}_p"] for n in names)


def impacts(task: Task, scores: Scores) -> list[Entry]:
    """One row for each single token."""
    rows = []
    for ids, evaluated in zip(scores, _evaluated(task, scores), strict=True):
        token = task.context.vocabulary.token(ids[0])
        known = {"token_id": token.id, "token": token.text, "category": token.category}
        shown = {key: evaluated[key] for key in ("fitness", "target_p", "wanted_p")}
        shown["presented_intact"] = evaluated["presented_intact"]
        rows.append(Entry("impacts", known | shown))
    return rows


def sequences(task: Task, scores: Scores, births: Mapping[Ids, Birth]) -> list[Entry]:
    """One row for each sequence evaluated."""
    rows = []
    for ids, evaluated in zip(scores, _evaluated(task, scores), strict=True):
        rows.append(Entry("sequences", evaluated | _birth(births[ids])))
    return rows


def generation(task: Task, summary: Generation, evaluations: int) -> Entry:
    """One generation's row of the table `generations`."""
    text = decode_runs_inside(task.context.backend.model.tokenizer, [summary.best])[0]
    cells = {
        "generation": summary.number,
        "best": summary.best_fitness,
        "mean": summary.mean_fitness,
        "diversity": summary.diversity,
        "mutation": summary.mutation,
        "evaluations": evaluations,
        "injected": summary.injected,
        "stagnant": summary.stagnant,
        "best_text": text,
        "best_ids": _written(summary.best),
    }
    return Entry("generations", cells)


def result(task: Task, evolution: Evolution, scores: Scores) -> list[Entry]:
    """The best sequences, the winner's ancestors, and what comes next without and with it."""
    ranked = evolution.ranked(evolution.fitness)
    return [
        *_best(task, evolution, {ids: scores[ids] for ids in ranked[:_BEST]}),
        *_ancestry(task, evolution, ranked[0], scores),
        *_distribution(task, ranked[0]),
    ]


def recorded_scores(batch: Batch, table: str) -> dict[Ids, tuple[float, ...]]:
    """The probabilities in the rows of `impacts` or `sequences`, by sequence."""
    found = {}
    for entry in batch.entries:
        if entry.table == table:
            cells = entry.cells
            ids = (cells["token_id"],) if table == "impacts" else read_ids(cells["ids"])
            numbers = (cells["target_p"], cells["wanted_p"])
            found[ids] = tuple(p for p in numbers if p is not None)
    return found


def metrics(batches: Sequence[Batch], ended_early: str | None) -> Iterator[Measured]:
    """The metrics of the step. Rates count only batches that evaluate the model."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for entry in (entry for batch in batches for entry in batch.entries):
        rows.setdefault(entry.table, []).append(entry.cells)
    start, best, curve = rows["baseline"][0], rows["best"][0], rows["generations"]
    n = sum(len(rows.get(table, ())) for table in EVALUATED)
    timed = [batch for batch in batches if batch.counters["evaluations"]]
    seconds = sum(batch.seconds for batch in timed)
    yield Measured("best_fitness", best["fitness"], n)
    for name, gain, what in (("target", reduction, "reduction"), ("wanted", increase, "increase")):
        before, after = start[f"{name}_p"], best[f"{name}_p"]
        known = before is not None
        yield Measured(f"{name}_p0", before, n if known else 0)
        yield Measured(f"{name}_p1", after, n if known else 0)
        yield Measured(what, gain(before, after) if known else None, n if known else 0)
    yield Measured("evaluations", n, n)
    yield Measured("evaluations_per_second", n / seconds if seconds else None, n)
    yield Measured("generations", len(curve) - 1, n)
    for why in ("fitness", "patience"):
        yield Measured(f"stopped_by_{why}", int(ended_early == why), n)
    yield Measured("diversity", curve[-1]["diversity"], n)
    yield Measured("pool", start["pool"], n)
    yield Measured("not_intact", sum(batch.counters["not_intact"] for batch in batches), n)


def read_ids(text: str) -> Ids:
    """The sequence that a table writes as ids with spaces between them."""
    return tuple(map(int, text.split()))


def _written(ids: Ids) -> str:
    return " ".join(map(str, ids))


def _evaluated(task: Task, scores: Scores) -> list[Row]:
    """The measured cells of each sequence."""
    if not scores:
        return []
    tokenizer = task.context.backend.model.tokenizer
    texts = decode_runs_inside(tokenizer, list(scores))
    kept = intact_sequences(task.place, list(scores), tokenizer)
    return [
        {
            "ids": _written(ids),
            "text": text,
            "fitness": task.fitness(p),
            "target_p": p[0],
            "wanted_p": p[1] if len(p) > 1 else None,
            "presented_intact": intact,
        }
        for (ids, p), text, intact in zip(scores.items(), texts, kept, strict=True)
    ]


def _birth(birth: Birth) -> Row:
    parents = [_written(parent) for parent in birth.parents]
    return {"generation": birth.generation, "how": birth.how, "parents": parents}


def _best(task: Task, evolution: Evolution, scores: Scores) -> Iterator[Entry]:
    for place, row in enumerate(_evaluated(task, scores), start=1):
        birth = _birth(evolution.births[read_ids(row["ids"])])
        yield Entry("best", {"place": place} | row | birth)


def _ancestry(task: Task, evolution: Evolution, winner: Ids, scores: Scores) -> Iterator[Entry]:
    line = evolution.ancestors(winner)[:_ANCESTORS]
    line.sort(key=lambda ids: -evolution.births[ids].generation)
    shown = ("generation", "how", "ids", "text", "fitness", "parents")
    for row in _evaluated(task, {ids: scores[ids] for ids in line}):
        cells = row | _birth(evolution.births[read_ids(row["ids"])])
        yield Entry("ancestry", {name: cells[name] for name in shown})


def _distribution(task: Task, winner: Ids) -> Iterator[Entry]:
    """Rows of the goals and the most likely tokens of both distributions, by `p_before`."""
    before, after = task.scorer.distribution(()), task.scorer.distribution(winner)
    likely = [p.topk(min(_LIKELY, len(p))).indices.tolist() for p in (before, after)]
    shown = {*likely[0], *likely[1], *task.scorer.goals}
    for token_id in sorted(shown, key=lambda i: (-float(before[i]), i)):
        cells = {
            "token": task.context.vocabulary.text(token_id),
            "token_id": token_id,
            "p_before": float(before[token_id]),
            "p_after": float(after[token_id]),
            "rank_before": _rank(before, token_id),
            "rank_after": _rank(after, token_id),
        }
        yield Entry("distribution", cells)


def _rank(p: torch.Tensor, token_id: int) -> int:
    return int((p > p[token_id]).sum()) + 1
