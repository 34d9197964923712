"""Weights in and out of PyTorch: names, file formats, export with a certificate, import."""
