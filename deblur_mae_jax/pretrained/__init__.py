"""Load a trained network as a starting point: inherited settings and matching weights."""
