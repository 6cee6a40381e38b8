"""A tiny policy, its tokenizer and the settings of stages that end in seconds."""

from pathlib import Path

from accordion.config.data import TextTokenizerConfig
from accordion.config.posttrain import RlConfig, SftConfig, TaskConfig
from accordion.config.pretrain import ElasticConfig
from accordion.data.tokenizers.text import TextTokenizer
from accordion.data.tokenizers.text_training import fit
from accordion.model import Model, save_model
from tests.unit.model.synthetic import small_config

TERMS = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
TASK = TaskConfig(parameters=TERMS, prompt="{expression} =")
ELASTIC = ElasticConfig(layers=(4, 5), experts=(3, 6), top_k=(2, 3), warmup_share=0.0)


def tiny_tokenizer() -> TextTokenizer:
    return fit(TextTokenizerConfig(vocabulary=400), ["1 + 2 - 3 =", "4 - 5 + 6 = 7 8 9 0"])


def tiny_model(seed: int = 0) -> Model:
    return Model(small_config(hidden=32, expert_hidden=16, text_vocabulary=tiny_tokenizer().vocabulary), seed=seed)


def write_policy(folder: Path) -> tuple[Path, Path]:
    """Folders of a random policy and of its tokenizer."""
    policy, text = folder / "policy", folder / "text"
    policy.mkdir()
    text.mkdir()
    save_model(tiny_model(), policy)
    tiny_tokenizer().save(text)
    return policy, text


def sft_config(**changes) -> SftConfig:
    values = {
        "tasks": (TASK,), "problems": 8, "steps": 4, "batch": 8, "replay_every": 2, "replay_batch": 2,
        "elastic": ELASTIC, "validation": 8, "held_out": 10, "answer_tokens": 4,
    }  # fmt: skip
    return SftConfig(**{**values, **changes})


def rl_config(**changes) -> RlConfig:
    values = {"tasks": (TASK,), "steps": 2, "queries": 4, "group": 4, "answer_tokens": 4, "held_out": 200}
    return RlConfig(**{**values, **changes})
