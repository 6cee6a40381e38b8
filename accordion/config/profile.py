"""A profile: every setting of the pipeline, one section for each stage, read from `configs/NAME.yaml`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from accordion.config.base import Settings
from accordion.config.data import IngestConfig, PackConfig, TokenizersConfig, ValidateConfig, ValidateShardsConfig
from accordion.config.extract import ExtractConfig, SearchConfig
from accordion.config.posttrain import RlConfig, SftConfig
from accordion.config.pretrain import AnalyseConfig, ElasticConfig, MemberSpec, ModelShape, PretrainConfig
from accordion.config.release import EvaluateConfig, GateConfig, RegisterConfig, RegisterFamilyConfig, RolloutConfig
from accordion.config.retrieval import DistilConfig
from accordion.config.runtime import RuntimeConfig
from accordion.config.study import StudyConfig
from accordion.errors import ConfigError

AXES = ("layers", "experts", "top_k")  # of a sub-model's size
CONTROL = 4  # tokens around a clip in its document
CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


class Profile(Settings):
    """One section for each stage; a stage gets its own section and nothing else, so that a changed
    setting re-runs only the stages that read it and those after them."""

    runtime: RuntimeConfig = RuntimeConfig()
    ingest: IngestConfig = IngestConfig()
    validate_data: ValidateConfig = ValidateConfig()
    tokenizers: TokenizersConfig = TokenizersConfig()
    pack: PackConfig = PackConfig()
    validate_shards: ValidateShardsConfig = ValidateShardsConfig()
    pretrain: PretrainConfig = PretrainConfig()
    analyse: AnalyseConfig = AnalyseConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    extract: ExtractConfig = ExtractConfig()
    search: SearchConfig = SearchConfig()
    distil: DistilConfig = DistilConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    register_model: RegisterConfig = RegisterConfig()
    register_family: RegisterFamilyConfig = RegisterFamilyConfig()
    rollout: RolloutConfig = RolloutConfig()
    study: StudyConfig = StudyConfig()

    def disagreements(self) -> list[str]:
        """What sections ask of each other and do not get, one line for each, beginning with the path of the key."""
        lines = self._data_disagreements()
        if self.pretrain.long_context.share and not self.pack.long_sequence:
            lines.append(
                f"pretrain.long_context.share: got {self.pretrain.long_context.share}; pack.long_sequence is 0, so "
                "there is nothing to read: set it, or the share to 0"
            )
        drawn = {"pretrain.elastic": self.pretrain.elastic, "sft.elastic": self.sft.elastic}
        members = {"pretrain.family": self.pretrain.family, "extract.members": self.extract.members}
        members |= {"analyse.members": self.analyse.members}
        lines += self._misfits("pretrain.model", self.pretrain.model, drawn, members)
        if "study" in self.model_fields_set:  # a profile without one does not run it
            study = self.study.pretrain
            drawn = {"study.pretrain.elastic": study.elastic}
            drawn |= {f"study.variants.{name}": elastic for name, elastic in self.study.variants.items()}
            lines += self._misfits("study.pretrain.model", study.model, drawn, {"study.pretrain.family": study.family})
        names = [member.name for member in self.extract.members]
        if self.distil.member not in names:
            lines.append(f"distil.member: got {self.distil.member!r}; extract.members are {', '.join(names)}")
        return lines

    def _data_disagreements(self) -> list[str]:
        ingest, tokenizers = self.ingest, self.tokenizers
        vision, audio = tokenizers.vision, tokenizers.audio
        lines = []
        if ingest.audio_rate != audio.sample_rate:
            lines.append(
                f"ingest.audio_rate: got {ingest.audio_rate}; tokenizers.audio.sample_rate is {audio.sample_rate}, "
                "and speech is coded at the rate it is stored with: make them equal"
            )
        if ingest.image_side < vision.image_size:
            lines.append(
                f"ingest.image_side: got {ingest.image_side}; tokenizers.vision.image_size is {vision.image_size}, "
                "and pictures would be stored smaller than they are coded: raise it"
            )
        if ingest.clip_side != vision.image_size:
            lines.append(
                f"ingest.clip_side: got {ingest.clip_side}; tokenizers.vision.image_size is {vision.image_size}, "
                "and clips are coded at the size they are stored with: make them equal"
            )
        if ingest.clip_frames % vision.frames:
            lines.append(
                f"ingest.clip_frames: got {ingest.clip_frames}; wants a multiple of tokenizers.vision.frames, "
                f"{vision.frames}, or frames of each clip would be left over"
            )
        clip = vision.frames * sum(side * side for side in vision.scales)
        if clip + CONTROL > self.pack.sequence:
            lines.append(
                f"pack.sequence: got {self.pack.sequence}; a clip of tokenizers.vision.frames and .scales takes "
                f"{clip} positions and {CONTROL} control tokens: raise it to {clip + CONTROL}"
            )
        return lines

    def _misfits(
        self,
        whole: str,
        shape: ModelShape,
        drawn: Mapping[str, ElasticConfig],
        members: Mapping[str, Sequence[MemberSpec]],
    ) -> list[str]:
        """The sizes of sub-models that a model of `shape`, at the path `whole`, cannot have.

        Args:
            drawn, members: by their paths.
        """
        asked = [
            (f"{path}.{axis}", axis, value)
            for path, elastic in drawn.items()
            for axis in AXES
            for value in getattr(elastic, axis)
        ]
        asked += [
            (f"{path}.{member.name}.{axis}", axis, getattr(member, axis))
            for path, family in members.items()
            for member in family
            for axis in AXES
        ]
        least = self.tokenizers.audio.levels + 1  # the first layer and the top ones, one for each audio code
        lines = []
        for path, axis, value in asked:
            if value > (most := getattr(shape, axis)):
                lines.append(f"{path}: got {value}; {whole} has {most}")
            elif axis == "layers" and value < least:
                levels = "tokenizers.audio.levels + 1"
                lines.append(f"{path}: got {value}; a sub-model keeps at least {least} layers ({levels})")
        return lines


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_profile(name: str, overrides: tuple[str, ...] = ()) -> Profile:
    """Read a profile by name (`smoke`) or path (`my/profile.yaml`), then apply `section.key=value` overrides.

    Raises:
        ConfigError: no such profile, not YAML, or a key that is unknown or wrong, named by its path.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"profile {name!r}: no file {path}; shipped profiles: {', '.join(profile_names())}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}; wants a mapping of sections")
    for override in overrides:
        _apply(values, override)
    profile = Profile.parse(values, where=path.name)
    if lines := profile.disagreements():
        raise ConfigError("\n".join(f"{path.name}: {line}" for line in lines))
    return profile


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r}: an override is written section.key=value, for example pretrain.steps=100")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {parent} is no section")
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: got {text!r}, which is not YAML: {' '.join(str(error).split())}") from None
