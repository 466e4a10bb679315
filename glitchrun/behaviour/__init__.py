"""Behavioural classes: what a model does with a token in its prompt.

    catalogue.py      the questions, and the tests on their answers, as data
    detectors.py      functions that judge an answer
    multilingual.py   content units of a text in any script, and phrases of refusal
    proportions.py    rates, and differences of rates, with intervals

Needs the standard library only.
"""
