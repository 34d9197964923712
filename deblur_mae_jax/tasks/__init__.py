"""The training tasks. Each task is one file with a function `make(model, **settings)`."""
