"""Evaluation of a network during and after training. One file per kind of evaluation; see `training/evaluator.py`."""
