"""From one command to many processes. Imports nothing of ours but ``common``: it must run where torch is not installed."""
