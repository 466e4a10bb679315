"""Indicators of under-trained tokens: numbers of a token's embedding rows, known without a prompt.

Definitions: Land and Bartolo 2024, "Fishing for Magikarp" (arXiv 2405.05417, section 2.2, and the
code that they published). Low values are suspicious.
"""

from __future__ import annotations

INDICATORS = {
    "input_norm": "L2 norm of the row of the input embedding",
    "output_norm": "L2 norm of the row of the output embedding",
    "to_unused": "cosine distance of the output row to the mean of the reference rows",
    "to_unused_without_component": "the same without the first principal component of all rows",
    "to_mean": "cosine distance of the output row to the mean of all normalized output rows",
}
"""Every indicator by its name."""
LOWEST = 0.02
"""Share of the ordinary tokens whose values are candidates by Land and Bartolo's rule."""
METRICS = {
    **{
        f"auc.{name}": {
            "description": "Probability that a severe token has a lower value than a token that is "
            f"not severe. Indicator: {meaning}.",
            "unit": "probability",
        }
        for name, meaning in INDICATORS.items()
    },
    **{
        f"lowest.{name}": {
            "description": "Share of the severe tokens that are among the 2 % of ordinary tokens "
            f"with the lowest values. Indicator: {meaning}.",
            "unit": "share",
        }
        for name, meaning in INDICATORS.items()
    },
}
"""Metrics of every step that verifies tokens, as in `x-metrics`; absent if no token is severe."""
