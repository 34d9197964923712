"""Speed and memory, measured on whatever device is there. Never part of the tests."""
