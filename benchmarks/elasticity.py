"""Elastic steps against plain ones: what the feature costs when nothing is skipped, and whether skipped work is free.

One forward and backward pass of 8 packed sequences of 512 random text tokens through 8 layers of hidden 256 with 64
experts, top-4, on the GPU in bfloat16 if there is one, otherwise on the CPU. `all rows full` draws the full model for
every row, which must cost what no drawing costs. A member's row compares its seconds a counted operation with the full
model's: 1 means that skipped layers and experts cost nothing.
"""

import time
from collections.abc import Callable, Mapping

import torch

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import TEXT, VOICE_SIZE, Batch
from accordion.device import settle, training_device
from accordion.model import Model, SubmodelSpec
from accordion.model.flops import RowCounts, row_counts, training_flops
from accordion.model.sampler import Draw
from benchmarks.harness import Figures, Row, paired

REPEATS = 7
PROCESSOR = "processor s"  # what other work on the machine does not lengthen
ROWS, LENGTH = 8, 512
SHAPE = ModelConfig(
    hidden=256, heads=4, experts=(64,) * 8, top_k=(4,) * 8, expert_hidden=256, shared_hidden=0, rope_base=1e6,
    text_vocabulary=8192, bits=10, scales=(1, 2, 4, 8), frames=4, audio_levels=4, audio_codebook=64,
)  # fmt: skip
MEMBERS = {
    "6 of 8 layers": {"layers": 6},
    "32 of 64 experts": {"experts": 32},
    "top-2 of 4": {"top_k": 2},
    "top-1 of 4": {"top_k": 1},
    "all three": {"layers": 6, "experts": 32, "top_k": 2},
}


def run(
    repeats: int, shape: ModelConfig = SHAPE, members: dict[str, dict[str, int]] = MEMBERS, length: int = LENGTH
) -> list[Row]:
    """Time the passes, in pairs."""
    device = training_device()
    model = Model(shape, seed=0).train().to(device)
    batch = text_batch(shape, ROWS, length).to(device)
    counts = [RowCounts(*row) for row in row_counts(batch).tolist()]
    full = SubmodelSpec.full(shape)

    def step(draw: Draw, share: float = 1.0) -> Callable[[], Figures]:
        return lambda: {unit: seconds / share for unit, seconds in _pass(model, batch, draw, device).items()}

    found = paired(step(Draw([full] * ROWS)), step(Draw()), repeats=repeats, label="all rows full", warm_up=2)
    rows = _rows("all rows full", found, peer="no drawing", aim="ratio at most 1.02")
    work = training_flops(shape, Draw(), counts, length)
    for name, kept in members.items():
        draw = Draw([SubmodelSpec.nested(shape, **kept)] * ROWS)
        share = training_flops(shape, draw, counts, length) / work
        found = paired(step(draw, share), step(Draw()), repeats=repeats, label=name)
        label = f"{name}, {100 * share:.0f} % of the operations"
        rows += _rows(label, found, peer="full model", aim="ratio at most 1.15")
    return rows


def text_batch(shape: ModelConfig, rows: int, length: int) -> Batch:
    """`rows` sequences of one document of random text each."""
    tokens = torch.randint(16, shape.text_vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    index = torch.arange(length).expand(rows, length)
    none = torch.full((rows, length), -1)
    codes = none.unsqueeze(-1).expand(-1, -1, shape.audio_levels)
    return Batch(
        modality=torch.full((rows, length), TEXT), document=torch.zeros_like(none), group=index.clone(),
        position=index.float().unsqueeze(-1).repeat(1, 1, 3), token=tokens[:, :-1].contiguous(), codes=codes.clone(),
        scale=none.clone(), frame=none.clone(), vision_input=torch.zeros(rows, length, shape.bits),
        latent=torch.zeros(rows, length, shape.bits), patch=none.clone(),
        patch_pixels=torch.zeros(rows, 0, 48, dtype=torch.uint8), patch_latent=torch.zeros(rows, 0, shape.bits),
        voice=none.clone(), voice_vector=torch.zeros(rows, 0, VOICE_SIZE),
        target_token=tokens[:, 1:].contiguous(), target_bits=torch.full((rows, length, shape.bits), -1.0),
        target_codes=codes.clone(),
    )  # fmt: skip


def _pass(model: Model, batch: Batch, draw: Draw, device: torch.device) -> Figures:
    """Seconds of one forward and backward pass, and on a CPU those that its cores worked."""
    settle(device)
    start, busy = time.perf_counter(), time.process_time()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        total = torch.stack(list(model(batch, draw).aims.values())).sum()
    total.backward()
    settle(device)
    spent = {"s": time.perf_counter() - start, PROCESSOR: time.process_time() - busy}
    for layer in model.layers:
        layer.moe.forget_gradients()
    model.zero_grad()
    return spent if device.type == "cpu" else {"s": spent["s"]}


def _rows(figure: str, found: Mapping[str, tuple[list[float], list[float]]], *, peer: str, aim: str) -> list[Row]:
    return [
        Row(figure=figure, unit=unit, ours="elastic", peer=peer, ours_values=ours, peer_values=peers, aim=aim)
        for unit, (ours, peers) in found.items()
    ]
