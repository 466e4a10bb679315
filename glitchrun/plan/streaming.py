"""What a streamed model needs: tokens of a pass, bytes read, and memory.

A pass brings many tokens through the model together, and reads every weight once. More tokens to a
pass are fewer passes, but also more memory, and more work that a kill loses. So a pass takes as
many tokens as memory allows, but no more than are needed for reading to take a small part of the
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.stream_units import BLOCK_BYTES, Units
from glitchrun.plan.passes import (
    CACHE_HEADROOM,
    CHUNK_ROWS,
    LOGIT_BYTES,
    SAMPLE_BATCH,
    WIDENED_BYTES,
)
from glitchrun.plan.weight_bytes import ITEM_BYTES, QUANTIZED, active_parameters, load_dtype
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import Work, Workload

READ_SPEED = 0.5e9
"""Bytes read per second that are assumed: a slow solid-state disk."""
_READ_SHARE = 0.02
"""Share of a pass's computing that reading may take at that speed, if the two did not overlap.
Longer passes would hardly be faster."""
_RECHECK_SHARE = 0.2
"""Share of a batch's time that reading the weights once more for its near-ties may take."""
_LOST_SECONDS = 120.0
"""Work that a kill may lose, in passes at the assumed speeds, if a batch has several."""
_FLOPS = {"cpu": 1.5e11, "cuda": 3e14}
"""Floating-point operations per second assumed for that share."""
_POSITIONS = 48
"""Positions of a prompt after its prefix, where the template does not tell."""
_SCREENED = 2


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """Sizes of the passes of a streamed model; in bytes unless a field says otherwise."""

    stored_bytes: int
    """Weights in the files that are read."""
    pass_bytes: int
    """Read in a pass: `stored_bytes`, and a tied embedding a second time, as the head."""
    headless_bytes: int
    """Read in a pass that computes no logits."""
    capacity: int
    """Weights in memory at a time."""
    verify_tokens: int
    """Tokens verified in a pass."""
    batch_passes: int
    """Passes whose verdicts are written together, and whose near-ties share one more pass."""
    screen_tokens: int
    """Tokens screened in a pass."""
    answer_tokens: int
    """Tokens of a pass whose answers are generated: keys and values of all layers are kept."""
    activation_bytes: int
    """The activations of all tokens of a pass."""
    scratch_bytes: int
    """Everything else: activations of one layer for some rows, widened weights; or what the head
    and its logits take beyond the layers."""
    holds_head: bool
    """Whether the head is kept while it is used; else it is read again for each group of tokens."""

    @property
    def total_bytes(self) -> int:
        """Memory besides that of the process itself."""
        return self.capacity + self.activation_bytes + self.scratch_bytes

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def held_bytes(header: Header, quantization: str) -> int:
    """Bytes that a streamed weight takes in memory; int8 and int4 weights are dequantized."""
    if quantization in QUANTIZED or header.prequantized:
        return ITEM_BYTES["float32"]
    return ITEM_BYTES[load_dtype(header, quantization)]


