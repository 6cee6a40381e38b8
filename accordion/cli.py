"""The command line `accordion`: what users do outside Flyte. Commands import what they use when they run."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from accordion.errors import AccordionError


class _Commands(TyperGroup):
    """Shows an error that a user can act on as its text, without a traceback, and exits with 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AccordionError as error:
            typer.echo(f"accordion: {error}", err=True)
            sys.exit(2)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Accordion: one elastic pre-training run, a family of models, served by Triton.

    The pipeline itself is started with `make run`. Afterwards, for example:

    \b
      accordion status --latest           where the report, MLflow and the served model are
      accordion query "insert a chart"    search a collection with the newest encoder
      accordion inspect encoder           verify it and print what it was made from
    """,
)
Artifact = Annotated[str, typer.Argument(help="KIND (its newest), KIND:DIGEST (the beginning is enough), or a folder.")]


@app.command()
def doctor() -> None:
    """Check this machine, and name what is missing with its remedy. Exits with 1 when something needed is missing."""
    from accordion.doctor import examine

    checks = examine()
    for check in checks:
        mark = "ok  " if check.ok else ("FAIL" if check.needed else "note")
        typer.echo(f"{mark}  {check.name:<26}{check.detail}")
        if not check.ok and check.remedy:
            typer.echo(f"      {'':<26}-> {check.remedy}")
    if any(check.needed and not check.ok for check in checks):
        raise typer.Exit(1)


Only = Annotated[list[str] | None, typer.Option(help="Only this service: `mlflow` or `triton`. May be repeated.")]


@app.command()
def up(only: Only = None) -> None:
    """Start the local services (MLflow server, Triton) and wait until they answer; a second call changes nothing.

    Example: `accordion up --only triton`
    """
    from accordion.serve.services import NAMES
    from accordion.serve.services import up as start

    _show(start(tuple(only) if only else NAMES))


@app.command()
def down(only: Only = None) -> None:
    """Stop the local services."""
    from accordion.serve.services import NAMES
    from accordion.serve.services import down as stop

    stopped = stop(tuple(only) if only else NAMES)
    typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(
    latest: Annotated[bool, typer.Option("--latest", help="Also where the newest run's report is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show which services run, at which addresses, and which encoder version is served."""
    from accordion.home import home
    from accordion.serve.services import status as services

    state = services()
    if as_json:
        typer.echo(json.dumps(state, indent=1))
        return
    _show(state)
    report = home() / "latest" / "report.html"
    if latest:
        typer.echo(f"report    {report if report.is_file() else 'none yet: `make run` makes one'}")


def _show(state: dict[str, dict[str, Any]]) -> None:
    mlflow, triton = state["mlflow"], state["triton"]
    hint = "not running (`accordion up` starts it)"
    typer.echo(f"MLflow    {mlflow['url'] + '  log ' + mlflow['log'] if mlflow['running'] else hint}")
    if not triton["running"]:
        typer.echo(f"Triton    {hint}")
        return
    typer.echo(f"Triton    http {triton['http']}  grpc {triton['grpc']}  log {triton['log']}")
    stable = triton["pins"]["stable"]
    if stable is None:
        typer.echo("encoder   no version rolled out yet")
        return
    ready = "READY" if f"encoder/{stable}" in triton["ready"] else "NOT READY"
    previous = triton["pins"]["previous"]
    typer.echo(f"encoder   version {stable} is served ({ready}), previous {previous if previous else 'none'}")
    body = '{"inputs":[{"name":"TEXT","shape":[1],"datatype":"BYTES","data":["insert a chart"]}]}'
    typer.echo(f"example   curl -s {triton['http']}/v2/models/encoder/versions/{stable}/infer -d '{body}'")


@app.command()
def inspect(artifact: Artifact) -> None:
    """Verify every file of an artifact against its manifest, and print what it was made from.

    Examples: `accordion inspect policy`, `accordion inspect encoder:3fa9`, `accordion inspect runs/store/family/*`
    """
    from accordion.lookup import find, lineage
    from accordion.store import Manifest

    folder = find(artifact)
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    size = sum(entry["bytes"] for entry in manifest.files.values())
    typer.echo(f"{manifest.kind}:{manifest.digest}\n  folder   {folder}")
    typer.echo(f"  verified {len(manifest.files)} files, {size / 2**20:.1f} MiB, all as recorded")
    typer.echo(f"  stage    {manifest.stage}")
    for name, value in manifest.created.items():
        typer.echo(f"  {name:<8} {value}")
    typer.echo("  made from")
    found = False
    for link in lineage(folder):
        found = True
        note = " (shown above)" if link.repeated else "" if link.manifest else " (not in this store)"
        typer.echo(f"  {'   ' * link.depth}{link.name}: {link.artifact.kind}:{link.artifact.digest[:16]}{note}")
    if not found:
        typer.echo("     nothing: it is a source")


