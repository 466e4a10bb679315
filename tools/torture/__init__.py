"""Injects faults into runs of a tiny model and checks that nothing is lost: `make torture`.

bench.py       projects with a spec, commands with a fault, and what must hold afterwards
inject.py      the faults inside a command's own process
kills.py       `kill -9` at random moments and at every kind of file
machine.py     disks, permissions, memory, clock, signals, terminals, two processes
records.py     damaged ledgers, changed checkpoints, MLflow databases in every state
__main__.py    the command, and the table in docs/reliability.md
"""
