"""The energy of a run: counters, the ledger beside the run, what it adds up to, and where that is shown."""
