"""Runnable configs: one file per run. `deblur_mae_jax/config/fields.py` holds every field and its default."""
