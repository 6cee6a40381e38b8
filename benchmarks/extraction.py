"""Cutting a member out of a model against reading the model's bytes and writing the member's.

A model of 12 layers, hidden 512 and 32 experts of 256 (some 170 million parameters, 0.7 GB in float32) of random
numbers, and its member of 9 layers and 16 experts. Both sides end with the file on the disk (fsync); what is read lies
in the page cache for both. The model has a manifest, as every artifact has, so that its digest is known.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from accordion.config.pretrain import ModelConfig
from accordion.extract import extract_member
from accordion.model import Model, SubmodelSpec, save_model
from accordion.model.files import WEIGHTS
from accordion.store.manifest import Manifest, describe_files
from benchmarks.harness import Figures, Row, paired

REPEATS = 5
CHUNK = 1 << 24  # bytes
SHAPE = ModelConfig(
    hidden=512, heads=8, experts=(32,) * 12, top_k=(4,) * 12, expert_hidden=256, shared_hidden=256, rope_base=1e6,
    text_vocabulary=8192, bits=10, scales=(1, 2, 4, 8), frames=4, audio_levels=4, audio_codebook=64,
)  # fmt: skip
MEMBER = {"layers": 9, "experts": 16, "top_k": 2}


def run(repeats: int, shape: ModelConfig = SHAPE, member: dict[str, int] = MEMBER) -> list[Row]:
    """Time both, in pairs."""
    with tempfile.TemporaryDirectory() as place:
        policy, out = Path(place) / "policy", Path(place) / "member"
        policy.mkdir()
        save_model(Model(shape), policy)
        Manifest(kind="policy", stage="benchmark", config={}, parents={}, files=describe_files(policy)).write(policy)
        spec = SubmodelSpec.nested(shape, **member)
        extract_member(policy, spec, out)
        whole, part = (folder / WEIGHTS for folder in (policy, out))
        size = part.stat().st_size
        shutil.rmtree(out)

        def copy() -> None:
            out.mkdir()
            with open(whole, "rb") as source, open(out / WEIGHTS, "wb") as target:
                written = 0
                while data := source.read(CHUNK):
                    written += target.write(data[: max(0, size - written)])
                target.flush()
                os.fsync(target.fileno())

        ours = _timed(lambda: extract_member(policy, spec, out), out)
        found = paired(ours, _timed(copy, out), repeats=repeats, label="extraction")
        share = size / whole.stat().st_size
    left, right = found["seconds"]
    label = f"a member of {share:.0%} of {_name(shape)}"
    return [
        Row(figure=label, unit="s", ours="extract", peer="read + write the same bytes", ours_values=left,
            peer_values=right, aim="ratio at most 1.5"),
    ]  # fmt: skip


def _name(shape: ModelConfig) -> str:
    """Layers and experts of the full model."""
    return f"{shape.layers} layers of {shape.experts[0]} experts"


def _timed(work: Callable[[], None], out: Path) -> Callable[[], Figures]:
    def measure() -> Figures:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        shutil.rmtree(out)
        return {"seconds": seconds}

    return measure
