"""The application, and the kinds of arguments that its commands share."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from accordion.errors import AccordionError


class Commands(TyperGroup):
    """Shows an error that a user can act on as its text, without a traceback, and exits with 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AccordionError as error:
            typer.echo(f"accordion: {error}", err=True)
            sys.exit(2)


app = typer.Typer(
    cls=Commands,
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
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
