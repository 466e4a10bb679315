"""Families of causal language models, built small: they run to the numbers of their own plain
forward pass, or are refused with the reason. `make models` tries all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.families.page import row
from tools.families.small import Family, families
from tools.families.trial import trial

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
HYBRID = (
    "bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid inkling_text jamba kimi_linear "
    "lfm2 lfm2_moe lfm3 mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5_text qwen3_next "
    "recurrent_gemma rwkv xlstm zamba zamba2 zaya"
)
"""Families with states of recurrences or convolutions."""
OTHERS = (
    "bart bert bloom codegen cohere2 cpmant ctrl deepseek_v3 exaone4 falcon gemma gemma2 "
    "gemma3_text gemma4_text glm4 gpt2 gpt_neo gpt_neox gpt_oss gptj granite hrm_text "
    "hunyuan_v1_dense llama llama4_text mellum mimo_v2_flash minicpm3 mistral mixtral moshi mpt "
    "musicgen olmo2 openai-gpt opt phi phi3 prophetnet qwen2 qwen2_moe qwen3 qwen3_moe reformer "
    "roberta smollm3 stablelm starcoder2 whisper xglm xlm xlnet xmod"
)


def named(kind: str) -> Family:
    return next(family for family in families() if family.kind == kind)


def test_every_family_has_a_row_in_the_docs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [one for one in families() if f"| `{one.kind}` | `{one.name}` |" not in page]
    assert not missing, "run: make models"
    assert "differs**" not in page
    assert "crashes" not in page


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*HYBRID.split(), *OTHERS.split()])
def test_a_family_gives_its_own_numbers_or_is_refused(kind: str) -> None:
    result = trial(named(kind))
    page = PAGE.read_text(encoding="utf-8")
    assert result.outcome in ("runs", "refused", "not built"), result
    if result.outcome == "runs":
        assert row(result) in page, "run: make models"
    else:
        assert result.reason
        assert f"| `{kind}` | `{result.name}` | " in page
