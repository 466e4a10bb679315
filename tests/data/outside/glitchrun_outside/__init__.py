"""A package that adds to glitchrun by entry points; `tests/test_outside.py` puts it on the path."""
