"""Commands on what runs made: artifacts, versions of data, reports."""

import json
from pathlib import Path
from typing import Annotated

import typer

from accordion.cli.app import Artifact, AsJson, Commands, app


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


data = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data", help="Versions of datasets and tokenizers: list, compare, restore.")


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
