"""Commands that use a model: search with an encoder, generate text, pictures, films and voices."""

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
    prompt: Annotated[str | None, typer.Argument(help="A question, answered as the policy was trained to.")] = None,
    text: Annotated[str | None, typer.Option(help="A text: continued, or with --out FILE.wav read aloud.")] = None,
    caption: Annotated[str | None, typer.Option(help="What to draw (.png) or film (.mp4).")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture: described, or with .mp4 set in motion.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A sound: transcribed.")] = None,
    video: Annotated[Path | None, typer.Option(help="A film: described, or continued (.mp4).")] = None,
    voice: Annotated[
        Path | None, typer.Option(help="A sound: with --text and --out FILE.wav, who reads aloud.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New file: .png, .mp4 or .wav; without it, text is printed.")] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", "--model", help="KIND, KIND:DIGEST or a folder: policy, checkpoint, family.")
    ] = "",
    member: Annotated[str | None, typer.Option(help="A member of a family: with --checkpoint family.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest text.")] = 32,
    seconds: Annotated[float, typer.Option(help="Longest sound, read or made.")] = 5.0,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest each time. [text 0, media 1]")] = None,
    top_k: Annotated[int, typer.Option(help="Only so many of the likeliest tokens or codes; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest that have this probability together.")] = 1.0,
    guidance: Annotated[float, typer.Option(help="Of a caption over none, for images and films.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
) -> None:
    """Let a model answer, continue, describe, draw, film, transcribe or speak.

    Examples: `accordion generate "3 + 4 ="`, `accordion generate --text "In the beginning"`,
    `accordion generate --image photo.jpg`, `accordion generate --caption "a cat" --out cat.png`,
    `accordion generate --audio word.wav`, `accordion generate --text "hello" --out hello.wav`,
    `accordion generate --text "hello" --voice me.wav --out hello.wav`,
    `accordion generate --video clip.mp4 --out more.mp4`
    """
    from accordion.errors import DataError
    from accordion.generate import Creator, Sampling
    from accordion.generate.command import Request, run
    from accordion.lookup import open_verified
    from accordion.model import load_model
    from accordion.tokenize import MadeWith

    request = Request(
        question=prompt, text=text, caption=caption, image=image, audio=audio, video=video, voice=voice, out=out,
        longest=max_tokens, seconds=seconds,
    )  # fmt: skip
    source, wanted = request.kinds()
    if temperature is None:
        temperature = 0.0 if wanted == "text" else 1.0
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance, seed=seed)
    folder = open_verified(checkpoint or ("policy" if source == "question" else "checkpoint"))
    weights = folder / "members" / member if member else folder
    if not (weights / "model.safetensors").is_file():
        members = folder / "members"
        names = ", ".join(sorted(path.name for path in members.iterdir())) if members.is_dir() else ""
        raise DataError(f"{weights}: holds no model" + (f"; choose a --member: {names}" if names else ""))
    typer.echo(run(request, Creator(load_model(weights), MadeWith(folder)), sampling))
