"""The strategies: one package or module each, listed in `BUILT_IN`.

A strategy's own module declares what the rest of the program asks about it (`spec/strategy.py`
documents each attribute), with its Config; its schema fragment is in the same folder. It imports no
torch. The code that runs a step is in `run.py`:

    check/         integration checks of a loaded model
    classify/      tokenizer categories, and behavioural classes against matched controls
    genetic/       evolution of token sequences
    mine/          search of the vocabulary under a budget
    predict/       the next tokens of a prompt, raw and in the chat format
    profile/       load time, bytes, peak memory and speed
    scan, test     verification of every token in scope, or of given ones (run by listed.py)
    validate/      sampled attempts on each token

Shared by several: context.py (what a step is given), judging.py (verification), false_alarms.py
(matched controls), prompt_lengths.py (how long prompts are, before the model is loaded).
"""

from __future__ import annotations

from glitchrun.spec.strategy import Strategy
from glitchrun.strategies.check import Check
from glitchrun.strategies.classify import Classify
from glitchrun.strategies.genetic import Genetic
from glitchrun.strategies.mine import Mine
from glitchrun.strategies.predict import Predict
from glitchrun.strategies.profile import Profile
from glitchrun.strategies.scan import Scan
from glitchrun.strategies.test import Test
from glitchrun.strategies.validate import Validate

BUILT_IN: dict[str, Strategy] = {
    "check": Check(),
    "classify": Classify(),
    "genetic": Genetic(),
    "mine": Mine(),
    "predict": Predict(),
    "profile": Profile(),
    "scan": Scan(),
    "test": Test(),
    "validate": Validate(),
}
"""Every built-in strategy by its name in the spec, in alphabetical order."""
