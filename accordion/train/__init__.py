"""Pre-training: schedule, loop, checkpoints, validation, and the stage that joins them."""
