"""Image degradations in `jax.numpy`: blur, speckle filters, noise. See `contract.py`."""
