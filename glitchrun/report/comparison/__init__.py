"""Runs, and imported result files, side by side.

sides.py       what is compared: a run or a file, each token with its verdict
agreement.py   the arithmetic: kappa, overlap by chance, intervals
pairs.py       two sides held against each other
sections.py    what people read, as headed tables and sentences: pair_sections.py for two sides,
               matrix_sections.py for more, section.py what they are made of
render.py      those as text or Markdown
document.py    everything, for machines
"""
