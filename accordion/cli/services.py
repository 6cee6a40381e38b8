"""Commands on this machine and its services."""

import json
from typing import Annotated, Any

import typer

from accordion.cli.app import app


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
    from accordion.serve.services import mlflow_page

    mlflow, triton = state["mlflow"], state["triton"]
    hint = "not running (`accordion up` starts it)"
    shown = f"{mlflow_page(mlflow['url'])}  log {mlflow['log']}" if mlflow["running"] else hint
    typer.echo(f"MLflow    {shown}")
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
