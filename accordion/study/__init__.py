"""The family experiment: is one elastic run worth as much as a run for every size? Data, units, figures, plots."""
