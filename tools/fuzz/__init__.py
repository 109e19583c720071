"""Fuzzing in child processes; see `__main__`."""
