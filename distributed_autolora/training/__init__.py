"""One training process's view of a run."""
