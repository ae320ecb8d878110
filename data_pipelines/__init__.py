"""Text -> curated corpus -> tokenizer -> token shards. Imports nothing of ours but ``common``."""
