"""Known template families, as data.

Each is how its model cards and reference tokenizers write a conversation, without the BOS token,
which `render.py` adds by id. The assistant's answer begins where `user` ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from glitchrun.spec.templates import TEMPLATE_MODES, TEMPLATE_NAMES

__all__ = ["FAMILIES", "RAW", "TEMPLATE_MODES", "TEMPLATE_NAMES", "Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """One way of writing a conversation as text."""

    name: str
    user: str
    """A user turn up to where the answer begins; holds `{user}`."""
    answer: str
    """An earlier answer of the assistant and what closes it; holds `{answer}`."""
    opening: str = ""
    """What every conversation begins with."""
    system: str | None = None
    """The system turn, before the first user turn; holds `{system}`."""
    system_in_user: str | None = None
    """What the first user text becomes where the family writes its system text there; holds
    `{system}` and `{user}`. A family with neither this nor `system` carries no system text."""
    default_system: str | None = None
    """System text of prompts that are given none; None for no system turn."""
    stop: str | None = None
    """The text that ends an answer."""
    bos: bool = False
    """True where a conversation always begins with BOS (where the tokenizer has one); otherwise
    BOS stands there only if the tokenizer adds it by itself."""
    folder_names: tuple[str, ...] = ()
    """Models recognised by the last component of their path or hub id alone."""

    @property
    def carries_system(self) -> bool:
        return self.system is not None or self.system_in_user is not None


_CHATML_TURN = "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
_LLAMA3_TURN = (
    "<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)

_ALL = (
    Family(
        name="nowllm",
        user="[INST]{user}[/INST]",
        answer="{answer}</s>",
        stop="</s>",
        bos=True,
        folder_names=("nowllm-0829",),
    ),
    Family(
        name="mistral",
        user="[INST] {user} [/INST]",
        answer="{answer}</s>",
        stop="</s>",
        bos=True,
    ),
    Family(
        name="llama2",
        user="[INST] {user} [/INST]",
        answer="{answer} </s>",
        system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n{user}",
        stop="</s>",
        bos=True,
    ),
    Family(
        name="llama3",
        user=_LLAMA3_TURN,
        answer="{answer}<|eot_id|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        stop="<|eot_id|>",
        bos=True,
    ),
    # 3.1, 3.2 and 3.3 always open with dates; the day is the one their model cards show, so that a
    # prompt does not change overnight.
    Family(
        name="llama3.1",
        user=_LLAMA3_TURN,
        answer="{answer}<|eot_id|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{system}<|eot_id|>",
        default_system="",
        stop="<|eot_id|>",
        bos=True,
    ),
    Family(
        name="llama4",
        user="<|header_start|>user<|header_end|>\n\n{user}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n",
        answer="{answer}<|eot|>",
        system="<|header_start|>system<|header_end|>\n\n{system}<|eot|>",
        stop="<|eot|>",
        bos=True,
    ),
    Family(
        name="chatml",
        user=_CHATML_TURN,
        answer="{answer}<|im_end|>\n",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        stop="<|im_end|>",
    ),
    # ChatML with the default system turn of Qwen's first chat models (Qwen 1.5 and 2).
    Family(
        name="qwen",
        user=_CHATML_TURN,
        answer="{answer}<|im_end|>\n",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        default_system="You are a helpful assistant.",
        stop="<|im_end|>",
    ),
    Family(
        name="gemma",
        user="<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n",
        answer="{answer}<end_of_turn>\n",
        stop="<end_of_turn>",
        bos=True,
    ),
    Family(
        name="phi",
        user="<|user|>\n{user}<|end|>\n<|assistant|>\n",
        answer="{answer}<|end|>\n",
        system="<|system|>\n{system}<|end|>\n",
        stop="<|end|>",
    ),
    Family(
        name="phi4",
        user="<|im_start|>user<|im_sep|>{user}<|im_end|><|im_start|>assistant<|im_sep|>",
        answer="{answer}<|im_end|>",
        system="<|im_start|>system<|im_sep|>{system}<|im_end|>",
        stop="<|im_end|>",
    ),
    # gpt-oss. Answers are spoken in the final channel, which is written here, so that a probe's
    # answer begins in it: no reasoning goes before. System texts are the developer's. The day is
    # that of the format's own examples, so that a prompt does not change overnight.
    # (OpenAI, "Harmony Response Format", cookbook.openai.com/articles/openai-harmony)
    Family(
        name="harmony",
        opening="<|start|>system<|message|>You are ChatGPT, a large language model trained by "
        "OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\nReasoning: medium\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
        "<|end|>",
        user="<|start|>user<|message|>{user}<|end|><|start|>assistant<|channel|>final<|message|>",
        answer="{answer}<|end|>",
        system="<|start|>developer<|message|># Instructions\n\n{system}<|end|>",
        stop="<|return|>",
    ),
    # For models that were never taught a conversation: paragraphs, and nothing else.
    Family(
        name="plain", user="{user}\n", answer="{answer}\n\n", system="{system}\n\n", stop="\n\n"
    ),
)

FAMILIES = MappingProxyType({family.name: family for family in _ALL})
"""Every family by its name."""

RAW = Family(name="raw", user="{user}", answer="{answer}")
"""`template: raw`: the texts one after another, nothing added; carries no system text."""
