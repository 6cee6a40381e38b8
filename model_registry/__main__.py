"""`python -m model_registry history|promote|rollback|register-member`: the registry from the command line."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from accordion.config import Profile, load_profile
from accordion.errors import AccordionError
from accordion.home import home
from accordion.store import Store
from model_registry import history as journal
from model_registry.policy import CANDIDATE, CHAMPION, PREVIOUS
from model_registry.promote import promote as make_champion
from model_registry.rollback import rollback as go_back

app = typer.Typer(help="Who is champion, who was, and how to change it.", no_args_is_help=True)
ProfileOption = Annotated[str, typer.Option(help="Profile that names the model and the services.")]
ReasonOption = Annotated[str, typer.Option(help="Kept in the journal.")]
ServerOption = Annotated[bool, typer.Option(help="Change what Triton serves too.")]


@app.command()
def history(profile: ProfileOption = "smoke") -> None:
    """List who was champion, from when to when, and by what command."""
    model = load_profile(profile).register_model.model
    rows = journal.reigns(model)
    for reign in rows:
        until = reign.until or "now"
        typer.echo(
            f"{model} version {reign.version}: {reign.since} to {until}, by {reign.action} {reign.reason}".rstrip()
        )
    if not rows:
        typer.echo(f"{model}: no version was ever champion")


@app.command()
def promote(
    version: int, profile: ProfileOption = "smoke", reason: ReasonOption = "", server: ServerOption = True
) -> None:
    """Make VERSION the champion and, unless told otherwise, what Triton serves."""
    settings, mlflow = _open(profile)
    model = settings.register_model.model
    changed = make_champion(mlflow, model, version, reason=reason, serve=_serve(settings, server))
    typer.echo(f"{model}: version {version} is champion" + ("" if changed else " (it was already)"))


@app.command()
def rollback(profile: ProfileOption = "smoke", reason: ReasonOption = "", server: ServerOption = True) -> None:
    """Make the previous champion champion again."""
    settings, mlflow = _open(profile)
    model = settings.register_model.model
    version, changed = go_back(mlflow, model, reason=reason, serve=_serve(settings, server))
    typer.echo(f"{model}: version {version} is champion" + ("" if changed else " (already rolled back)"))


@app.command("register-member")
def register_member(
    folder: Annotated[Path, typer.Argument(help="A member: cut by hand, found by a search, or recovered.")],
    name: Annotated[str | None, typer.Option(help="Of its size; the folder's when not given.")] = None,
    profile: ProfileOption = "smoke",
) -> None:
    """Register one member of the family, linked to the full model it was cut from.

    Example: `python -m model_registry register-member better --name small-recovered`
    """
    from accordion.home import git_commit
    from accordion.lookup import store, versions
    from model_registry.members import register_member as register
    from tasks._tracking import client, experiment, source_tags, tracking_uri

    settings, commit = load_profile(profile), git_commit()
    uri = tracking_uri(settings.runtime)
    mlflow = client(uri)
    version, new = register(
        settings.register_family, member=folder, name=name or folder.resolve().name, client=mlflow, store=store(),
        versions=versions(), experiment=experiment(mlflow, uri, Path(profile).stem),
        tags={"git_commit": commit, **source_tags("model_registry", commit)},
    )  # fmt: skip
    typer.echo(f"{version.name}: version {version.version}" + ("" if new else " (it was already registered)"))


@app.command()
def aliases(profile: ProfileOption = "smoke") -> None:
    """Show which version carries which alias."""
    settings, mlflow = _open(profile)
    now = mlflow.get_registered_model(settings.register_model.model).aliases
    for name in (CANDIDATE, CHAMPION, PREVIOUS):
        typer.echo(f"{name}: {now.get(name, 'none')}")


def _open(profile: str) -> tuple[Profile, Any]:
    from tasks._tracking import client, tracking_uri

    settings = load_profile(profile)
    return settings, client(tracking_uri(settings.runtime))


def _serve(settings: Profile, wanted: bool) -> Any:
    if not wanted:
        return None
    from model_registry.release import server

    return server(settings.rollout, Store(home() / "store"))


if __name__ == "__main__":
    try:
        app()
    except AccordionError as error:
        sys.exit(f"error: {error}")
