"""One layer of experts, forward and backward, against Megatron-Core, transformers' Qwen3-MoE and a dense layer.

The same tokens, shapes and number type; routing is each side's own. A row's ratio is our seconds over the peer's:
0.91 is 1.1 times as fast. The sheet says what bounds the time: the operations that no layer can do without, at the
speed of one large matrix product on the same cores; and what a pass takes that is all calls and no width.
"""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.device import peak_flops, settle, training_device
from accordion.model.moe import MoE
from benchmarks.elasticity import PROCESSOR, SHAPE
from benchmarks.harness import Figures, Row, Sheet, paired
from benchmarks.peers import Dense, MegatronLayer, QwenLayer, megatron

REPEATS = 7
NARROW, NARROW_PASSES = 8, 9
CPU_SHAPES = {"E=64": (2048, 256, 256, 64, 4), "E=256": (2048, 256, 256, 256, 4)}  # T, H, I, E, K
GPU_SHAPES = {"H=768": (8192, 768, 256, 128, 8), "H=1536": (8192, 1536, 256, 128, 8)}


def run(repeats: int, shapes: Mapping[str, tuple[int, int, int, int, int]] | None = None) -> list[Row | Sheet]:
    """Time the passes, in pairs."""
    device = training_device()
    rows: list[Row | Sheet] = []
    found: dict[str, list[float | None]] = {}
    peak = peak_flops(device)
    with megatron(device):
        for name, sizes in (shapes or (GPU_SHAPES if device.type == "cuda" else CPU_SHAPES)).items():
            seconds, of_shape = _shape(name, sizes, repeats, device)
            rows += of_shape
            tokens, hidden, inner, _, top_k = sizes
            work = 3 * 6 * tokens * top_k * hidden * inner  # three products, and two of each in the backward pass
            narrow = _narrow(sizes, device)
            found[name] = [
                work / 1e9,
                work / seconds / 1e9,
                peak / 1e9,
                work / seconds / peak,
                1e3 * narrow,
                1e3 * seconds,
            ]
    columns = ["GFLOP a pass", "ours, GFLOP/s", "one product, GFLOP/s", "share", f"ms at a width of {NARROW}", "ms"]
    rows.append(Sheet(title="What bounds the layer", columns=columns, lines=found))
    return rows


def _narrow(sizes: tuple[int, int, int, int, int], device: torch.device) -> float:
    """Seconds of the same pass with next to no width: routing, and calling as many operators."""
    tokens, _, _, experts, top_k = sizes
    once = _ours(tokens, NARROW, experts, top_k, NARROW, device)[0]
    return sorted(once()["s"] for _ in range(NARROW_PASSES))[NARROW_PASSES // 2]


def _ours(
    tokens: int, hidden: int, experts: int, top_k: int, inner: int, device: torch.device
) -> tuple[Callable[[], Figures], Tensor]:
    """A pass of our layer, and the tokens it is given."""
    layer = MoE(hidden, experts, top_k, inner, 0)
    for weight in layer.parameters():
        nn.init.normal_(weight, std=hidden**-0.5)
    layer.to(device).train()
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(0)).to(device)

    def forget() -> None:  # as a step of training does
        layer.forget_gradients()
        layer.zero_grad()

    return _pass(lambda given: layer(given, None, None)[0], forget, x), x


def _shape(
    name: str, sizes: tuple[int, int, int, int, int], repeats: int, device: torch.device
) -> tuple[float, list[Row | Sheet]]:
    tokens, hidden, inner, experts, top_k = sizes
    shape = SHAPE.model_copy(
        update={"hidden": hidden, "expert_hidden": inner, "experts": (experts,), "top_k": (top_k,)}
    )  # fmt: skip
    ours, x = _ours(tokens, hidden, experts, top_k, inner, device)
    rows: list[Row | Sheet] = []
    own: list[float] = []
    for peer, build in peers(shape).items():
        other = build().to(device).train()
        found = paired(
            ours,
            _pass(other, other.zero_grad, x),
            repeats=repeats,
            label=f"{name}, {peer}",
            warm_up=2,
        )
        own += found["s"][0]
        rows += [
            Row(
                figure=f"T={tokens}, H={hidden}, I={inner}, E={experts}, K={top_k}", unit=unit, ours="accordion",
                peer=peer, ours_values=values[0], peer_values=values[1],
                aim="" if peer.startswith("dense") else "ratio at most 0.91",
            )
            for unit, values in found.items()
        ]  # fmt: skip
    return sorted(own)[len(own) // 2], rows


def peers(shape: ModelConfig) -> dict[str, Callable[[], nn.Module]]:
    """The other layers, by name."""
    return {
        "Megatron-Core SequentialMLP": lambda: MegatronLayer(shape),
        "Qwen3-MoE eager": lambda: QwenLayer(shape, "eager"),
        "Qwen3-MoE grouped": lambda: QwenLayer(shape, "grouped_mm"),
        "dense, equal operations": lambda: Dense(shape),
    }


def _pass(forward: Callable[[Tensor], Tensor], forget: Callable[[], None], x: Tensor) -> Callable[[], Figures]:
    """Seconds of one forward and backward pass, and on a CPU those that its cores worked; then gradients go."""

    def once() -> Figures:
        given = x.clone().requires_grad_()
        settle(x.device)
        start, busy = time.perf_counter(), time.process_time()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            total = forward(given).square().mean()
        total.backward()
        settle(x.device)
        spent = {"s": time.perf_counter() - start, PROCESSOR: time.process_time() - busy}
        forget()
        return spent if not x.is_cuda else {"s": spent["s"]}

    return once
