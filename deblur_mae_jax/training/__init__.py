"""One training run: built from its config, stepped, saved, judged."""
