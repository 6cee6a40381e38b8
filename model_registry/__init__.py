"""The MLflow model registry: register, promote, roll back, history; every change journalled."""
