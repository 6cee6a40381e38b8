"""Post-training: supervised fine-tuning, then reinforcement learning with verifiable rewards."""
