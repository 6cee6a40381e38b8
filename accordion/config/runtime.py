"""How a run happens: threads, and where the services are."""

from typing import Literal

from pydantic import Field

from accordion.config.base import Settings


class ServicesConfig(Settings):
    """Where the services are. None means: the local one that `make up` starts."""

    mlflow_uri: str | None = None
    dvc_remote: str | None = Field(None, description="folder or URL (s3://...); None: runs/dvc-remote")


class RuntimeConfig(Settings):
    """Changes how the stages run, never what they compute."""

    threads: int = Field(2, ge=1, description="CPU threads of torch and ONNX Runtime")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where models are trained; auto: the GPU, if there is one that torch can use"
    )
    services: ServicesConfig = ServicesConfig()
