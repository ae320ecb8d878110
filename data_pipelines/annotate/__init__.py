"""Row-wise stages: each adds columns to a document and deletes nothing."""
