"""Settings of the model, of elastic pre-training and of its analysis."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from accordion.config.base import Seed, Settings

VIDEO_WINDOW = 8
LayerOrder = Literal["outer", "even"]
LAYER_ORDER: Any = Field(
    "outer",
    description="which layers smaller members keep, always nested: outer: the outermost, so that the middle goes "
    "first; even: evenly spaced ones",
)


class ModelShape(Settings):
    """The backbone's size; vocabularies come from the tokenizers (see `ModelConfig`)."""

    hidden: int = 128
    layers: int = 8
    heads: int = 4
    experts: int = Field(16, description="routed experts in each layer, one pool for all modalities")
    top_k: int = 4
    expert_hidden: int = 64
    shared_hidden: int = Field(64, description="width of the always-active shared expert; 0: none")
    rope_base: float = 1e6
    video_window: int = Field(VIDEO_WINDOW, ge=1, description="earlier frames that a video frame can see")
    vit_layers: int = Field(2, ge=1, description="of the ViT through which images are understood, if shards hold any")
    vit_width: int = Field(
        64, ge=32, multiple_of=32, description="of that ViT and of the attention that merges patches"
    )
    layer_order: LayerOrder = LAYER_ORDER
    isolated: bool = Field(False, description="experts parted by modality: what one shared pool is compared with")


class ModelConfig(Settings):
    """Everything needed to build a model, saved beside its weights.

    `experts` and `top_k` hold one entry a layer, so that an extracted sub-model is an ordinary model.
    """

    hidden: int
    heads: int
    experts: tuple[int, ...]
    top_k: tuple[int, ...]
    expert_hidden: int
    shared_hidden: int
    rope_base: float
    text_vocabulary: int
    bits: int = Field(description="bits of a vision token")
    scales: tuple[int, ...] = Field(description="side of each vision scale in tokens")
    frames: int = Field(description="most frames of a video clip")
    audio_levels: int = Field(description="codes of an audio frame, Q")
    audio_codebook: int = Field(description="entries of each audio codebook; index `audio_codebook` is end-of-audio")
    video_window: int = Field(VIDEO_WINDOW, ge=1, description="earlier frames that a video frame can see")
    vit_layers: int = Field(0, ge=0, description="of the ViT for understanding; 0: the model sees bits only")
    vit_width: int = Field(64, ge=32, multiple_of=32)
    voice_size: int = Field(0, ge=0, description="numbers that describe a voice; 0: the model takes none")
    layer_order: LayerOrder = LAYER_ORDER
    expert_order: tuple[tuple[int, ...], ...] | None = Field(
        None, description="each layer's experts, those that narrow members keep first; None: by index"
    )
    isolated: bool = Field(False, description="experts parted by modality (see `model.isolation`)")

    @property
    def layers(self) -> int:
        return len(self.experts)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if len(self.top_k) != len(self.experts):
            raise ValueError("experts and top_k need one entry a layer")
        if any(k > e or k < 1 for k, e in zip(self.top_k, self.experts, strict=True)):
            raise ValueError("top_k of a layer must be between 1 and its number of experts")
        if self.expert_order is not None and [sorted(order) for order in self.expert_order] != [
            list(range(count)) for count in self.experts
        ]:
            raise ValueError("expert_order needs every expert of every layer once")
        if self.isolated and any(
            e != max(self.experts) or e < 4 * k for k, e in zip(self.top_k, self.experts, strict=True)
        ):
            raise ValueError("isolated needs at least four times top_k experts, as many in every layer")
        if self.hidden % (2 * self.heads):
            raise ValueError("hidden must be a multiple of twice the heads (rotary pairs)")
        if self.layers < self.audio_levels:
            raise ValueError("a model needs at least as many layers as audio levels (next-codec prediction)")
        return self


