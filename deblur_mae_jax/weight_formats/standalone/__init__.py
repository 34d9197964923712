"""Files that are copied into an export. They do not need this library."""
