"""Model papers out of the evidence of a run: model card, ML-BOM, Croissant, RO-Crate, citation."""
