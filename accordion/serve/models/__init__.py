"""Models of the Triton Python backend: copied into version folders, run inside the server's stub, never imported."""
