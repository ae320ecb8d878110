"""``hanse dossier``: the AI Act's documents out of what a run left behind."""
