"""What a member keeps, as a file that a person can write: the `spec.json` that every member carries."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from accordion.config.base import Settings
from accordion.config.pretrain import ModelConfig
from accordion.errors import ConfigError
from accordion.model import SubmodelSpec

SPEC = "spec.json"
Index = Annotated[int, Field(strict=True, ge=0)]


class SpecFile(Settings):
    """The keys of the file; `experts` and `top_k` hold one entry for each kept layer."""

    layers: tuple[Index, ...] = Field(min_length=1, description="indices of the kept layers, ascending")
    experts: tuple[tuple[Index, ...], ...] = Field(description="for each kept layer, its kept experts, ascending")
    top_k: tuple[Index, ...] = Field(description="for each kept layer, the experts that a token uses")
    parent_sha256: str | None = Field(None, description="weights it was written for; None: it fits any that can run it")


def read_spec(path: Path, full: ModelConfig, weights: str) -> SubmodelSpec:
    """Read what to keep of a full model.

    Args:
        path: a JSON object with the keys of `SpecFile`.
        full: the full model's configuration.
        weights: SHA-256 of its weights.

    Raises:
        ConfigError: names the file, the key and what it may be: the file cannot be read, a key is missing, unknown or
            of the wrong type, the model cannot run what it says, or it was written for other weights.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a file like a member's {SPEC}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON ({error}); write it like a member's {SPEC}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}; wants an object with layers, experts and top_k")
    given = SpecFile.parse(values, where=str(path))
    if given.parent_sha256 not in (None, weights):
        raise ConfigError(
            f"{path}: parent_sha256: got {given.parent_sha256}, the weights here are {weights}; name the model it was "
            "written for, or remove the key to cut the same out of this one"
        )
    spec = SubmodelSpec(given.layers, given.experts, given.top_k)
    try:
        spec.check(full)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return spec
