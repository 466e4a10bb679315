"""Feeds glitchrun with malformed input and checks how it refuses it: `make fuzz`.

mutate.py      random changes of bytes and of JSON, and documents drawn from the schema
targets.py     what is fuzzed: specs, runs, imports, checkpoints, templates
__main__.py    the command: limits, findings, the table
"""