class MemberSpec(Settings):
    """A named sub-model of the family: how much of each axis it keeps."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$", description="a folder, a file and a registry name")
    layers: int = Field(ge=1)
    experts: int = Field(ge=1)
    top_k: int = Field(ge=1)

    @model_validator(mode="after")
    def _enough_experts(self) -> "MemberSpec":
        if self.top_k > self.experts:
            raise ValueError(f"member {self.name}: top_k {self.top_k} of {self.experts} experts; lower it")
        return self


def _named_apart(members: tuple[MemberSpec, ...]) -> tuple[MemberSpec, ...]:
    names = [member.name for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two members are called {', '.join(twice)}; give each a name of its own")
    return members


Family = Annotated[tuple[MemberSpec, ...], AfterValidator(_named_apart)]
MEMBERS = (
    MemberSpec(name="shallow", layers=6, experts=16, top_k=4),
    MemberSpec(name="narrow", layers=8, experts=8, top_k=4),
    MemberSpec(name="sparse", layers=8, experts=16, top_k=2),
    MemberSpec(name="small", layers=6, experts=8, top_k=2),
)


def _distinct(choices: tuple[int, ...]) -> tuple[int, ...]:
    if not choices or min(choices) < 1 or len(set(choices)) < len(choices):
        raise ValueError("wants one or more different sizes from 1 on")
    return choices


Choices = Annotated[tuple[int, ...], AfterValidator(_distinct)]


class ElasticConfig(Settings):
    """How sub-models are drawn, per training instance (foundation model, section 5)."""

    enabled: bool = True
    full_share: float = Field(0.5, ge=0, le=1, description="share of instances that train the full model")
    layers: Choices = (6, 8)
    experts: Choices = (8, 16)
    top_k: Choices = (2, 4)
    subsets: Literal["nested", "ranked", "random"] = Field(
        "nested",
        description="experts of a narrow member: nested: the first ones; ranked: those with the largest gate mass "
        "during the warm-up; random: drawn anew for each instance and layer",
    )
    axes: Literal["each", "one"] = Field(
        "each", description="of a reduced instance: each is drawn on its own; one, any of the three, is reduced"
    )
    smallest_share: float = Field(
        0.0, ge=0, le=1, description="share of the reduced instances that take the least of every axis (the sandwich "
        "rule, arXiv 1903.05134)"
    )  # fmt: skip
    top_k_by_layer: bool = Field(False, description="draw top-k for each layer on its own")
    grow_share: float = Field(
        0.0, ge=0, lt=1, description="share of steps, the first ones, that train the smallest sub-model alone, out of "
        "which the larger ones grow"
    )  # fmt: skip
    warmup_share: float = Field(
        0.1, ge=0, le=1, description="share of steps, after those of grow_share, that train the full model alone"
    )
    ramp_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of steps, after those of warmup_share, in which reduced instances rise to their share",
    )
    shrink_share: float = Field(
        0.0, ge=0, le=1, description="share of steps, after the warm-up, in which the choices open from the largest "
        "to the smallest (progressive shrinking, arXiv 1908.09791)"
    )  # fmt: skip
    distil_share: float = Field(
        0.0, ge=0, le=1, description="share of the reduced instances that run in full too, in the same step, and "
        "learn from the full model's predictions"
    )  # fmt: skip
    distil_weight: float = Field(0.5, ge=0, le=1, description="of those predictions against the data, in their loss")

    @model_validator(mode="after")
    def _possible(self) -> "ElasticConfig":
        if self.enabled and self.subsets == "ranked" and self.warmup_share == 0:
            raise ValueError("subsets: ranked needs warmup_share above 0, the steps in which experts are ranked")
        if self.enabled and self.subsets == "ranked" and self.grow_share:
            raise ValueError(
                "subsets: ranked needs grow_share: 0, since the smallest would be trained before the ranking"
            )
        if self.enabled and max(self.top_k) > min(self.experts):
            raise ValueError(
                f"top_k {max(self.top_k)} of {min(self.experts)} experts, its fewest; lower it, or raise those"
            )
        if self.grow_share + self.warmup_share > 1:
            raise ValueError(
                f"grow_share {self.grow_share} and warmup_share {self.warmup_share} are more than all steps; lower one"
            )
        return self


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Settings):
    """AdamW under warm-up-stable-decay."""

    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="the longest that the gradient may be")
    warmup_steps: int = Field(20, ge=0)
    decay_share: float = Field(0.3, ge=0, le=1, description="share of the steps over which the rate falls")
    decay_to: float = Field(0.1, gt=0, le=1, description="what it falls to, as a factor")


class LongContext(Settings):
    """Stage 2: the last steps read long sequences (`pack.long_sequence`), as many positions in each.

    The rate goes on from where stage 1 left it, along a cosine to a tenth; multi-token prediction counts less, and
    the selection biases move a tenth as far (arXiv 2602.04705).
    """

    share: float = Field(0.0, ge=0, lt=1, description="of all steps; 0: there is no stage 2")
    mtp_weight: float = Field(0.1, ge=0)
    balance_step: float = Field(1e-4, ge=0)


class BitFlips(Settings):
    """Mistakes put into the history of images and video (`train/corruption.py`); high 0: none.

    Each frame draws its chance evenly between `low` and `high`, and later frames, which have more history of their
    own to err in, draw from higher up. A third, as in Infinity (arXiv 2412.04431), is for long runs.
    """

    low: float = Field(0.0, ge=0, le=0.5)
    high: float = Field(0.2, ge=0, le=0.5, description="0: no bit is flipped")
    growth: float = Field(0.02, ge=0, le=0.5, description="added to both for each earlier frame of the clip")

    @model_validator(mode="after")
    def _ordered(self) -> "BitFlips":
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


class ParallelConfig(Settings):
    """Over how many ranks what is split; the ranks that are left over each train on their part of every batch."""

    processes: int = Field(
        1, ge=0, description="ranks that the stage starts on its machine, unless torchrun or Slurm starts them; 0: one "
        "for each GPU"
    )  # fmt: skip
    restarts: int = Field(
        3, ge=0, description="times that the stage starts all its processes again when one died or hangs"
    )
    expert: int = Field(1, ge=1, description="experts of a layer over so many ranks (megatron)")
    tensor: int = Field(1, ge=1, description="heads, shared experts and positions over so many ranks (megatron)")
    context: int = Field(1, ge=1, description="positions over so many ranks, attention included (megatron)")
    pipeline: int = Field(1, ge=1, description="layers over so many stages, one after the other (megatron)")
    microbatches: int = Field(
        1, ge=1, description="parts in which a rank's rows go through the stages, which idle for (pipeline - 1) / "
        "(microbatches + pipeline - 1) of a step"
    )  # fmt: skip
    shard: bool = Field(
        False, description="plain: weights, gradients and optimizer over all ranks (FSDP2), not a copy on each (DDP)"
    )
    distributed_checkpoint: bool = Field(
        False, description="megatron: each rank writes its part of weights and moments, and none gathers the model; "
        "any engine and number of ranks goes on from it"
    )  # fmt: skip
    patience: float = Field(
        1800, gt=0, description="seconds that a rank waits for another before the run ends with an error and can be "
        "started again; the first one judges every member at the end while the others wait"
    )  # fmt: skip


class PretrainConfig(Settings):
    """Elastic MoE pre-training."""

    seed: Seed = 0
    engine: Literal["plain", "megatron"] = Field(
        "plain", description="what runs the layers: plain PyTorch, or Megatron-Core with its kinds of parallelism"
    )
    parallel: ParallelConfig = ParallelConfig()
    model: ModelShape = ModelShape()
    elastic: ElasticConfig = ElasticConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = Field(300, ge=1)
    batch: int = Field(8, ge=1, description="sequences a step")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the products; bfloat16 is for GPUs, and many times slower on most CPUs"
    )
    attention: Literal["auto", "mask", "flex"] = Field(
        "auto", description="mask: PyTorch's attention under a mask; flex: FlexAttention, which keeps none and skips "
        "what is not seen; auto: flex on a GPU for sequences of 1024 positions or more"
    )  # fmt: skip
    batch_ramp: float = Field(
        0.0, ge=0, le=1, description="share of the steps over which the batch grows from a quarter to the whole"
    )
    long_context: LongContext = LongContext()
    mtp_weight: float = Field(0.3, ge=0, description="of multi-token prediction beside the next token's loss")
    history_dropout: float = Field(0.1, ge=0, lt=1, description="chance that an earlier video frame is hidden")
    bit_flips: BitFlips = BitFlips()
    scale_weight: float = Field(
        0.5,
        ge=0,
        le=2,
        description="power of (last side / side) by which the bits of early scales weigh more; 0: alike",
    )
    balance_step: float = Field(1e-3, ge=0, description="u: how far a selection bias moves in a step")
    code_noise: float = Field(
        0.0, ge=0, lt=1, description="chance that an audio code read in training is replaced by a random one"
    )
    loss_memory: float = Field(0.98, ge=0, lt=1, description="decay of the running losses that weigh the modalities")
    spike_deviations: float = Field(
        10.0, ge=0, description="a step whose loss lies so many robust deviations above the recent ones is not learnt "
        "from; 0: every step is"
    )  # fmt: skip
    deterministic: bool = Field(False, description="only operations that give the same bits each time, on a GPU too")
    checkpoint_every: int = Field(100, ge=1)
    checkpoints_kept: int = Field(2, ge=1, description="newest checkpoints of an unfinished run that stay on disk")
    validation_sequences: int = Field(64, ge=1, description="validation sequences each family member is judged on")
    family: Family = (MemberSpec(name="full", layers=8, experts=16, top_k=4), *MEMBERS)

    def recovering(self, steps: int, rate: float) -> "PretrainConfig":
        """This run's settings for `steps` of further training of a member cut out of its model.

        No elasticity, one stage, one process; the learning rate, `rate` times that of the run, rises over a twentieth
        of the steps and falls to the end.
        """
        fall = {"warmup_steps": max(1, steps // 20), "decay_share": 1.0}
        rates = {"learning_rate": self.optimizer.learning_rate * rate, **fall}
        changes = {"elastic": ElasticConfig(enabled=False), "long_context": LongContext(), "batch_ramp": 0.0}
        changes |= {
            "engine": "plain",
            "parallel": ParallelConfig(),
            "optimizer": self.optimizer.model_copy(update=rates),
        }
        return self.model_copy(update={**changes, "steps": steps})

    def resumed_under(self) -> dict[str, Any]:
        """The settings that change what is learnt; the others may change between the parts of a run.

        Those say which code runs the layers and on how many processes, when states are saved, and on what the trained
        model is judged.
        """
        others = {"engine", "parallel", "attention", "checkpoint_every", "checkpoints_kept"}
        return self.model_dump(mode="json", exclude=others | {"validation_sequences", "family"})

    @property
    def first_steps(self) -> int:
        """Steps of stage 1."""
        return self.steps - round(self.steps * self.long_context.share)

    @model_validator(mode="after")
    def _engine_can(self) -> "PretrainConfig":
        parallel, model = self.parallel, self.model
        split = {name: getattr(parallel, name) for name in ("expert", "tensor", "context", "pipeline")}
        if self.engine == "plain" and (asked := [name for name, size in split.items() if size > 1]):
            raise ValueError(f"parallel.{asked[0]} above 1 needs engine: megatron; the plain engine has DDP and shard")
        if self.engine == "megatron" and self.attention == "flex":
            raise ValueError("attention: flex belongs to engine: plain; Megatron-Core's layers take a mask")
        if self.engine == "megatron" and parallel.shard:
            raise ValueError("parallel.shard belongs to engine: plain; Megatron-Core splits its optimizer by itself")
        if self.engine == "plain" and parallel.distributed_checkpoint:
            raise ValueError(
                "parallel.distributed_checkpoint belongs to engine: megatron; the plain engine gathers its checkpoints"
            )
        if parallel.microbatches > 1 and parallel.pipeline == 1:
            raise ValueError("parallel.microbatches above 1 needs parallel.pipeline above 1, stages to go through")
        for name, what, size in (
            ("expert", "experts", model.experts),
            ("tensor", "heads", model.heads),
            ("tensor", "shared_hidden", model.shared_hidden),
            ("pipeline", "layers", model.layers),
        ):
            if size % split[name]:
                raise ValueError(f"parallel.{name} is {split[name]}; it must divide model.{what}, which is {size}")
        return self


class AnalyseConfig(Settings):
    """Routing analysis (foundation model, section 6)."""

    sequences: int = Field(16, ge=1, description="validation sequences to route, every kind of document among them")
    members: Family = Field(MEMBERS, description="analysed beside the full model")
    seed: Seed = 0


def model_config(config: PretrainConfig, meta: Mapping[str, Any]) -> ModelConfig:
    """The model that fits the vocabularies of packed data, which `meta` (its meta.json) states."""
    shape = config.model.model_dump()
    layers, experts, top_k = shape.pop("layers"), shape.pop("experts"), shape.pop("top_k")
    if not meta.get("understanding", False):
        shape["vit_layers"] = 0
    return ModelConfig.parse(
        {
            **shape,
            "experts": (experts,) * layers,
            "top_k": (top_k,) * layers,
            **{name: meta[name] for name in ("text_vocabulary", "bits", "frames", "audio_levels", "audio_codebook")},
            "scales": tuple(meta["scales"]),
            "voice_size": meta.get("voice_size", 0),
        },
        where="pretrain.model",
    )
