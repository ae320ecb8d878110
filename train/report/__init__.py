"""``hanse report``: a page about a run folder, in rooms."""
