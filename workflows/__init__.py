"""DAGs and launch plans, nothing else."""
