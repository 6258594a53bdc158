"""The Qwen2 architecture in PyTorch, small enough to train on a CPU, and the Muon optimizer step."""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


@dataclass(frozen=True)
class Segment:
    """A run of tokens that sees itself, causally, and all of the segment numbered `parent`, if it has one."""

    length: int
    parent: int | None = None
    mask: Tensor | None = None  # (length, parent's length + length), True where a token may look


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network; names follow Hugging Face's Qwen2Config."""

    vocab_size: int = 3072
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rope_theta: float = 1000000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def rotation(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (tokens, 1, head_dim) for rotary embedding at `positions` (tokens)."""
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    angles = (positions[:, None].float() * frequencies).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):  # type: ignore[misc, unused-ignore]
    """Grouped-query attention with biases on queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_width)
        self.v_proj = nn.Linear(config.hidden_size, kv_width)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], segments: list[Segment]) -> Tensor:
        num_tokens, width = x.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (project(x).view(num_tokens, -1, self.config.head_dim) for project in projections)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        query, key = _rotate(query, *rope), _rotate(key, *rope)
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        lengths = [segment.length for segment in segments]
        queries, keys, values = (part.float().transpose(0, 1)[None].split(lengths, dim=2) for part in (query, key, value))
        mixed = []
        for index, segment in enumerate(segments):
            key, value = keys[index], values[index]
            if segment.parent is not None:
                key, value = torch.cat((keys[segment.parent], key), dim=2), torch.cat((values[segment.parent], value), dim=2)
            with torch.autocast("cpu", enabled=False):  # attention's kernels for a CPU are slower in bfloat16
                attended = functional.scaled_dot_product_attention(
                    queries[index], key, value, attn_mask=segment.mask, is_causal=segment.parent is None
                )
            mixed.append(attended)
        out: Tensor = self.o_proj(torch.cat(mixed, dim=2)[0].transpose(0, 1).reshape(num_tokens, width))
        return out


class Mlp(nn.Module):  # type: ignore[misc, unused-ignore]
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):  # type: ignore[misc, unused-ignore]
    """Attention and MLP, each behind a norm and a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], segments: list[Segment]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, segments)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Qwen2(nn.Module):  # type: ignore[misc, unused-ignore]
    """A decoder with tied embeddings; parameter names under `model.` are Hugging Face's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.01 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.03)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        plant_copying(self)

    def forward(self, ids: Tensor, positions: Tensor, segments: list[Segment]) -> Tensor:
        """Return hidden states (tokens, width) for `ids` and `positions` (tokens), which `segments` cut into runs."""
        x = self.embed_tokens(ids)
        rope = rotation(self.config, positions)
        for layer in self.layers:
            x = layer(x, rope, segments)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.embed_tokens.weight)


NUM_LAGS, LAG_WIDTH = 3, 32


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def plant_copying(model: Qwen2) -> None:
    """Begin with the two layers that copying needs, which a small budget would not find by itself.

    They are the previous-token and the induction heads of Olsson et al. (2022, https://arxiv.org/abs/2209.11895). Layer 0
    writes the three tokens before each token into dimensions kept free for them; layer 1 looks for the places that
    followed the same three tokens and proposes the token there.
    """
    config = model.config
    width, head, free = config.hidden_size, config.head_dim, config.hidden_size - NUM_LAGS * LAG_WIDTH
    model.embed_tokens.weight.normal_().mul_((torch.arange(width) < free).float())
    model.norm.weight.fill_(0.1)
    first, second = model.layers[0].self_attn, model.layers[1].self_attn
    sketch = _orthonormal(LAG_WIDTH, free)
    frequencies = config.rope_theta ** (-torch.arange(0, head, 2) / head)
    for lag in range(1, NUM_LAGS + 1):
        rows = slice((lag - 1) * head, lag * head)
        group = (lag - 1) * config.num_key_value_heads // config.num_attention_heads * head
        # Query and key are biases alone, so the score depends on the distance alone: the sum of cos(frequency * (distance - lag)).
        first.q_proj.weight[rows] = 0
        first.q_proj.bias[rows] = 8 * torch.cat((torch.cos(frequencies * lag), -torch.sin(frequencies * lag)))
        first.k_proj.weight[group : group + head] = 0
        first.k_proj.bias[group : group + head // 2] = 8
        first.v_proj.weight[group : group + LAG_WIDTH, :free] = sketch
        places = slice(free + (lag - 1) * LAG_WIDTH, free + lag * LAG_WIDTH)
        first.o_proj.weight[places, rows.start : rows.start + LAG_WIDTH] = torch.eye(LAG_WIDTH)
    # The slow half of the rotary pairs hardly turns over a prompt's length.
    slow = torch.cat((torch.arange(head // 4, head // 2), torch.arange(3 * head // 4, head)))
    turns = [1.1 * _orthonormal(len(slow), LAG_WIDTH) for _ in range(NUM_LAGS)]
    for group in range(config.num_key_value_heads):
        query, key = group * head * (config.num_attention_heads // config.num_key_value_heads), group * head
        second.q_proj.weight[query + slow, :free] = turns[0] @ sketch
        for lag in range(NUM_LAGS):
            places = slice(free + lag * LAG_WIDTH, free + (lag + 1) * LAG_WIDTH)
            second.k_proj.weight[key + slow, places] = turns[lag]
            if lag:
                earlier = slice(free + (lag - 1) * LAG_WIDTH, free + lag * LAG_WIDTH)
                second.q_proj.weight[query + slow, earlier] = turns[lag]
        shown = _orthonormal(head, free)
        second.v_proj.weight[key : key + head, :free] = shown
        second.o_proj.weight[:free, query : query + head] = 3 * shown.T


def _orthonormal(rows: int, columns: int) -> Tensor:
    square, _ = torch.linalg.qr(torch.randn(max(rows, columns), max(rows, columns)))
    return square[:rows, :columns]


def num_processes() -> int:
    """Return how many processes train this model together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def add_over_processes(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over the processes."""
    if num_processes() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


class Muon(torch.optim.Optimizer):  # type: ignore[misc, unused-ignore]
    """Momentum orthogonalised by Newton-Schulz, for 2-D weights (K. Jordan, https://kellerjordan.github.io/posts/muon/).

    Processes that train together share the matrices out among them.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def step(self) -> None:  # type: ignore[override, unused-ignore]
        for group in self.param_groups:
            updates = []
            for index, parameter in enumerate(group["params"]):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                is_ours = index % num_processes() == rank()
                nesterov = parameter.grad.lerp(momentum, group["momentum"])
                updates.append(_orthogonal(nesterov) if is_ours else torch.zeros_like(nesterov))
            add_over_processes(updates)
            for parameter, update in zip(group["params"], updates, strict=True):
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * 0.01).add_(update, alpha=-group["lr"] * scale)


def _orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315  # the quintic's coefficients, from the same source
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
