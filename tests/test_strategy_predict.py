"""`predict` against the loop that a user of transformers would write."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glitchrun.errors import PreflightError, RunError
from glitchrun.events import Batch, Measured
from glitchrun.probing.sequence_scoring import ScoredSequence
from glitchrun.report.figures import next_token
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.strategies.context import Context
from glitchrun.strategies.predict import FORMATS
from glitchrun.strategies.predict.run import cases, is_intact, spellings
from tests.support.engine import context, one_at_a_time
from tests.support.reporting import run_of, step
from tests.support.tiny_models import tiny_mixtral

PROMPT = {"name": "fox", "text": "The quick brown", "chat": "Go on: The quick brown"}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """With Mistral's real tokenizer and the seed's template."""
    folder = tiny_mixtral(tmp_path_factory.mktemp("mixtral"), real_tokenizer=True)
    return context(folder, template="nowllm")


def ask(probed: Context, *prompts: dict[str, Any], **params: Any) -> list[Any]:
    strategy = STRATEGIES["predict"]
    config = strategy.configure({"prompts": list(prompts), **params})
    return list(strategy.run(config, probed, ()))


def rows(events: list[Any], table: str) -> list[Any]:
    entries = [e for event in events if isinstance(event, Batch) for e in event.entries]
    return [entry.cells for entry in entries if entry.table == table]


def test_prompts_have_one_bos_and_the_seed_s_space(mixtral: Context) -> None:
    seen = rows(ask(mixtral, PROMPT), "prompts")
    tokenizer = mixtral.backend.model.tokenizer
    texts = [row["text"] for row in seen]
    assert texts == [
        "The quick brown",
        "The quick brown ",
        "[INST]Go on: The quick brown[/INST]",
        "[INST]Go on: The quick brown[/INST] ",
    ]
    for row in seen:
        bos = tokenizer.bos_token_id
        assert row["ids"].count(bos) == 1
        assert row["ids"][0] == bos
        assert row["tokens"] == len(row["ids"])


def test_a_token_named_by_id_stands_there_by_that_id(mixtral: Context) -> None:
    text = "Repeat this exactly once: <#31415>!"
    raw, chat = rows(ask(mixtral, {"text": text}, formats=["raw", "chat"]), "prompts")
    tokenizer = mixtral.backend.model.tokenizer
    read = tokenizer.decode([31415])
    for row in (raw, chat):
        assert row["ids"].count(31415) == 1
        assert read in row["text"]
        assert "<#" not in row["text"]
    place = raw["ids"].index(31415)
    assert raw["ids"][:place] == tokenizer.encode("Repeat this exactly once: ")
    with pytest.raises(RunError, match="40000 is outside"):
        ask(mixtral, {"text": "say <#40000>"})


def test_a_continuation_is_the_likeliest_token_each_time(mixtral: Context) -> None:
    events = ask(mixtral, PROMPT, formats=["raw", "chat"], max_new_tokens=4)
    prompts = {row["case"]: row["ids"] for row in rows(events, "prompts")}
    tokenizer = mixtral.backend.model.tokenizer
    for row in rows(events, "predictions"):
        ids = list(prompts[row["case"]])
        said = []
        for _ in range(4):
            said.append(int(one_at_a_time(mixtral, [*ids, *said]).argmax()))
        assert tokenizer.decode(said).strip() == row["continuation"].strip() != ""
    (without,) = rows(ask(mixtral, PROMPT, formats=["raw"]), "predictions")
    assert without["continuation"] is None


def test_a_bos_that_is_written_out_is_not_doubled(mixtral: Context) -> None:
    (row,) = rows(ask(mixtral, {"text": "<s>The quick"}, formats=["raw"]), "prompts")
    assert row["ids"].count(mixtral.backend.model.tokenizer.bos_token_id) == 1


def test_numbers_are_those_of_the_whole_distribution(mixtral: Context) -> None:
    events = ask(mixtral, {**PROMPT, "expected": "fox jumps"}, top_k=5)
    prompts = {row["case"]: row["ids"] for row in rows(events, "prompts")}
    for row in rows(events, "predictions"):
        ids = prompts[row["case"]]
        p = one_at_a_time(mixtral, ids).double().softmax(-1)
        assert row["output_p"] == pytest.approx(float(p.max()), rel=1e-5)
        assert row["entropy"] == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)
        best, ranks = -math.inf, []
        for form in spellings("fox jumps", mixtral.backend.model.tokenizer):
            found = _by_hand(mixtral, ids, form)
            if found[0] > best:
                best, ranks = found
        assert row["logprob"] == pytest.approx(best, rel=1e-5)
        assert row["ranks"] == ranks
        assert row["rank"] == ranks[0]
        assert row["sequence_p"] == pytest.approx(math.exp(best), rel=1e-4)
        top = [one for one in rows(events, "top") if one["case"] == row["case"]]
        assert [one["id"] for one in top] == p.topk(5).indices.tolist()
        assert [one["p"] for one in top] == pytest.approx(p.topk(5).values.tolist(), rel=1e-5)


def _by_hand(probed: Context, ids: list[int], form: tuple[int, ...]) -> tuple[float, list[int]]:
    """Log-probability and ranks from ONE forward pass over prompt and continuation."""
    whole = torch.tensor([[*ids, *form]])
    with torch.no_grad():
        logits = probed.backend.model.module(input_ids=whole).logits[0].double()
    total, ranks = 0.0, []
    for place, target in enumerate(form):
        row = logits[len(ids) - 1 + place]
        total += float(row.log_softmax(-1)[target])
        ranks.append(1 + int((row > row[target]).sum()))
    return total, ranks


def test_metrics_are_means_over_what_has_an_expectation(mixtral: Context) -> None:
    events = ask(
        mixtral,
        {**PROMPT, "expected": "fox"},
        {"text": "2 + 2 =", "expected": "4"},
        {"text": "no expectation"},
        top_k=1,
    )
    found = {event.name: event for event in events if isinstance(event, Measured)}
    answers = [row for row in rows(events, "predictions") if row["logprob"] is not None]
    by_format = {f: [row for row in answers if row["format"] == f] for f in FORMATS}
    assert found["prompts"].value == 3
    for form, own in by_format.items():
        name = form.replace("-", "_")
        assert found[f"{name}_rank"].value == sum(row["rank"] for row in own) / 2
        assert found[f"{name}_rank"].n == 2
    gains = [
        chat["logprob"] - raw["logprob"]
        for raw, chat in zip(by_format["raw"], by_format["chat"], strict=True)
    ]
    assert found["improvement"].value == pytest.approx(sum(gains) / 2)
    assert found["improved"].value == sum(gain > 0 for gain in gains)


def test_formats_that_were_not_asked_for_have_no_number(mixtral: Context) -> None:
    events = ask(mixtral, {"text": "The quick", "expected": "brown"}, formats=["raw"])
    found = {event.name: event for event in events if isinstance(event, Measured)}
    assert found["raw_rank"].value is not None
    assert found["chat_rank"] == Measured("chat_rank", None, 0)
    assert found["improvement"] == Measured("improvement", None, 0)


def test_an_expectation_is_tried_with_and_without_a_space(mixtral: Context) -> None:
    tokenizer = mixtral.backend.model.tokenizer
    forms = spellings("fox", tokenizer)
    assert [tokenizer.convert_ids_to_tokens(form) for form in forms] == [["fox"], ["▁f", "ox"]]
    assert set(spellings(" fox", tokenizer)) == set(forms)


def test_a_space_behind_the_prompt_is_told_to_break_the_tokens(mixtral: Context) -> None:
    """`The quick brown ` + `fox` is no text that the tokenizer would cut like this."""
    tokenizer = mixtral.backend.model.tokenizer
    bare, spaced = (ScoredSequence(ids, (0.0,), (1,)) for ids in spellings("fox", tokenizer))
    plain, behind_space = cases(PROMPT, "fox", ("raw", "raw-space"), mixtral)
    assert is_intact(plain, spaced, tokenizer)
    assert not is_intact(behind_space, bare, tokenizer)


def test_a_template_without_system_text_refuses_the_spec_s(mixtral: Context) -> None:
    with_system = replace(mixtral, spec=replace(mixtral.spec, system="Be brief."))
    assert rows(ask(with_system, PROMPT, formats=["raw"]), "prompts")
    with pytest.raises(PreflightError, match="system"):
        ask(with_system, PROMPT)


def test_the_plot_shows_prompts_by_formats(mixtral: Context, tmp_path: Path) -> None:
    events = ask(mixtral, {**PROMPT, "expected": "fox"}, *[{"text": f"$x_{n}"} for n in range(6)])
    entries = [e for event in events if isinstance(event, Batch) for e in event.entries]
    drawing = next_token.draw_predictions(run_of(tmp_path, step("ask", "predict", *entries)).steps)
    assert drawing is not None
    assert len(drawing.figure.axes) == next_token.PROMPTS * len(FORMATS)
    assert "3 more prompts in the table" in drawing.caption


def test_tokens_named_by_id_beside_their_usual_tokenization(mixtral: Context) -> None:
    tokenizer = mixtral.backend.model.tokenizer
    first, second = (tokenizer.convert_tokens_to_ids(f"<0x{byte}>") for byte in ("C3", "A9"))
    prompt = {"text": f"na<#{first}><#{second}> x", "expected": "y"}
    events = ask(mixtral, prompt, formats=["raw", "raw-usual"])
    by_id, usual = rows(events, "prompts")
    assert by_id["text"] == usual["text"] == "naé x"
    assert {first, second} <= set(by_id["ids"])
    assert usual["ids"] == tokenizer.encode("naé x")
    own, other = (row["logprob"] for row in rows(events, "predictions"))
    gain = {e.name: e.value for e in events if isinstance(e, Measured)}["usual_gain"]
    assert gain == pytest.approx(own - other)
    with pytest.raises(RunError, match="no whole characters"):
        ask(mixtral, {"text": f"<#{first}> x"}, formats=["raw-usual"])
