"""Forward passes of the Llama layout on plain tensors, for `probing.fast_backend`.

llama_layout.py     finds the layout of a model in its modules
forward.py          passes over whole suffixes: after a cache, after a shared prefix
frozen.py           the pass with a frozen suffix
layers.py           their parts: norms, rotary embeddings, projections, MLPs, experts
buffers.py          the KV cache and scratch memory
triton_kernels.py   GPU kernels
"""
