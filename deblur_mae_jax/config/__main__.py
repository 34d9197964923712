"""Print the reference page."""

from deblur_mae_jax.config import page

print(page.reference(), end="")