def stream_plan(
    header: Header,
    quantization: str,
    units: Units,
    kind: str,
    *,
    free: int | None = None,
    positions: tuple[int, int] = (_POSITIONS, _POSITIONS),
    tokens: tuple[int | None, int | None] = (None, None),
    generated: int = 0,
) -> StreamPlan:
    """Returns the sizes of passes.

    Args:
        header: The model's checkpoint.
        quantization: As in the spec.
        units: The checkpoint's units.
        kind: Kind of device, cpu or cuda.
        free: Bytes free besides the process itself; None for no limit.
        positions: The most positions of a prompt's shared prefix, and of what follows it.
        tokens: The most tokens that a step verifies, and that it screens; None where unknown.
        generated: The most positions of an answer that is generated; 0 if none is.
    """
    sizes = _Sizes(header, held_bytes(header, quantization), units, kind, *positions)
    capacity, holds_head = sizes.capacity, True
    if free is not None:
        if sizes.roomy_capacity + sizes.scratch < free // 3:
            capacity = sizes.roomy_capacity
        holds_head = sizes.at_head(CHUNK_ROWS, held=True) <= free
    verify, screen = (
        sizes.tokens(count, free, capacity, most, holds_head)
        for count, most in zip((sizes.suffix, _SCREENED), tokens, strict=True)
    )
    rows = max(verify * sizes.suffix, screen * _SCREENED)
    activations = rows * sizes.position
    answered = sizes.suffix * sizes.position + sizes.cached(generated)
    answers = verify
    if generated and free is not None:
        answers = min(verify, max(1, (free - capacity - sizes.scratch) // answered))
    if generated:
        activations = max(activations, answers * answered)
    in_layers = capacity + activations + sizes.scratch
    at_head = sizes.at_head(max(verify, screen), held=holds_head)
    return StreamPlan(
        stored_bytes=units.pass_bytes if header.head else units.headless_bytes + units.norm.nbytes,
        pass_bytes=units.pass_bytes,
        headless_bytes=units.headless_bytes,
        capacity=capacity,
        verify_tokens=verify,
        batch_passes=sizes.batch_passes(verify),
        screen_tokens=screen,
        answer_tokens=answers,
        activation_bytes=activations,
        scratch_bytes=max(in_layers, at_head) - capacity - activations,
        holds_head=holds_head,
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    header: Header
    held: int
    units: Units
    kind: str
    prefix: int
    suffix: int

    @property
    def width(self) -> int:
        """Bytes per activation."""
        return ITEM_BYTES["float32"] if self.kind == "cpu" else self.held

    @property
    def _largest(self) -> int:
        parts = (*self.units.embedding, *self.units.body, *self.units.head)
        return max(unit.numel for unit in parts) * self.held

    @property
    def capacity(self) -> int:
        """The largest unit, and the largest tensor of the next one."""
        return self._largest + self.units.largest_tensor * self.held

    @property
    def roomy_capacity(self) -> int:
        """Two units: one is used while the next one is read."""
        return 2 * self._largest

    def at_head(self, tokens: int, *, held: bool) -> int:
        """Memory while the logits of a pass are computed: the layers' weights are freed then."""
        rows = tokens * self.header.dims.hidden_size * self.width
        head = self.units.whole_head.numel * self.held if held else 2 * BLOCK_BYTES
        return rows + head + 2 * LOGIT_BYTES + self._widened

    @property
    def _widened(self) -> int:
        return WIDENED_BYTES if self.held < self.width else 0

    @property
    def position(self) -> int:
        """What one position of a pass keeps between layers."""
        dims = self.header.dims
        streams = 2 if dims.num_experts else 1  # beside the residual stream, its norm
        return streams * dims.hidden_size * self.width + 12 * dims.top_k

    def cached(self, generated: int) -> int:
        """Keys and values of all layers of a row whose answer has `positions`."""
        dims = self.header.dims
        length = self.prefix + self.suffix + max(generated, CACHE_HEADROOM)
        return 2 * dims.num_layers * dims.num_kv_heads * dims.head_dim * length * self.width

    @property
    def scratch(self) -> int:
        """Activations of one layer for the rows of a chunk, with widened weights."""
        dims, rows = self.header.dims, CHUNK_ROWS * self.suffix
        heads = dims.num_heads * dims.head_dim
        kv = dims.num_kv_heads * dims.head_dim
        length = self.prefix + max(self.suffix, CACHE_HEADROOM)
        attention = rows * (2 * dims.hidden_size + 4 * heads + 2 * kv)
        attention += 2 * CHUNK_ROWS * length * (kv + heads)
        mlp = rows * (2 * dims.hidden_size + 2 * dims.intermediate_size)
        return max(attention, mlp) * self.width + self._widened

    @property
    def is_wide(self) -> bool:
        """Whether weights are in float32 while they are used."""
        return self.held == ITEM_BYTES["float32"]

    @property
    def _reading(self) -> float:
        """Seconds that a pass reads."""
        return self.units.pass_bytes / READ_SPEED

    def _computing(self, positions: int) -> float:
        """Seconds that a pass computes for a token with so many positions."""
        return 2 * active_parameters(self.header) * positions / _FLOPS[self.kind]

    def batch_passes(self, tokens: int) -> int:
        """Passes of so many tokens whose near-ties are evaluated together: one where passes are in
        float32, which leaves few."""
        if self.kind == "cpu" and (self.header.dims.num_experts or self.is_wide):
            return 1
        seconds = max(self._reading, tokens * self._computing(self.suffix))
        wanted = -(-self._reading // (_RECHECK_SHARE * seconds))
        return max(1, int(min(wanted, _LOST_SECONDS // seconds)))

    def tokens(
        self, positions: int, free: int | None, capacity: int, most: int | None, holds_head: bool
    ) -> int:
        """Tokens of a pass with so many positions each."""
        count = _rounded(self._reading / _READ_SHARE / self._computing(positions))
        if most is not None:
            count = min(count, _rounded(most))
        if free is not None:
            last = self.header.dims.hidden_size * self.width
            fitting = min(
                (free - capacity - self.scratch) // (positions * self.position),
                (free - self.at_head(0, held=holds_head)) // last,
            )
            count = min(count, fitting // CHUNK_ROWS * CHUNK_ROWS)
        return max(CHUNK_ROWS, count)


def _rounded(count: float) -> int:
    """A number of tokens as a whole number of chunks."""
    return CHUNK_ROWS * max(1, -(-int(count) // CHUNK_ROWS))


def growing_passes(tokens: int, rows: int) -> int:
    """Passes of a cascade that verifies so many tokens, of at most `rows` each.

    Its front is verified ahead, in passes of as many tokens as before; the audit is one pass more.
    """
    done = passes = 0
    while done < tokens:
        done += min(rows, max(CHUNK_ROWS, done))
        passes += 1
    return passes + 1


def text_groups(texts: Sequence[int], rows: int, start: int = 0) -> list[range]:
    """Prompts that share passes, by their indices from `start` on.

    Args:
        texts: Texts of each prompt.
        rows: Texts of a pass; a prompt with more of them has passes of its own.
        start: The first prompt.
    """
    groups: list[range] = []
    room = 0
    for place, count in enumerate(texts[start:], start):
        if count > room:
            groups.append(range(place, place))
            room = rows
        groups[-1] = range(groups[-1].start, place + 1)
        room -= count
    return groups


def whole_passes(load: Workload, plan: StreamPlan, work: Work) -> tuple[int, int]:
    """The passes over the weights that a step needs: whole ones, and those without the head.

    An answer that is generated takes a pass for its prefix, without the head, and one for each
    position. Passes in which near-ties are evaluated again are not counted.

    Args:
        load: A forward pass of the step.
        plan: Sizes of passes.
        work: The step's work.
    """
    if load.texts:
        return len(text_groups(load.texts, plan.verify_tokens)) * load.text_passes, 0
    is_ordered = load.search is not None and SEARCHES[load.search].ordered
    batch = None if is_ordered or load.grows else load.batch
    rows = plan.verify_tokens if batch is None else min(batch, plan.verify_tokens)
    tokens = work.tokens or work.prompts
    probes, generated = -(-work.prompts // max(1, tokens)), len(load.generated)
    answers = -(-tokens // min(rows, plan.answer_tokens))
    ends_itself = load.search is not None and SEARCHES[load.search].ends_itself
    verified = growing_passes(tokens, rows) if ends_itself else -(-tokens // rows)
    whole = (probes - generated) * verified
    whole += (generated + sum(load.generated)) * answers
    headless = generated * answers
    whole += -(-work.screens // plan.screen_tokens)
    if work.continuations:  # one pass for each position of a batch
        batches = -(-work.continuations // (load.batch or SAMPLE_BATCH["cpu"]))
        whole += batches * (1 + work.new_tokens // work.continuations)
    return whole, headless + (1 if work.screens else 0)
