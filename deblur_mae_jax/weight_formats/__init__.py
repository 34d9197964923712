"""Weights under the names of other libraries. One file per format; see `contract.py`."""
