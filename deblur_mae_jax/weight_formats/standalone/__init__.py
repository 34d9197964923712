"""Files that an export ships: they need PyTorch alone, nothing of this library."""
