"""A whole training step of a language model, tokens a second, against Megatron-Core's GPTModel and transformers.

8 layers of hidden 256, 64 experts of 256, top-4, vocabulary 8192, 2048 tokens (on a GPU 16,384): forward, loss,
backward, clipping and AdamW. Ours computes no multi-token prediction here, which the peers have not. The last sheets
say where the time of a step goes, ours and the fastest peer's, by torch's profiler.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig, ParallelConfig, PretrainConfig
from accordion.data.batch import Batch
from accordion.device import peak_flops, settle, training_device
from accordion.model import Model
from accordion.model.elastic import SubmodelSpec
from accordion.model.flops import RowCounts, forward_flops
from accordion.train.engine import PlainEngine
from accordion.train.ranks import Ranks
from benchmarks.elasticity import SHAPE, text_batch
from benchmarks.harness import Figures, Row, Sheet, paired
from benchmarks.peers import megatron, megatron_loss, qwen_loss

REPEATS = 5
LENGTH = 512
ROWS = {"cpu": 4, "cuda": 32}
LINES = 16  # of a profile
PROFILED = "Qwen3-MoE grouped"  # the fastest peer so far
RATE = 1e-3  # of learning


def run(repeats: int, shape: ModelConfig = SHAPE, length: int = LENGTH, rows: int | None = None) -> list[Row | Sheet]:
    """Time the steps, in pairs."""
    device = training_device()
    batch = text_batch(shape, rows or ROWS[device.type], length).to(device)
    tokens, following = batch.token, batch.target_token
    engine = PlainEngine(PretrainConfig(), shape, device, Ranks())
    ours = engine.model
    ours.training = False  # of the model itself: no multi-token prediction; its layers stay in training

    def learn(total: Tensor) -> None:
        engine.zero()
        total.backward()
        engine.clip(1.0)
        engine.step(RATE)

    own = _step(lambda: ours(batch).means["text"], learn, tokens)
    found: list[Row | Sheet] = []
    speeds: list[float] = []
    profiles: list[Row | Sheet] = []
    with megatron(device):
        for name, (model, loss) in _peers(shape, length, batch).items():
            model.train().to(device)
            other = _step(partial(loss, tokens, following), _learning(model), tokens)
            both = paired(own, other, repeats=repeats, label=name, warm_up=1)
            if name == PROFILED:
                profiles = [_profile(own, "ours"), _profile(other, name)]
            speeds += both["tokens/s"][0]
            found += [
                Row(
                    figure="training step", unit=unit, ours="accordion", peer=name, ours_values=values[0],
                    peer_values=values[1], aim="" if "backbone" in name else "ratio at least 1.1",
                )
                for unit, values in both.items()
            ]  # fmt: skip
    counts = [RowCounts(length, length, 0, 0, 0)] * len(tokens)
    work = sum(3 * forward_flops(shape, SubmodelSpec.full(shape), row, length, mtp=False) for row in counts)
    speed = sorted(speeds)[len(speeds) // 2] / tokens.numel() * work
    peak = peak_flops(device)
    figures = [work / 1e9, speed / 1e9, peak / 1e9, speed / peak]
    columns = ["GFLOP a step", "ours, GFLOP/s", "one product, GFLOP/s", "share"]
    found.append(Sheet(title="What bounds the step", columns=columns, lines={"step": figures}))
    return found + profiles


def _peers(
    shape: ModelConfig, length: int, batch: Batch
) -> dict[str, tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]]:
    return {
        "Megatron-Core GPTModel": megatron_loss(shape, length),
        "Qwen3-MoE eager": qwen_loss(shape, "eager"),
        "Qwen3-MoE grouped": qwen_loss(shape, "grouped_mm"),
        "accordion, Megatron-Core backbone": _own_megatron(shape, batch),
    }


def _own_megatron(
    shape: ModelConfig, batch: Batch
) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:  # fmt: skip
    from accordion.train.megatron.backbone import MegatronBackbone
    from accordion.train.megatron.convert import scatter

    model = Model(shape, backbone=MegatronBackbone(shape, ParallelConfig()))
    scatter(model, Model(shape, seed=0).state_dict())

    def loss(tokens: Tensor, following: Tensor) -> Tensor:
        model.training = False
        return model(batch).means["text"]

    return model, loss


def _learning(model: nn.Module) -> Callable[[Tensor], None]:
    """What a step does with the loss of a peer: the backward pass, clipping and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

    def learn(total: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return learn


def _step(loss: Callable[[], Tensor], learn: Callable[[Tensor], None], tokens: Tensor) -> Callable[[], Figures]:
    """One step: tokens a second, and on a CPU a second that its cores worked."""

    def once() -> Figures:
        settle(tokens.device)
        start, busy = time.perf_counter(), time.process_time()
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            total = loss()
        learn(total)
        settle(tokens.device)
        spent = {"tokens/s": time.perf_counter() - start}
        if not tokens.is_cuda:  # what other work on the machine does not lengthen
            spent["tokens/processor s"] = time.process_time() - busy
        return {unit: tokens.numel() / seconds for unit, seconds in spent.items()}

    return once


def _profile(step: Callable[[], Figures], whose: str) -> Sheet:
    """The operators in which a step spends most time, without those they call."""
    on_gpu = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        step()

    def spent(event: object) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)  # type: ignore[attr-defined]

    events = sorted(profiler.key_averages(), key=spent, reverse=True)
    whole = sum(spent(event) for event in events)
    lines = {
        event.key: [spent(event) / 1e3, 100 * spent(event) / whole, float(event.count)] for event in events[:LINES]
    }
    lines["all"] = [whole / 1e3, 100.0, float(sum(event.count for event in events))]
    return Sheet(title=f"Where the step goes: {whose}", columns=["ms", "% of time", "calls"], lines=lines)
