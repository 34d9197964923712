"""How a network is judged during and after training. One file per kind of judgement; see `training/evaluator.py`."""
