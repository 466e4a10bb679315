"""Batch sizes of forward passes, by kind of device: runs use them and plans count on them."""

from __future__ import annotations

from collections.abc import Mapping

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
