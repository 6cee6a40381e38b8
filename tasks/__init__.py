"""One file for each node of the DAG: a stage of the library as a Flyte task."""
