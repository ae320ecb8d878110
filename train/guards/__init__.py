"""What keeps a run from harm: numbers that are not finite, spikes, ranks that hang, lag or part from each other."""
