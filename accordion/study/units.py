"""The single runs of the experiment, named, in the order in which they matter: each is a unit that can be resumed."""

from dataclasses import dataclass

from accordion.config.pretrain import ElasticConfig, MemberSpec, PretrainConfig
from accordion.config.study import StudyConfig

ELASTIC, FIXED, SCRATCH, RECOVERY, ISOLATED = "elastic", "fixed", "scratch", "recovery", "isolated"


@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
        kind: elastic, fixed, scratch, recovery, isolated, or the name of another elastic recipe.
        seed: of weights, data order and draws.
        member: the size that is trained (scratch, recovery).
        share: of the steps of a run (recovery).
    """

    kind: str
    seed: int
    member: str = ""
    share: float = 1.0

    @property
    def name(self) -> str:
        """A file name."""
        parts = [self.kind, self.member, f"{self.share:g}" if self.kind == RECOVERY else "", f"seed{self.seed}"]
        return "_".join(part for part in parts if part)

    @property
    def needs(self) -> str | None:
        """Name of the unit whose weights it begins with."""
        return Unit(ELASTIC, self.seed).name if self.kind == RECOVERY else None


def units(study: StudyConfig) -> list[Unit]:
    """Every unit: the main comparison seed by seed, then what is compared beside it."""
    found: list[Unit] = []
    for seed in study.seeds:
        found += [Unit(ELASTIC, seed), Unit(FIXED, seed)]
        found += [Unit(SCRATCH, seed, member.name) for member in study.members]
        found += [
            Unit(RECOVERY, seed, member.name, share)
            for share in reversed(study.recovery_shares)
            for member in study.members
        ]
    for seed in study.seeds:
        found += [Unit(variant, seed) for variant in study.variants]
        found += [Unit(ISOLATED, seed)] if study.isolated else []
    return found


def member_of(study: StudyConfig, name: str) -> MemberSpec:
    """The reported size of that name."""
    return next(member for member in study.members if member.name == name)


def settings(study: StudyConfig, unit: Unit) -> PretrainConfig:
    """The settings of the run of a unit."""
    main = study.pretrain
    changes: dict[str, object] = {"seed": unit.seed, "elastic": ElasticConfig(enabled=False)}
    if unit.kind == ELASTIC:
        changes["elastic"] = main.elastic
    elif unit.kind in study.variants:
        changes["elastic"] = study.variants[unit.kind]
    elif unit.kind == ISOLATED:
        changes["model"] = main.model.model_copy(update={"isolated": True})
    elif unit.kind == SCRATCH:
        member = member_of(study, unit.member)
        size = {"layers": member.layers, "experts": member.experts, "top_k": member.top_k}
        changes["model"] = main.model.model_copy(update=size)
    elif unit.kind == RECOVERY:
        main = main.recovering(max(1, round(main.steps * unit.share)), study.recovery_rate)
    return main.model_copy(update=changes)
