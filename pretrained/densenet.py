"""The DenseNet-121 that many read chest X-rays with (torchxrayvision's, CheXNet's)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """b c h w -> b c+32 h w, the input and 32 new channels"""

    def __init__(self, c: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(h)))], 1)


class DenseNet121(nn.Module):
    """Huang et al. 2017, with torchvision's parameter names, which are torchxrayvision's too:
    b 1 h w in [-0.5, 0.5] -> b 1024 7 7 after the last ReLU (pooled: XRV's `features2`, but that films above
    224 px are reduced with antialiasing, as XRV's own model does not)."""

    def __init__(self):
        super().__init__()
        self.features, c = nn.Sequential(), 64
        self.features.conv0 = nn.Conv2d(1, c, 7, 2, 3, bias=False)
        self.features.norm0 = nn.BatchNorm2d(c)
        self.features.relu0, self.features.pool0 = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        for number, layers in enumerate((6, 12, 24, 16), start=1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(c))
                c += 32
            self.features.add_module(f"denseblock{number}", block)
            if number < 4:
                step = nn.Sequential()
                step.norm, step.relu = nn.BatchNorm2d(c), nn.ReLU()
                step.conv, step.pool = nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2)
                self.features.add_module(f"transition{number}", step)
                c //= 2
        self.features.norm5 = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, (224, 224), mode="bilinear", antialias=True)
        return F.relu(self.features(2048 * x))   # XRV's range of grey values, -1024 to 1024
