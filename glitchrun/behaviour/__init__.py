"""Behavioural classes: what a model does with a token in its prompt.

    catalogue.py      the questions, and the tests on their answers, as data
    detectors.py      functions that judge an answer
    multilingual.py   content units of a text in any script, and phrases of refusal
    significance.py   rates with intervals, tests and corrections
    symptoms.py       what a continuation says instead of the token

Needs the standard library only; tests also need scipy.
"""
