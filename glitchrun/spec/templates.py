"""The template families: how a conversation is written for the models of a family.

A family is one entry of `_ALL`. Detection, `glitchrun list templates`, `validate` and the prompts
read the table. Other packages add families through the entry point group `glitchrun.templates`.

Each format is taken from model cards and reference tokenizers. It has no BOS token: `render.py`
adds that by id. The assistant's answer begins where `user` ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from glitchrun.spec.registry import Registry

TEMPLATE_MODES = {
    "auto": "detected from the model",
    "tokenizer": "the tokenizer's own chat template",
    "raw": "nothing around the text",
}
"""Values of `template` that name no family, and what each means."""


@dataclass(frozen=True, slots=True)
class Family:
    """One way of writing a conversation as text."""

    name: str
    user: str
    """A user turn up to where the answer begins; contains `{user}`."""
    answer: str
    """An earlier answer of the assistant and the text that closes it; contains `{answer}`."""
    opening: str = ""
    """The text that every conversation begins with."""
    system: str | None = None
    """The system turn, before the first user turn; contains `{system}`."""
    system_in_user: str | None = None
    """The first user text of families that write the system text into it; contains `{system}` and
    `{user}`. A family with neither this nor `system` carries no system text."""
    default_system: str | None = None
    """The system text where the spec and the probe give none; None for no system turn."""
    stop: str | None = None
    """The text that ends an answer."""
    bos: bool = False
    """Whether every conversation begins with BOS, if the tokenizer has one. Otherwise it does only
    where the tokenizer itself adds BOS."""
    folder_names: tuple[str, ...] = ()
    """Models recognised by the last component of their path or hub id alone."""
    markers: tuple[str, ...] = ()
    """Tokens by which `auto` recognises the family: the vocabulary contains all of them."""
    before_chat_template: bool = False
    """Whether `auto` looks for the markers before it tries the tokenizer's chat template."""

    @property
    def carries_system(self) -> bool:
        """Whether a conversation can have a system text."""
        return self.system is not None or self.system_in_user is not None

    def format(self) -> dict[str, Any]:
        """The fields that decide a prompt's text, and `folder_names`: part of a run's key."""
        fields = asdict(self)
        return {key: fields[key] for key in fields if key not in _DETECTION}


_DETECTION = ("markers", "before_chat_template")

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
        name="llama4",
        user="<|header_start|>user<|header_end|>\n\n{user}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n",
        answer="{answer}<|eot|>",
        system="<|header_start|>system<|header_end|>\n\n{system}<|eot|>",
        stop="<|eot|>",
        bos=True,
        markers=("<|header_start|>", "<|eot|>"),
    ),
    Family(
        name="llama3",
        user=_LLAMA3_TURN,
        answer="{answer}<|eot_id|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        stop="<|eot_id|>",
        bos=True,
        markers=("<|start_header_id|>", "<|eot_id|>"),
    ),
    # 3.1, 3.2 and 3.3 always begin with dates. The date is the one in their model cards, because a
    # prompt must not change from day to day.
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
        name="gemma",
        user="<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n",
        answer="{answer}<end_of_turn>\n",
        stop="<end_of_turn>",
        bos=True,
        markers=("<start_of_turn>", "<end_of_turn>"),
    ),
    Family(
        name="phi4",
        user="<|im_start|>user<|im_sep|>{user}<|im_end|><|im_start|>assistant<|im_sep|>",
        answer="{answer}<|im_end|>",
        system="<|im_start|>system<|im_sep|>{system}<|im_end|>",
        stop="<|im_end|>",
        markers=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    Family(
        name="chatml",
        user=_CHATML_TURN,
        answer="{answer}<|im_end|>\n",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        stop="<|im_end|>",
        markers=("<|im_start|>", "<|im_end|>"),
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
        name="phi",
        user="<|user|>\n{user}<|end|>\n<|assistant|>\n",
        answer="{answer}<|end|>\n",
        system="<|system|>\n{system}<|end|>\n",
        stop="<|end|>",
        markers=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Family(
        name="mistral",
        user="[INST] {user} [/INST]",
        answer="{answer}</s>",
        stop="</s>",
        bos=True,
        markers=("[INST]", "[/INST]"),
    ),
    Family(
        name="llama2",
        user="[INST] {user} [/INST]",
        answer="{answer} </s>",
        system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n{user}",
        stop="</s>",
        bos=True,
    ),
    # gpt-oss. The template opens the final channel, so that a probe's answer begins there, without
    # reasoning. A system text is the developer's message. The date is the one in the format's own
    # examples, because a prompt must not change from day to day.
    # `auto` chooses it before the model's chat template, which ends before the channel: an answer
    # cannot begin there.
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
        markers=("<|start|>", "<|channel|>", "<|message|>", "<|return|>"),
        before_chat_template=True,
    ),
    # For models without instruction tuning: paragraphs and nothing else.
    Family(
        name="plain", user="{user}\n", answer="{answer}\n\n", system="{system}\n\n", stop="\n\n"
    ),
)

FAMILIES = Registry(
    "template", "glitchrun.templates", Family, {family.name: family for family in _ALL}
)
"""Every family by its name. The order is that in which `auto` looks for `markers`: the more
particular family comes first."""

RAW = Family(name="raw", user="{user}", answer="{answer}")
"""`template: raw`: the texts one after another, without a system text."""


def without_system(template: str) -> bool:
    """Whether `template` of a spec is known to carry no system text before the model is known;
    false for `auto` and `tokenizer`."""
    family = RAW if template == RAW.name else FAMILIES.get(template)
    return family is not None and not family.carries_system
