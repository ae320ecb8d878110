"""From one command to many processes. Imports of ours only ``common``: it must run where torch is not installed."""
