"""PaPaGei-S (PPG): a residual network along time, with tokens = time and features = channels.

Architecture and parameter names: Nokia-Bell-Labs/papagei-foundation-model, ``models/resnet.py``
(``ResNet1DMoE``), itself after hsd1503/resnet1d. Its dropout of 0.5 is left out.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from biox.backbones.base import Backbone, InputSpec, Origin, check_windows
from biox.backbones.blocks import initialise

KERNEL = 3
STRIDE = 2


class SameConv(nn.Module):
    """Convolution to ceil(samples / stride) samples; the odd zero is padded on the right."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        padding = KERNEL // 2 if stride == 1 else 0
        self.conv = nn.Conv1d(inputs, outputs, KERNEL, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [batch, inputs, samples] to [batch, outputs, ceil(samples / stride)]."""
        if self.stride == 1:  # pads by itself, without a copy
            return self.conv(x)
        samples = x.shape[-1]
        zeros = max(0, (-(-samples // self.stride) - 1) * self.stride + KERNEL - samples)
        return self.conv(F.pad(x, (zeros // 2, zeros - zeros // 2)))


class BasicBlock(nn.Module):
    """Pre-activation residual block on [batch, channels, time]."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool):
        super().__init__()
        self.stride = stride
        self.first = first  # the stem has just normalised: bn1 is there, but unused
        self.extra = outputs - inputs
        self.bn1 = nn.BatchNorm1d(inputs)
        self.conv1 = SameConv(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.conv2 = SameConv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs, samples] to [batch, outputs, ceil(samples / stride)]."""
        out = x if self.first else F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        if self.stride > 1:  # the released pooling pads one zero, which an even number leaves over
            x = F.max_pool1d(F.pad(x, (0, 1)) if x.shape[-1] % 2 else x, 2)
        before = self.extra // 2
        return out + (F.pad(x, (0, 0, before, self.extra - before)) if self.extra else x)


class PaPaGei(Backbone):
    """PaPaGei-S on z-scored single-channel PPG at 125 Hz; one token for each time step of a layer.

    Size ``small`` is published as PaPaGei-S.
    """

    sizes = {
        "small": {"channels": 32, "blocks": 18, "halve_every": 2, "double_every": 4},
        "tiny": {"channels": 16, "blocks": 8, "halve_every": 1, "double_every": 3},
    }
    key_prefixes = ("module.",)  # of DataParallel
    # Embedding head and the mixture-of-experts heads of pretraining.
    unused_prefixes = ("final_bn.", "dense.", "expert_layers_", "gating_network_")
    origin = Origin(
        repository="github.com/Nokia-Bell-Labs/papagei-foundation-model",
        licence="BSD-3-Clause",
        weights="papagei_s.pt, linked from the repository (Zenodo)",
        parameters={"small": ("5.7M", "BioX-Bridge, table 1")},
    )
    selector_axis = 2  # deviation 5: its position selection averages channels
    default_spec = InputSpec("ppg", 1, 125.0, 60.0, "z-score", "ppg_papagei")
    channel_counts = (1,)

    def make(self, channels: int, blocks: int, halve_every: int, double_every: int) -> None:
        """Build blocks; time halves at the end of every `halve_every`, channels double each few."""
        self.n_layers = blocks
        self.first_block_conv = SameConv(1, channels)
        self.first_block_bn = nn.BatchNorm1d(channels)
        widths = [channels * 2 ** (i // double_every) for i in range(blocks)]
        strides = [STRIDE if (i + 1) % halve_every == 0 else 1 for i in range(blocks)]
        self.basicblock_list = nn.ModuleList(
            BasicBlock(widths[max(i - 1, 0)], widths[i], strides[i], first=i == 0)
            for i in range(blocks)
        )
        self.apply(initialise)

    def stem(self, x: Tensor) -> Tensor:
        """Embed [batch, 1, samples] as [batch, samples, features]."""
        check_windows(x, self.input_spec)
        return F.relu(self.first_block_bn(self.first_block_conv(x))).transpose(1, 2)

    def layer(self, i: int, h: Tensor) -> Tensor:
        """Run residual block i on [batch, time, channels]."""
        return self.basicblock_list[i](h.transpose(1, 2)).transpose(1, 2)
