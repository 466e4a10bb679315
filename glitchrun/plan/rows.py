"""Rows of a forward pass: what runs take and plans count on. One place, free of torch."""

from __future__ import annotations

from collections.abc import Mapping

Rows = Mapping[str, int]
"""By kind of device: cpu, cuda."""

VERIFYING: Rows = {"cpu": 64, "cuda": 8192}
"""Rows beyond which a pass gains no speed: on two CPU cores 128 was no faster than 64. On an H100 a
135M model ran 2,048 rows as fast as 8,192, but only the longer pass leaves time to read results."""
PASSES: Rows = {"cpu": 1, "cuda": 2}
"""Passes whose verdicts are one durable batch: a GPU runs the next pass while results are read."""
SAMPLING: Rows = {"cpu": 256, "cuda": 512}
"""The same where a row is one position: products of 256 rows were up to twice as fast as of 64."""
SCREENING: Rows = {"cpu": 256, "cuda": 8192}
"""The same where a row is the two positions of the frozen-suffix screen."""
SCORING: Rows = {"cpu": 8, "cuda": 64}
"""Rows of every pass over an evolution's sequences, whatever is asked: on two CPU cores more were
hardly faster, and the sequences of one length rarely fill more."""
STANDARD: Mapping[str, Rows] = {
    "verify": VERIFYING,
    "sample": SAMPLING,
    "answer": VERIFYING,
    "screen": SCREENING,
    "score": SCORING,
}
"""What `batch_size: auto` takes at most, by what a pass is for."""

SETTLING: Rows = {"cpu": 16, "cuda": 128}
"""Rows of the float32 passes that settle verdicts of narrower arithmetic: always this many."""
ALIKE = 128
"""Rows at most of sampling in narrower arithmetic whose passes give each row the same bits."""
NARROW: Rows = {"cpu": 64, "cuda": 128}
"""Rows of every such pass where they do not, whatever is asked."""
ROOM = 32
"""Positions by which the buffers of a growing cache are longer than what they hold."""
