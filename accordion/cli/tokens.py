"""The command that turns files into tokens and back."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from accordion.cli.app import app
from accordion.errors import AccordionError


@app.command()
def tokenize(
    files: Annotated[list[Path], typer.Argument(help="Text, images, audio, video; told apart by their content.")],
    reconstruct: Annotated[Path | None, typer.Option(help="Folder for what the tokens decode to.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a run whose tokenizers to use; else the newest.")] = None,
    tokenizer: Annotated[list[str] | None, typer.Option(help="Use this one: KIND:DIGEST or a folder. Repeats.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Turn files into tokens and back, and say how many, at what rate, and how near the decoded file is.

    Text (UTF-8), PNG/JPEG/WebP/GIF, WAV/FLAC/OGG/MP3/GSM, MP4/WebM. Exits with 2 at the end if a file failed.

    Examples: `accordion tokenize notes.txt photo.jpg`, `accordion tokenize --reconstruct decoded speech.wav clip.mp4`
    """
    from accordion.tokenize import Outputs, Tokenizers, describe
    from accordion.tokenize import tokenize as convert

    tokenizers = Tokenizers.of(run, tokenizer or ())
    outputs = Outputs(reconstruct) if reconstruct else None
    documents: list[dict[str, Any]] = []
    for file in files:
        try:
            found = convert(file, tokenizers, outputs)
        except AccordionError as error:
            typer.echo(f"accordion: {error}", err=True)
            documents.append({"file": _printable(str(file)), "error": _printable(str(error))})
            continue
        documents.append(found.to_json())
        if not as_json:
            first, *lines = describe(found)
            typer.echo(f"{_printable(str(file))}: {first}")
            for line in lines:
                typer.echo(f"  {_printable(line)}")
            if found.pieces:
                typer.echo(f"  {_coloured([piece for _, piece in found.pieces])}")
    if as_json:
        typer.echo(json.dumps(documents, indent=1))
    if any("error" in document for document in documents):
        raise typer.Exit(2)


def _coloured(pieces: list[str]) -> str:
    """Tokens side by side with a bar between them, in two colours by turns where the terminal has colours."""
    colours = (typer.colors.CYAN, typer.colors.YELLOW)
    return "|".join(typer.style(piece, fg=colours[i % 2]) for i, piece in enumerate(pieces))


def _printable(text: str) -> str:
    """`text` without what no terminal can take: names of files may hold bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
