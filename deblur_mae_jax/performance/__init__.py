"""Performance of a program: traces, compiled instructions, known chips, process settings."""
