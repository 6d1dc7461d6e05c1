"""Inception-v3 with the layout of the FID network, for the public weights pt_inception-2015-12-05.

Szegedy et al. 2015 with what the TensorFlow graph of the first FID code did otherwise: average pools that leave the
padding out, and a maximum pool in the last block. The features are the 2,048 averaged channels ("pool3").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
NUM_LOGITS = 1008


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _stretch(x: Tensor, axis: int) -> Tensor:
    """Linear interpolation to `SIDE` along `axis`, pixel i at i * size / SIDE: as TensorFlow 1."""
    size = x.shape[axis]
    position = torch.arange(SIDE, device=x.device) * (size / SIDE)
    low = position.long().clamp(max=size - 1)
    weight = (position - low).view([-1 if i == axis else 1 for i in range(x.dim())]).to(x.dtype)
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1)), weight)


class _A(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, (1, 1))
        self.branch5x5_1, self.branch5x5_2 = _Conv(inputs, 48, (1, 1)), _Conv(48, 64, (5, 5))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 64, (1, 1)), _Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Conv(96, 96, (3, 3))
        self.branch_pool = _Conv(inputs, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class _B(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, (3, 3), 2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 64, (1, 1)), _Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Conv(96, 96, (3, 3), 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(inputs, 192, (1, 1))
        self.branch7x7_1, self.branch7x7_2 = _Conv(inputs, width, (1, 1)), _Conv(width, width, row)
        self.branch7x7_3 = _Conv(width, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Conv(inputs, width, (1, 1)), _Conv(width, width, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Conv(width, width, row), _Conv(width, width, column)
        self.branch7x7dbl_5 = _Conv(width, 192, row)
        self.branch_pool = _Conv(inputs, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(inputs, 192, (1, 1)), _Conv(192, 320, (3, 3), 2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(inputs, 192, (1, 1)), _Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = _Conv(192, 192, (7, 1)), _Conv(192, 192, (3, 3), 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    def __init__(self, inputs: int, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = _Conv(inputs, 320, (1, 1))
        self.branch3x3_1 = _Conv(inputs, 384, (1, 1))
        self.branch3x3_2a, self.branch3x3_2b = _Conv(384, 384, (1, 3)), _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 448, (1, 1)), _Conv(448, 384, (3, 3))
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Conv(384, 384, (1, 3)), _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(inputs, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, 1, 1) if self.last else _average(x)
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """Module names are those of the public weights; its logits are kept so that they load without exceptions."""

    dimension = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), 2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3), pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c = _C(768, 128), _C(768, 160)
        self.Mixed_6d, self.Mixed_6e = _C(768, 160), _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280), _E(2048, last=True)
        self.fc = nn.Linear(self.dimension, NUM_LOGITS)

    def features(self, images: Tensor) -> Tensor:
        """`[N, 2048]` of images `[N, 1 or 3, H, W]` in [-1, 1]; a grey image becomes three equal channels.

        As the first FID code and torch-fidelity do: 8-bit levels, TensorFlow 1's bilinear resizing, then
        (level - 128) / 128.
        """
        levels = ((images.clamp(-1, 1) + 1) * 127.5).round().expand(-1, 3, -1, -1)
        x = (_stretch(_stretch(levels, 2), 3) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
