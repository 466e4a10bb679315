"""Behavioural classes: what a model does when a token stands in its prompt.

    catalogue.py   the questions and the tests on their answers, as data
    scenarios.py   further settings and formats of the tests that read addresses and characters
    judging.py     Judgement, and a test applied to an answer
    shape.py       indicators of form: length, repetition, injected text, control characters
    content.py     indicators of what is said: drift, refusal, missing text, extraction, decoding
    words.py       content units of a text in any script
    rates.py       rates, and differences of rates, with intervals

An indicator is a pure function of (question, answer, token text). It knows no model: the same
answer is judged the same whoever gave it. Needs the standard library only.
"""
