"""What a network is trained to do. One file per task, each with `make(model, **settings)`."""
