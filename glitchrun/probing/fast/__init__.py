"""Forward passes of the Llama shape on plain tensors: several times one prompt at a time.

shape.py       whether a model is of that shape, read off its modules
forward.py     the pass; experts.py, cache.py and workspace.py are parts of it
backend.py     the same interface as the generic backend
"""
