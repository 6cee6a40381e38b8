"""Settings of the family experiment (foundation model, section 5): what is trained, from scratch and elastically."""

from typing import Any

from pydantic import Field, model_validator

from accordion.config.base import Seed, Settings
from accordion.config.extract import RECOVERY_RATE
from accordion.config.pretrain import ElasticConfig, MemberSpec, PretrainConfig

RESERVED = ("elastic", "fixed", "scratch", "recovery", "isolated", "speed")  # kinds of units, and their timing


class StudyConfig(Settings):
    """One elastic run against separate runs of every size, over seeds, on the same data in the same order."""

    pretrain: PretrainConfig = Field(
        PretrainConfig(),
        description="the full model, its elastic run and the budget; `family` holds the reported sizes",
    )
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=2)
    family: tuple[str, ...] = Field(
        ("shallow", "narrow", "small"),
        min_length=1,
        description="members that, beside the full model, the cost ratio counts",
    )
    recovery_shares: tuple[float, ...] = Field(
        (0.01, 0.05, 0.1), min_length=1, description="of the steps of a run, ascending"
    )
    recovery_rate: float = Field(RECOVERY_RATE, gt=0, description="learning rate of recovery, of that of pre-training")
    variants: dict[str, ElasticConfig] = Field({}, description="other elastic recipes, by name, each compared alone")
    isolated: bool = Field(False, description="also train the full model with experts parted by modality")
    validation_sequences: int = Field(256, ge=4, description="on which every size is judged, as many of each kind")
    ranking_sequences: int = Field(
        32, ge=4, description="training sequences on which a fixed model's experts are ranked, as many of each kind"
    )
    timed_steps: int = Field(10, ge=1, description="steps in which each kind of run is timed, alone")

    @property
    def members(self) -> tuple[MemberSpec, ...]:
        """The reported sub-sizes: the family without the full model."""
        shape = self.pretrain.model
        whole = (shape.layers, shape.experts, shape.top_k)
        return tuple(m for m in self.pretrain.family if (m.layers, m.experts, m.top_k) != whole)

    @model_validator(mode="before")
    @classmethod
    def _variants_change_the_main_recipe(cls, values: Any) -> Any:
        """A variant names only what it changes of `pretrain.elastic`."""
        if isinstance(values, dict) and isinstance(values.get("variants"), dict):
            main = (values.get("pretrain") or {}).get("elastic", {}) if isinstance(values.get("pretrain"), dict) else {}
            whole = {
                name: {**main, **change} if isinstance(change, dict) and isinstance(main, dict) else change
                for name, change in values["variants"].items()
            }
            return {**values, "variants": whole}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        names = [member.name for member in self.members]
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: wants different ones; the intervals are over them")
        self._refuse_what_units_do_not_do()
        if taken := sorted({*RESERVED, *names} & set(self.variants)):
            raise ValueError(f"variants {taken}: are names of other units; give each variant a name of its own")
        if unknown := set(self.family) - set(names):
            raise ValueError(f"family names {sorted(unknown)}; the members of pretrain.family are {names}")
        if list(self.recovery_shares) != sorted(set(self.recovery_shares)) or not all(
            0 < share <= 1 for share in self.recovery_shares
        ):
            raise ValueError("recovery_shares wants ascending shares above 0 and at most 1")
        if wrong := [name for name in self.variants if not name.replace("-", "").isalnum()]:
            raise ValueError(f"variants {wrong}: a name is letters, digits and dashes")
        return self

    def _refuse_what_units_do_not_do(self) -> None:
        """Settings of a pre-training run that have no effect in a unit, which is one process on short sequences."""
        run, usual = self.pretrain, PretrainConfig()
        ignored = ("engine", "parallel", "long_context", "deterministic")
        if given := [name for name in ignored if getattr(run, name) != getattr(usual, name)]:
            raise ValueError(f"pretrain.{given[0]} has no effect in the units of the experiment; leave it out")
        if not run.elastic.enabled:
            raise ValueError("pretrain.elastic.enabled is false; the experiment compares the elastic run with others")