@app.command()
def extract(
    out: Annotated[Path, typer.Argument(help="New folder for the sub-model.")],
    layers: Annotated[int, typer.Option(help="Layers to keep.")],
    experts: Annotated[int, typer.Option(help="Experts to keep in each layer.")],
    top_k: Annotated[int, typer.Option(help="Experts active for each token.")],
    policy: Annotated[str, typer.Option(help="The full model: KIND, KIND:DIGEST or a folder.")] = "policy",
) -> None:
    """Cut a sub-model out of the full model: an ordinary model of its own, with the same weights.

    Example: `accordion extract small --layers 6 --experts 8 --top-k 2`
    """
    from accordion.extract.family import extract_member
    from accordion.lookup import open_verified
    from accordion.model import SubmodelSpec, load_model

    folder = open_verified(policy)
    model = load_model(folder)
    spec = SubmodelSpec.nested(model.config, layers=layers, experts=experts, top_k=top_k)
    extract_member(folder, spec, out, model=model)
    count = sum(parameter.numel() for parameter in load_model(out).parameters())
    typer.echo(f"{out}: {layers} layers, {experts} experts, top-{top_k}, {count:,} parameters")


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


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run; the newest when not given.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Render the report of a finished run again and print its path.

    Example: `accordion report --open`
    """
    from accordion.home import home
    from accordion.report.page import render
    from accordion.report.run import RunFigures

    folder = (run or home() / "latest").resolve()
    render(RunFigures.load(folder), out=folder)
    typer.echo(str(folder / "report.html"))
    if show:
        typer.launch(str(folder / "report.html"))


data = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data", help="Versions of datasets and tokenizers: list, compare, restore.")
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@data.command("list")
def list_versions(
    kind: Annotated[str | None, typer.Argument(help="Only this kind; datasets and tokenizers when not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every recorded version, oldest first: when it was made, its size, and how many runs used it.

    Examples: `accordion data list`, `accordion data list corpus`
    """
    from dataclasses import asdict

    from accordion.data.versions import KINDS, listed
    from accordion.lookup import known, versions

    found = listed(versions(), (known(kind).kind,) if kind else KINDS)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=1))
        return
    for each in found:
        name, _, digest = each.artifact.partition(":")
        size = f"{each.bytes / 2**20:8.1f} MiB {each.files:>4} files"
        place = "" if each.in_store else "  not in the store: `accordion data restore` brings it back"
        used = f"{each.runs} runs of {', '.join(each.profiles) or 'unknown'}"
        typer.echo(f"{each.at[:16]}  {name}:{digest[:16]:<18}{size}  {used}{place}")
    if not found:
        typer.echo("no versions yet: `make run` makes some")


@data.command("compare")
def compare_versions(before: Artifact, now: Artifact, as_json: AsJson = False) -> None:
    """Compare two versions of one kind: sizes, settings, counts, distributions, measured figures.

    Example: `accordion data compare corpus:3fa9 corpus:51bc`
    """
    from accordion.data.versions import compare
    from accordion.lookup import known, store, versions

    around = versions()
    folders = [around.open(known(text), lambda line: typer.echo(line, err=True)) for text in (before, now)]
    found = compare(folders[0], folders[1], store())
    if as_json:
        typer.echo(json.dumps(found.document(), indent=1))
        return
    typer.echo(f"{found.before}\n-> {found.now}")
    for title, pairs in (("size", found.sizes), ("settings", found.settings), ("figures", found.figures)):
        for name, (old, new) in pairs.items():
            typer.echo(f"  {title:<10}{name:<44}{_figure(old):>14} -> {_figure(new)}")
    for name, value in found.vocabulary.items():
        typer.echo(f"  vocabulary {name:<43}{_figure(value):>14}")
    for shift in found.shifts:
        mark = "  " if shift.within else "! "
        typer.echo(f"  {mark}{shift.figure:<42}{shift.measure:<20}{shift.value:>8.3f}   {shift.told}")
    outside = sum(not shift.within for shift in found.shifts)
    if found.shifts:
        typer.echo(f"  {outside} of {len(found.shifts)} distances are outside the default bounds (marked !)")
    for note in found.notes:
        typer.echo(f"  note: {note}")


@data.command("restore")
def restore_version(
    artifact: Artifact,
    to: Annotated[Path | None, typer.Option(help="New folder to write it into; without it, the store.")] = None,
) -> None:
    """Bring a version back from DVC's cache or remote, and verify every file against its manifest.

    Example: `accordion data restore corpus:3fa9 --to /tmp/corpus`
    """
    from accordion.data.versions import restore
    from accordion.lookup import known, versions

    folder = restore(versions(), known(artifact), to, lambda line: typer.echo(line, err=True))
    typer.echo(f"{folder}: restored, every file as recorded")


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    app()
