"""The base of every settings class, and errors that name the path of the key and the remedy."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from accordion.errors import ConfigError

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator in use takes


class Settings(BaseModel):
    """Frozen, keyword-only settings that refuse unknown keys and do not coerce across types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Build the settings from plain values.

        Args:
            values: nested mapping, as read from YAML or JSON.
            where: prefix for the paths in error messages, for example `configs/smoke.yaml`.

        Raises:
            ConfigError: one line for each wrong key: its path, what was given, what is wanted.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(cls, issue, where) for issue in error.errors())) from None

    def resumed_under(self) -> dict[str, Any]:
        """The settings, as plain values, that work half done must share with what goes on with it.

        All of them, unless a section knows which do not change what is made of it.
        """
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `model_dump_json` wrote."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(cls, issue, cls.__name__) for issue in error.errors())) from None


def _explain(root: type[BaseModel], issue: Mapping[str, Any], where: str) -> str:
    path = ".".join(str(part) for part in issue["loc"])
    prefix = f"{where}: {path}" if where else path
    if issue["type"] == "extra_forbidden":
        known = _keys_at(root, issue["loc"][:-1])
        close = difflib.get_close_matches(str(issue["loc"][-1]), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(sorted(known)) or 'none'}"
        return f"{prefix}: unknown key; {remedy}"
    if issue["type"] == "missing":
        return f"{prefix}: missing; add it"
    message = issue["msg"].removeprefix("Value error, ")
    if isinstance(issue["input"], Mapping):  # a section whose values do not go together: the message names them
        return f"{prefix}: {message}"
    return f"{prefix}: got {issue['input']!r}; {message[0].lower()}{message[1:]}"


def _keys_at(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: Any = root
    for part in location:
        if isinstance(part, int):  # an item of a tuple of settings
            current = next((each for each in get_args(current) if hasattr(each, "model_fields")), None)
            continue
        if (named := get_args(current)) and not hasattr(current, "model_fields"):  # a mapping of names to settings
            current = named[-1]
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = field.annotation
    return list(getattr(current, "model_fields", {}))
