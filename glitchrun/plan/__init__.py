"""From an Experiment to a Plan: the runs, their keys, memory and work, without torch."""
