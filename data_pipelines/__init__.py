"""Text -> curated corpus -> tokenizer -> token shards. Imports nothing of ours but ``common``."""

import os

# pyarrow's allocator keeps what is freed for a second, and more of it the larger a file is. It is to give it back at
# once, and it looks here when pyarrow is loaded, so not later. Whoever sets it knows better.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "0")
