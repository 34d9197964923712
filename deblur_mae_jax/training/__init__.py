"""Build, run, checkpoint and evaluate one training run."""
