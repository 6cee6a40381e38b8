"""`python -m accordion.study`: the family experiment on any machine with torch, without Flyte, MLflow or DVC.

    python -m accordion.study export --shards DIR --out DIR
    python -m accordion.study run --profile configs/study-gpu.yaml --data DIR --out DIR --jobs 6 --time-limit 540
    python -m accordion.study conclude --profile configs/study-gpu.yaml --data DIR --out DIR [--results DIR]

A run that is stopped ends with status 3 and goes on when it is called again with the same folders; `conclude` says
what the finished units say so far.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accordion.config.profile import load_profile
from accordion.device import device
from accordion.errors import AccordionError, Interrupted
from accordion.home import git_commit
from accordion.observe import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the arguments; 0: all is done, 3: stopped or out of time, call again, 2: wrong."""
    call = sys.argv[1:] if arguments is None else list(arguments)
    given = _parser().parse_args(call)
    try:
        return _export(given) if given.command == "export" else _run(given, call)
    except AccordionError as error:
        say(f"error: {error}")
        return 3 if isinstance(error, Interrupted) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m accordion.study", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="packed shards as compressed columns that need no other library")
    export.add_argument("--shards", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True, help="a new folder")
    for name, text in (("run", "run what is not finished, then conclude"), ("conclude", "say what is finished so far")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--profile", required=True, help="name of a profile in configs/, or a YAML file")
        command.add_argument("--data", type=Path, required=True, help="what `export` wrote")
        command.add_argument("--out", type=Path, required=True, help="folder of the units, kept between calls")
        command.add_argument("--results", type=Path, help="folder of the results; default: OUT/results")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides of the profile")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--commit", default="", help="of the code, where there is no git checkout")
        if name == "run":
            command.add_argument("--jobs", type=_number, default=1, help="units at once")
            command.add_argument("--threads", type=_number, default=1, help="CPU threads of each")
            command.add_argument("--time-limit", type=float, help="seconds after which units save their state and stop")
    return parser


def _number(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}; wants 1 or more")
    return value


def _export(given: argparse.Namespace) -> int:
    from accordion.study.data import export

    export(given.shards, given.out)
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    say(f"{given.out}: {size / 1e6:.1f} MB")
    return 0


def _run(given: argparse.Namespace, call: Sequence[str]) -> int:
    start = time.time()
    import torch

    from accordion.study.study import conclude, has_a_seed, prepare, run_units

    profile = load_profile(given.profile, tuple(given.set))
    limit = getattr(given, "time_limit", None)
    whole = True
    with device(given.device):
        torch.set_num_threads(getattr(given, "threads", 1))
        deadline = None if limit is None else start + limit
        command = shlex.join(["python", "-m", "accordion.study", *call])
        about = {"command": command, "commit": given.commit or git_commit()}
        place = prepare(profile.study, given.data, given.out, **about, deadline=deadline)
        if given.command == "run":
            whole = run_units(place, jobs=given.jobs, threads=given.threads)
            say(f"study: {'all units finished' if whole else 'time ran out'} after {time.time() - start:.0f} s")
        if not whole and not has_a_seed(place):
            say("study: no seed has both its elastic and its fixed run yet; call again to go on")
            return 3
        out = given.results or given.out / "results"
        results = conclude(place, out)
    _say_summary(results["summary"])
    return 0 if whole else 3


def _say_summary(summary: dict[str, Any]) -> None:
    for name, value in summary["tax"].items():
        say(f"tax, {name}: {_text(value)}")
    for member, found in summary["members"].items():
        shares = {"0": found["gap"], **{share: part["gap"] for share, part in found["recovery"].items()}}
        for name in ("text", "mean"):
            line = ", ".join(f"{share}: {_text(gap[name])}" for share, gap in shares.items() if gap)
            say(f"gap of {member} by share of recovery, {name}: {line}")
    for line in _costs(summary["cost"]):
        say(line)
    for name, variant in summary["variants"].items():
        if variant["tax"]:
            say(f"{name}: tax {_text(variant['tax']['mean'])}")


def _costs(cost: dict[str, Any]) -> Iterator[str]:
    """A line for what is compared, in what it is counted, and how much of recovery is counted with it."""
    for label, sides in cost.items():
        name = label.replace("_", " ")
        for side, found in sides.items():
            shares = {"": found} if "mean" in found else {f", {float(s):.0%} recovery": v for s, v in found.items()}
            for share, value in shares.items():
                yield f"cost, {name}, in {side}{share}: {_text(value)}"


def _text(value: dict[str, Any]) -> str:
    around = "" if value["low"] is None else f" [{value['low']:.4f}, {value['high']:.4f}]"
    return f"{value['mean']:.4f}{around}"


if __name__ == "__main__":
    sys.exit(main())
