"""`python -m benchmarks --list` and `python -m benchmarks NAME [--json FILE] [--repeats N]`."""

import difflib
import importlib
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from accordion.errors import AccordionError
from benchmarks.harness import Row, Sheet, machine, show, write_json

# name -> module with `run(repeats) -> rows and sheets` and `REPEATS`
BENCHMARKS = {
    "loader": "benchmarks.loader",
    "orchestration": "benchmarks.orchestration",
    "serving": "benchmarks.serving",
    "duplicates": "benchmarks.duplicates",
    "fertility": "benchmarks.fertility",
    "text-tokenizer": "benchmarks.text_tokenizer",
    "media-tokenizers": "benchmarks.media_tokenizers",
    "elasticity": "benchmarks.elasticity",
    "family-cost": "benchmarks.family_cost",
    "extraction": "benchmarks.extraction",
    "moe-layer": "benchmarks.moe_layer",
    "train-step": "benchmarks.train_step",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(help="Which benchmark to run; --list shows them.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what can be measured.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every value to this file.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Pairs that count; each benchmark has a default.")] = None,
) -> None:
    """Measure two ways to do the same thing side by side and print their ratios."""
    if listing:
        for known, path in BENCHMARKS.items():
            typer.echo(f"{known:15} {description(path)}")
        return
    if name is None:
        fail(f"name a benchmark: {', '.join(BENCHMARKS)} (`python -m benchmarks --list` describes them)")
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1)
        fail(
            f"no benchmark {name!r}"
            + (f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(BENCHMARKS)}")
        )
    module = importlib.import_module(BENCHMARKS[name])
    facts = machine()
    try:
        found: list[Row | Sheet] = module.run(repeats or module.REPEATS)
    except AccordionError as error:
        fail(str(error))
    show(f"{name}: {description(BENCHMARKS[name])}", found, Console(width=None if sys.stdout.isatty() else 140))
    if json_file is not None:
        write_json(json_file, name, facts, found)
        typer.echo(f"written: {json_file}")


def description(module: str) -> str:
    """First line of a benchmark module's docstring, read without importing what it measures."""
    source = Path(__file__).with_name(f"{module.rpartition('.')[2]}.py").read_text()
    return source.split('"""')[1].splitlines()[0]


def fail(message: str) -> NoReturn:
    """End with one line on stderr and exit status 2."""
    typer.echo(f"benchmarks: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
