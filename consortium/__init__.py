"""Runs and checkpoints -> what others can trust: seals, a registry, replays, the papers of the AI Act."""
