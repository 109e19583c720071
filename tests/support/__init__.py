"""What the tests share: tiny models, child processes, state machines, the builds to run on."""
