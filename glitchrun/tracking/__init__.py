"""A run's record to MLflow: the only importer of mlflow.

address.py      which store a run belongs to, and how its URI may be shown
store.py        the store made ready before a run, and opened
sqlite_file.py  mlflow.db: created whole, backed up before a newer MLflow, moved with its folder
reach.py        whether a server answers, before MLflow's long retries begin
deliver.py      one record to one MLflow run, again and again with the same result
experiment.py   the MLflow experiment: description and saved view
parent.py       the parent run of a matrix
identity.py     which ledger a run is made from, across projects
run.py          find or create a run, its status and times
metrics.py      running series and final metrics
params.py       what a person compares runs by
tags.py         what a person searches runs by
note.py         the description of a run, in Markdown
limits.py       what MLflow allows in names and values
view.py         the saved view of an experiment
links.py        addresses that open on something worth looking at
live.py         the tracker of a run that is going on
system.py       memory, processor and GPU while it goes on
sync.py         delivering afterwards
server.py       the UI's server
"""
