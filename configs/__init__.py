"""The Hydra tree: every knob with its unit and default, commented where it stands."""
