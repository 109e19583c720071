"""A discrete-event simulation of the scheduler; see `__main__`."""
