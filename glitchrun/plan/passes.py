"""Forward passes: their batch sizes by kind of device, which runs use and plans count on, and their
memory besides the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glitchrun.checkpoint.headers import Header
from glitchrun.plan.weight_bytes import ITEM_BYTES, Weights
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import Workload

BatchSize = Mapping[str, int]
"""Rows of a forward pass by kind of device: cpu, cuda."""

VERIFY_BATCH: BatchSize = {"cpu": 64, "cuda": 8192}
"""Rows of a whole prompt each. Longer passes gain no speed: on two CPU cores 128 rows were no
faster than 64. On an H100 a 135M model ran 2,048 rows as fast as 8,192, but only the longer pass
leaves time to read the results of the one before."""
PASSES_PER_WRITE: BatchSize = {"cpu": 1, "cuda": 2}
"""Passes whose verdicts are written to the ledger together: a GPU runs the second pass while the
results of the first are read."""
SAMPLE_BATCH: BatchSize = {"cpu": 256, "cuda": 512}
"""Rows of one position each. Matrix products of 256 rows were up to twice as fast as of 64."""
SCREEN_BATCH: BatchSize = {"cpu": 256, "cuda": 8192}
"""Rows of the two positions that the frozen-suffix screen runs."""
SCORE_BATCH: BatchSize = {"cpu": 8, "cuda": 64}
"""Rows of every pass over the sequences of an evolution, whatever `batch_size` says. On two CPU
cores more rows were hardly faster, and the sequences of one length rarely fill more."""
AUTO_BATCH: Mapping[str, BatchSize] = {
    "verify": VERIFY_BATCH,
    "sample": SAMPLE_BATCH,
    "answer": VERIFY_BATCH,
    "screen": SCREEN_BATCH,
    "score": SCORE_BATCH,
}
"""The largest batch that `batch_size: auto` takes, by the purpose of the pass."""

RECHECK_BATCH: BatchSize = {"cpu": 16, "cuda": 128}
"""Rows of the float32 passes that decide near-ties of narrower arithmetic: always exactly this
many, so that a verdict does not depend on its batch."""
INVARIANT_BATCH = 128
"""The largest sampling batch in narrower arithmetic whose passes are tried for batch invariance."""
LOW_PRECISION_BATCH: BatchSize = {"cpu": 64, "cuda": 128}
"""Rows of every sampling pass in narrower arithmetic that is not batch-invariant, whatever
`batch_size` says."""
CACHE_HEADROOM = 32
"""Positions that the buffers of a growing key/value cache have free after each reallocation."""
WIDENED_BYTES = 64 << 20
"""Largest number of bytes of a narrow matrix that a CPU widens to float32 at a time: a whole head
of 250,000 rows would take a gigabyte."""
CHUNK_ROWS = 64
"""Rows of a streamed pass whose attention is computed together."""
LOGIT_BYTES = 32 << 20
"""Bytes of logits that a streamed pass computes together, in float32."""
_LOGIT_COPIES = 6
"""Simultaneous float32 tensors of the logits' size while verdicts are computed."""
_SCREENED = 2
"""Positions that the screen computes per token."""
_FEATURES = 1000
"""Bytes of one token's features in the regression, including temporary copies."""
_MATCHED = 200
"""Bytes per vocabulary entry for drawing controls or keeping screening scores."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory of a step besides the weights, in bytes."""

    kv_cache: int
    activations: int
    float32: int
    gradient: int

    @property
    def total(self) -> int:
        """Bytes of all buffers."""
        return self.kv_cache + self.activations + self.float32 + self.gradient


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward passes of one model on one kind of device."""

    header: Header
    held: Weights
    kind: str

    @property
    def width(self) -> int:
        """Bytes per activation. A CPU may compute in float32 whatever the dtype of the weights."""
        return ITEM_BYTES["float32"] if self.kind == "cpu" else ITEM_BYTES[self.held.dtype]

    def rows(self, load: Workload, room: int) -> int:
        """Rows of a batch: as requested, else the largest power of two that fits in half of `room`
        bytes, but no more than the step can fill."""
        count = self._batch(load, room)
        if load.rows is None:
            return count
        # A pass in narrower arithmetic may be padded to a fixed number of rows.
        least = LOW_PRECISION_BATCH[self.kind] if self._narrow else 1
        return min(count, max(load.rows, least))

    @property
    def _narrow(self) -> bool:
        return ITEM_BYTES[self.held.dtype] < ITEM_BYTES["float32"]

    def _batch(self, load: Workload, room: int) -> int:
        narrow = self._narrow
        if load.grows and narrow and self.kind == "cuda":
            return LOW_PRECISION_BATCH[self.kind]
        if load.batch is not None:
            return (
                max(load.batch, LOW_PRECISION_BATCH[self.kind])
                if load.grows and narrow
                else load.batch
            )
        count = AUTO_BATCH[load.kind][self.kind]
        if load.kind == "score":
            return count
        while count > 1 and count * sum(self.row(load)) > room // 2:
            count //= 2
        return count

    def largest_batch(self, load: Workload, room: int) -> int:
        """The largest number of rows of a pass that fit in `room` bytes."""
        return max(0, room - self.buffers(load, 0).total) // sum(self.row(load))

    def buffers(self, load: Workload, count: int) -> Buffers:
        """Memory of `count` rows besides the weights, in bytes."""
        cache, activations = self.row(load)
        return Buffers(
            kv_cache=count * cache,
            activations=count * activations,
            float32=self._float32(load) + self._tables(load),
            gradient=_gradient(self.header, load.positions) if load.gradient else 0,
        )

    def _tables(self, load: Workload) -> int:
        """Bytes of tables over the vocabulary, for a search or controls, in main memory."""
        if self.kind != "cpu":
            return 0
        by_row = load.controls or load.kind == "screen"
        learns = load.search is not None and SEARCHES[load.search].regression
        kept = self.header.vocab * _MATCHED if by_row else 0
        return kept + (self._regression(load) if learns else 0)

    def _regression(self, load: Workload) -> int:
        """Bytes of float32 embeddings, their unit rows, the features and the regression."""
        vocab, hidden = self.header.vocab, self.header.dims.hidden_size
        tables = 1 if self.header.head is None else 2
        copies = 1 + (tables if ITEM_BYTES[self.held.dtype] < ITEM_BYTES["float32"] else 0)
        table = copies * vocab * hidden * ITEM_BYTES["float32"] + vocab * _FEATURES
        width = tables * hidden + _FEATURES // 16
        rows = vocab if load.verified is None else min(vocab, load.verified)
        # Rows once in float32 and twice in float64, and three copies of the Gram matrix.
        return table + 20 * rows * width + 24 * min(rows, width) ** 2

    def row(self, load: Workload) -> tuple[int, int]:
        """Bytes of one row in the key/value cache, and in all other buffers."""
        layers, each = self.header.dims.num_layers, self._layer_cache
        logits = _LOGIT_COPIES * self.header.vocab * ITEM_BYTES["float32"]
        if load.grows:
            # Removing finished rows copies the others; buffers have headroom for further positions.
            cache = 2 * layers * each * (load.positions + CACHE_HEADROOM)
            first = -(-(self._computed(load, load.positions) + logits) // load.together)
            return cache, max(first, self._computed(load, 1) + logits)
        # Appending to the cache of one layer copies it, so briefly there is one layer more.
        cache = (layers + 1) * each * load.positions
        computed = _SCREENED if load.kind == "screen" else load.positions
        return cache, self._computed(load, computed) + logits

    @property
    def _layer_cache(self) -> int:
        """Key/value cache of one position in one layer, in bytes."""
        dims = self.header.dims
        return 2 * dims.num_kv_heads * dims.head_dim * self.width

    def _computed(self, load: Workload, positions: int) -> int:
        """Activations of one layer for the computed positions, with their attention scores, in
        bytes."""
        dims = self.header.dims
        each = self.width * (
            6 * dims.hidden_size + 3 * dims.intermediate_size * _paths(self.header)
        )
        return positions * (each + 2 * dims.num_heads * load.positions * ITEM_BYTES["float32"])

    def _float32(self, load: Workload) -> int:
        """float32 copies for narrower weights: largest matrix, rechecks of near-ties, search
        tables."""
        if ITEM_BYTES[self.held.dtype] >= ITEM_BYTES["float32"]:
            return 0
        row = sum(self.row(load)) * ITEM_BYTES["float32"] // self.width
        settling = RECHECK_BATCH[self.kind] * row if self.width < ITEM_BYTES["float32"] else 0
        table = self.header.vocab * self.header.dims.hidden_size * 4 if load.gradient else 0
        return self.held.largest_matrix * 4 + settling + table


def _paths(header: Header) -> int:
    """Number of feed-forward blocks that one position passes through."""
    return max(1, header.dims.top_k)


def _gradient(header: Header, positions: int) -> int:
    """Activations of all layers and logits for the backward pass of one prompt, in bytes."""
    dims = header.dims
    attention = 2 * dims.num_heads * positions * positions
    layer = (
        positions * (12 * dims.hidden_size + 6 * dims.intermediate_size * _paths(header))
        + attention
    )
    return dims.num_layers * layer * ITEM_BYTES["float32"] + _LOGIT_COPIES * header.vocab * 4
