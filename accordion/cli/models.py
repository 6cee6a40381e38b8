"""Commands that use a model: search with an encoder, let a policy answer."""

from pathlib import Path
from typing import Annotated

import typer

from accordion.cli.app import app


@app.command()
def query(
    text: Annotated[str, typer.Argument(help="What to search for.")],
    domain: Annotated[str, typer.Option(help="Collection of the corpus.")] = "libreoffice-help",
    k: Annotated[int, typer.Option("-k", help="How many documents.")] = 5,
    encoder: Annotated[str, typer.Option(help="KIND, KIND:DIGEST or a folder.")] = "encoder",
    documents: Annotated[Path | None, typer.Option(help="A corpus.jsonl (BEIR layout) of your own.")] = None,
) -> None:
    """Search a collection with an encoder. The first search of a collection embeds it; later ones are quick.

    Example: `accordion query "how do I print a page" -k 3`
    """
    from accordion.errors import DataError
    from accordion.home import home
    from accordion.lookup import ancestor, open_verified
    from accordion.retrieval.query import query as search

    folder = open_verified(encoder)
    if documents is None:
        collections = ancestor(folder, "corpus") / "retrieval"
        documents = collections / domain
        if not documents.is_dir():
            names = ", ".join(sorted(path.name for path in collections.iterdir()))
            raise DataError(f"--domain {domain}: no such collection; there are: {names}")
    for hit in search(folder, documents, text, k=k, cache=home() / "indexes"):
        typer.echo(f"{hit.rank:>3}  {hit.score:.3f}  {hit.document}  {' '.join(hit.text.split())[:100]}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="A problem, or with --raw the beginning of a text.")],
    model: Annotated[
        str, typer.Option(help="KIND, KIND:DIGEST or a folder: policy, policy-sft, checkpoint.")
    ] = "policy",
    member: Annotated[str | None, typer.Option(help="A member of a family: use with --model family.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 32,
    temperature: Annotated[float, typer.Option(help="0: the most likely token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    raw: Annotated[bool, typer.Option(help="Continue the text instead of answering it.")] = False,
) -> None:
    """Let a model answer a problem or continue a text.

    Examples: `accordion generate "3 + 4 ="`, `accordion generate --raw --model checkpoint "In the beginning"`,
    `accordion generate --model family --member small "3 + 4 ="`
    """
    import torch

    from accordion.data.tokenizers.text import BOS, TextTokenizer
    from accordion.errors import DataError
    from accordion.lookup import ancestor, open_verified
    from accordion.model import load_model
    from accordion.rl.rollout import chat_prompt, sample

    if not prompt.strip():
        raise DataError("the prompt is empty; give at least one word")
    folder = open_verified(model)
    weights = folder / "members" / member if member else folder
    if not (weights / "model.safetensors").is_file():
        members = folder / "members"
        names = ", ".join(sorted(path.name for path in members.iterdir())) if members.is_dir() else ""
        raise DataError(f"{weights}: holds no model" + (f"; choose a --member: {names}" if names else ""))
    tokenizer = TextTokenizer.load(ancestor(folder, "tokenizer-text"))
    tokens = [BOS, *tokenizer.encode(prompt)] if raw else chat_prompt(tokenizer, prompt)
    answer = sample(
        load_model(weights), [tokens], max_tokens=max_tokens, temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    typer.echo((prompt if raw else "") + answer.texts(tokenizer)[0])
