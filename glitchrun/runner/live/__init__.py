"""Searches drawn while they go: readers of the same batches that the ledger gets.

view.py      what has come of a step's search so far
terminal.py  drawn in the terminal
window.py    drawn in a window, by a process of its own
gui.py       that process, seen from here
"""
