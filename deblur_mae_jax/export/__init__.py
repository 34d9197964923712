"""Export to PyTorch, with a certificate and a model card."""
