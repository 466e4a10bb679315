"""Draws a genetic search while it runs, from the batches that the ledger gets.

search_view.py       the state of a search after the batches so far
terminal_display.py  draws it in the terminal (`apply --live`)
window_display.py    starts the window's process and sends it every batch (`apply --gui`)
window.py            that process: draws the search in a window
"""
