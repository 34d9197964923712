"""Trained networks to start from: loading them, what a run inherits, which weights fit."""
