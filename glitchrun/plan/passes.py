"""Forward passes of a plan: their batch size, and their memory besides the weights."""

from __future__ import annotations

from dataclasses import dataclass

from glitchrun.checkpoint.headers import Header
from glitchrun.plan import batch_sizes
from glitchrun.plan.weight_bytes import ITEM_BYTES, Weights
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import Workload

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
        least = batch_sizes.LOW_PRECISION_BATCH[self.kind] if self._narrow else 1
        return min(count, max(load.rows, least))

    @property
    def _narrow(self) -> bool:
        return ITEM_BYTES[self.held.dtype] < ITEM_BYTES["float32"]

    def _batch(self, load: Workload, room: int) -> int:
        narrow = self._narrow
        if load.grows and narrow and self.kind == "cuda":
            return batch_sizes.LOW_PRECISION_BATCH[self.kind]
        if load.batch is not None:
            return (
                max(load.batch, batch_sizes.LOW_PRECISION_BATCH[self.kind])
                if load.grows and narrow
                else load.batch
            )
        count = batch_sizes.AUTO_BATCH[load.kind][self.kind]
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
            cache = 2 * layers * each * (load.positions + batch_sizes.CACHE_HEADROOM)
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
        settling = (
            batch_sizes.RECHECK_BATCH[self.kind] * row if self.width < ITEM_BYTES["float32"] else 0
        )
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
