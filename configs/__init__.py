"""Runnable configs: one file per run. `deblur_mae_jax/config.py` holds every field and its default."""
