"""One run per file; `common.py` holds the defaults."""
