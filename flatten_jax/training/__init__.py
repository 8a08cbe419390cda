"""Training: one jitted step over a mesh, its schedule, checkpoints, evaluation and logs."""
