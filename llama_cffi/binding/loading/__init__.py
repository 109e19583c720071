"""From a file on disk to a loaded library with a known ABI."""
