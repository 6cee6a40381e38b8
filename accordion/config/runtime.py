"""Where a run happens: environment, threads, services."""

from typing import Literal

from pydantic import Field

from accordion.config.base import Settings


class ServicesConfig(Settings):
    """Where the services are. None means: the local one that `make up` starts."""

    mlflow_uri: str | None = None
    dvc_remote: str | None = Field(None, description="folder or URL (s3://...); None: runs/dvc-remote")
    triton_http: str | None = Field(None, description="host:port of a Triton server managed elsewhere")


class RuntimeConfig(Settings):
    """Environment of the stages; changes how they run, never what they compute."""

    environment: Literal["local", "slurm", "kubernetes"] = "local"
    threads: int = Field(2, ge=1, description="CPU threads of torch and ONNX Runtime")
    services: ServicesConfig = ServicesConfig()
