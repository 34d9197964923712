"""Reading images on the host. Nothing in this package imports JAX.

A data set is one file with `source(data, channels) -> Source`; `config.data.name` names the file.
"""
