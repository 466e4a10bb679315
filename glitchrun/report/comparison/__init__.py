"""Compare runs and imported result files, and the cells of a matrix.

sides.py      a run or a file as tokens with verdicts
pairs.py      two sides: agreement, overlap against chance, differences
results.py    the main results of all sides, in one unit each
sections.py   the comparison for people, as sentences and tables
figures.py    its figures
output.py     sections as text or Markdown; everything as JSON
page.py       sections and figures as an HTML page
"""
