"""Token shards -> model -> checkpoints. ``loop.py`` is the room to open first."""
