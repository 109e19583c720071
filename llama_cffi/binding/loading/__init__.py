"""From a file on disk to a loaded library whose ABI is known."""
