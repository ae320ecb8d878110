"""Token shards -> model -> checkpoints. ``loop.py`` is the room to open first."""

from train.imports import install

install()
