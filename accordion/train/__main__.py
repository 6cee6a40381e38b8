"""`python -m accordion.train`: the pre-training stage alone, on one process or under a launcher of several.

    python -m accordion.train --profile smoke --shards DIR --out DIR --resume DIR --set pretrain.parallel.processes=2
    torchrun --nproc-per-node 2 -m accordion.train --profile smoke --shards DIR --out DIR --resume DIR \\
        --set pretrain.engine=megatron --set pretrain.parallel.expert=2

A run that is stopped goes on when it is called again with the same `--resume`, on any number of processes.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from accordion.config.profile import load_profile
from accordion.device import device
from accordion.errors import AccordionError, DataError, Interrupted, RankLost
from accordion.observe import say
from accordion.store.atomic import atomic_write
from accordion.train.launch import launch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage with the arguments; 0: it is done, 3: it was stopped or lost a process and goes on when it is
    called again, 2: an error of the user."""
    parser = argparse.ArgumentParser(prog="python -m accordion.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", required=True, help="name of a profile in configs/, or a YAML file")
    parser.add_argument("--shards", type=Path, required=True, help="what the pack stage made")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the model and its metrics")
    parser.add_argument("--resume", type=Path, required=True, help="folder of the checkpoints, kept between calls")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides of the profile")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args(arguments)
    leader = os.environ.get("RANK", "0") == "0"
    try:
        profile = load_profile(given.profile, tuple(given.set))
        if leader:
            given.out.mkdir(parents=True, exist_ok=True)
            if any(given.out.iterdir()):  # empty is what a launcher finds that starts the processes again
                raise DataError(f"{given.out}: exists and is not empty; name a new folder")
        with device(given.device):
            metrics = launch(profile.pretrain, shards=given.shards, out=given.out, resume=given.resume)
    except AccordionError as error:
        say(f"error: {error}")
        return 3 if isinstance(error, Interrupted | RankLost) else 2
    if leader:
        atomic_write(given.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
