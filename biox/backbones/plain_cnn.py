"""A plain residual network for ECG: biox's own, and no foundation model.

It stands for the models that come before foundation models: the paper's appendix swaps in one such,
ECG-DualNet, whose code is not used here. Pattern: the one-dimensional ResNets of supervised ECG
classification (Wang et al. 2017, arXiv 1611.06455; Ribeiro et al. 2020, Nature Communications 11).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows
from biox.backbones.blocks import initialise

KERNEL = 7


def halving(inputs: int, outputs: int) -> nn.Conv1d:
    """Convolution to ceil(samples / 2) samples."""
    return nn.Conv1d(inputs, outputs, KERNEL, stride=2, padding=KERNEL // 2, bias=False)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, on [batch, channels, time]; time halves."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = halving(inputs, outputs)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, KERNEL, padding=KERNEL // 2, bias=False)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs, samples] to [batch, outputs, ceil(samples / 2)]."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(F.avg_pool1d(x, 2, ceil_mode=True)))


class PlainCNN(Backbone):
    """Residual network on z-scored single-lead ECG at 100 Hz; one token for each time step."""

    sizes = {"base": {"channels": 64, "blocks": 8}, "tiny": {"channels": 16, "blocks": 6}}
    origin = Origin(repository="biox itself", licence="that of biox", weights="", parameters={})
    channel_counts = (1,)
    default_spec = InputSpec("ecg", 1, 100.0, 60.0, "z-score", "ecg_hubert")

    def make(self, channels: int, blocks: int) -> None:
        """Build blocks; time halves in each, channels double in every second one."""
        self.n_layers = blocks
        self.first_conv = halving(1, channels)
        self.first_bn = nn.BatchNorm1d(channels)
        widths = [channels * 2 ** (i // 2) for i in range(blocks)]
        pairs = zip([channels, *widths[:-1]], widths, strict=True)
        self.blocks = nn.ModuleList(ResidualBlock(*pair) for pair in pairs)
        self.apply(initialise)

    def stem(self, x: Tensor) -> Tensor:
        """Embed [batch, 1, samples] as [batch, ceil(samples / 2), features]."""
        check_windows(x, self.input_spec)
        return F.relu(self.first_bn(self.first_conv(x))).transpose(1, 2)

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run residual block i on [batch, time, channels]."""
        return self.blocks[i](h.transpose(1, 2)).transpose(1, 2)
