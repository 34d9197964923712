"""What a program costs: traces, compiled instructions, known chips, process settings."""
