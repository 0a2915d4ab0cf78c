"""The pre-norm transformer block that LaBraM and NormWear share, and their initialisation.

Parameter names are those of timm's vision transformer (``norm1, attn.qkv, attn.proj, norm2,
mlp.fc1, mlp.fc2``), which both published models inherit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, dim], optionally with normalised q and k."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, qk_norm: bool, eps: float):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(dim // heads, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: [batch, tokens, dim] -> the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: [..., dim] -> the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block on [batch, tokens, dim].

    `mlp_ratio` is the width of the MLP's hidden layer over `dim`; `qkv_bias` and `qk_norm` are
    biases on query, key and value, and LayerNorm of each head's queries and keys; `eps` is that of
    every LayerNorm; `layer_scale` the initial gain of both residual branches, if they have one.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: int,
        eps: float,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias, qk_norm, eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, mlp_ratio * dim)
        self.gamma_1 = self.gamma_2 = 1.0
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then MLP: [batch, tokens, dim] -> the same shape."""
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


def initialise(module: nn.Module) -> None:
    """Start training from scratch: call as ``model.apply(initialise)``.

    Linear weights are Xavier-uniform (the usual normal of standard deviation 0.02 is too small for
    narrow models), convolutions Kaiming-normal, biases zero; norms keep torch's ones and zeros.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
