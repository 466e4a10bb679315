"""Delivers a run's record to MLflow. No other package imports mlflow.

address.py          which store a run belongs to, whether it answers, how its URI may be shown
store.py            a store, prepared and opened; its errors explained
sqlite_file.py      mlflow.db: created atomically, backed up, corrected after a move
deliver.py          one record to one MLflow run; repeating it changes nothing
mlflow_run.py       finds a run by the id of its ledger or creates it; status and values
experiment.py       the experiment: description, saved view and links
parent.py           the parent run of a matrix
metric_series.py    series and final values as points
params_and_tags.py  what people compare and search runs by, within MLflow's limits
description.py      the description of a run, in Markdown
tracker.py          delivers a run, and the use of memory, CPU and GPU, while it is executed
sync.py             delivers runs afterwards; changes tags and deletes runs there
server.py           the server of the MLflow UI
"""
