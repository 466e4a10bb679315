"""Compare runs and imported result files.

sides.py      a run or a file as tokens with verdicts
pairs.py      two sides: agreement, overlap against chance, differences
sections.py   the comparison for people, as sentences and tables
output.py     sections as text or Markdown; everything as JSON
"""
