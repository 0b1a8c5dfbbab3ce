"""A decoder's traits: families are settings of these, never subclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lithe.errors import FormatError

# settings that not every model's name says
LATER = ("attends", "block", "mask_token", "shifted", "ranks", "inputs", "chosen", "blocks", "pool")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions. kind: default, linear, llama3 or yarn; `part` is the share of each head that rotates."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    part: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn
    truncate: bool = True  # yarn

    def __post_init__(self) -> None:
        positive = (self.theta, self.factor, self.low_freq_factor, self.high_freq_factor, self.beta_fast, self.beta_slow)
        stretched = self.kind in ("llama3", "yarn")
        if self.kind not in ("default", "linear", "llama3", "yarn") or min(positive) <= 0 or not 0 < self.part <= 1:
            raise FormatError(f"config: these rotary settings cannot be: {self}")
        if stretched and (self.original_context < 1 or self.theta == 1 or self.low_freq_factor == self.high_freq_factor):
            raise FormatError(f"config: these rotary settings cannot be: {self}")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one block needs to know. Widths may differ from block to block: a pruned model is an ordinary model."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    window: int | None
    rope: Rope
    experts: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """All traits of a Decoder. Counts given as a tuple hold one value a layer."""

    vocab: int
    width: int
    layers: int
    heads: int | tuple[int, ...]
    kv_heads: int | tuple[int, ...]
    ffn: int | tuple[int, ...]
    context: int
    head_dim: int = 0  # 0: width / heads
    family: str = "llama"  # the checkpoint layout it is saved in
    tied: bool = False
    activation: str = "silu"  # silu, gelu, gelu_tanh, relu, relu2
    gated: bool = True  # gated FFN: act(gate) * up
    parallel: bool = False  # attention and FFN read the same normed input
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # Gemma scales by 1 + weight
    norm_in: bool = True  # a norm before attention and FFN
    norm_out: bool = False  # a norm after them (Gemma 2/3: both; OLMo 2: only this one)
    sub_norm: bool = False  # BitNet: a norm on the inputs of o_proj and down_proj
    qk_norm: str = ""  # "": none, "head": each head (Qwen3, Gemma 3), "all": all heads together (OLMo 2)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    rope: Rope = Rope()
    rope_local: Rope | None = None  # rotary settings of windowed layers, where they differ
    window: int | None = None
    windowed: tuple[bool, ...] | None = None  # which layers use the window; None: all of them
    attn_scale: float | None = None  # None: head_dim ** -0.5
    attn_cap: float | None = None  # cap * tanh(scores / cap)
    logit_cap: float | None = None
    embed_scale: float = 1.0
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    expert_layers: tuple[bool, ...] | None = None  # None: all of them, where there are experts
    norm_topk: bool = True
    attends: str = "causal"  # diffusion models: "full", or "blocks": a row sees what lies in blocks not after its own
    block: int = 0  # places of a block, where it attends by blocks
    mask_token: int | None = None  # what an undecided place holds
    shifted: bool = False  # the logits of place i stand at i - 1, as in a model that once was causal (Dream)
    ranks: tuple[tuple[str, int], ...] = ()  # linear layers that are a product of two matrices, and its inner width
    blocks: tuple[tuple[str, int], ...] = ()  # which of those two, "<layer>.a" and "<layer>.b", are block-diagonal, of how many
    inputs: tuple[tuple[str, int], ...] = ()  # linear layers that read rounded inputs, and of how many bits
    pool: tuple[tuple[str, int], ...] = ()  # linear layers that read one array (model/pooled.py), and its slots, seed, chunk
    chosen: tuple[tuple[str, int], ...] = ()  # FFNs that compute what a predictor chooses, and the predictor's rank

    def __post_init__(self) -> None:
        for field, most in (("ranks", 2**28), ("blocks", 2**16), ("pool", 2**40), ("inputs", 16), ("chosen", 2**28)):
            pairs = tuple((name, number) for name, number in getattr(self, field))
            object.__setattr__(self, field, pairs)
            if any(not 0 < number <= most for _, number in pairs) or len(dict(pairs)) < len(pairs):
                raise FormatError(f"config: {field} name a layer twice, or a number that cannot be: {pairs!r:.80}")
        for name in ("heads", "kv_heads", "ffn", "windowed", "expert_layers"):
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            if isinstance(value, tuple) and len(value) != self.layers:
                raise FormatError(f"config: {name} has {len(value)} entries for {self.layers} layers")
        for name in ("vocab", "width", "layers", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise FormatError(f"config: {name} must be a positive whole number, not {value!r}")
        if self.layers > 10_000:
            raise FormatError(f"config: {self.layers} layers is beyond any known model")
        for name in ("heads", "kv_heads", "ffn", "head_dim", "window", "experts", "experts_per_token", "expert_ffn"):
            value = getattr(self, name)
            if any(not 0 <= n < 2**28 for n in (value if isinstance(value, tuple) else (value or 0,))):
                raise FormatError(f"config: {name} is out of bounds: {value!r:.80}")
        if self.activation not in ("silu", "gelu", "gelu_tanh", "relu", "relu2") or self.qk_norm not in ("", "head", "all"):
            raise FormatError(f"config: unknown activation {self.activation!r:.80} or qk_norm {self.qk_norm!r:.80}")
        if self.experts > 4096 or (self.experts and not 0 < self.experts_per_token <= self.experts):
            raise FormatError(f"config: {self.experts_per_token} of {self.experts} experts for a token cannot be")
        if self.attends not in ("causal", "full", "blocks") or (self.attends == "blocks") != (self.block > 0):
            raise FormatError(f"config: attends {self.attends!r:.80} with blocks of {self.block} cannot be")
        if (self.attends == "causal") != (self.mask_token is None) or not 0 <= (self.mask_token or 0) < self.vocab:
            raise FormatError(f"config: mask_token {self.mask_token} cannot be for a model that attends {self.attends!r}")
        if not self.head_dim:
            if isinstance(self.heads, tuple):
                raise FormatError("config: per-layer head counts need head_dim to be given")
            if self.heads < 1 or self.width % self.heads:
                raise FormatError(f"config: width {self.width} is not divisible by {self.heads} heads")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        for rope in (self.rope, self.rope_local or self.rope):
            if int(self.head_dim * rope.part) < 2 or (self.head_dim % 2 and rope.part == 1):
                raise FormatError(f"config: head_dim {self.head_dim} leaves no pairs for rotary positions to turn")
        for i in range(self.layers):
            layer = self.layer(i)
            if layer.heads and (layer.kv_heads < 1 or layer.heads % layer.kv_heads):
                raise FormatError(f"config: layer {i} has {layer.heads} heads for {layer.kv_heads} key-value heads")

    def layer(self, i: int) -> Layer:
        """The settings of block i."""

        def at(value):
            return value[i] if isinstance(value, tuple) else value

        local = self.window is not None and (self.windowed is None or self.windowed[i])
        sparse = self.experts > 0 and (self.expert_layers is None or self.expert_layers[i])
        return Layer(
            width=self.width,
            heads=at(self.heads),
            kv_heads=at(self.kv_heads),
            head_dim=self.head_dim,
            ffn=self.expert_ffn if sparse else at(self.ffn),
            window=self.window if local else None,
            rope=self.rope_local if local and self.rope_local else self.rope,
            experts=self.experts if sparse else 0,
        )

    def replace(self, **changes) -> Config:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict:
        """Settings as plain JSON values; `from_json` undoes it. A model's name is a hash of these, so settings that came LATER
        than the first models are left out at their defaults: a new one renames no model."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items()
                if name not in LATER or value != defaults[name]}

    @classmethod
    def from_json(cls, raw: dict) -> Config:
        """A Config from `to_json`'s form. Raises FormatError for unknown settings and wrong types."""
        return cls(**_checked(cls, raw))


def _checked(kind: type, raw: dict) -> dict:
    """The settings of a dataclass from plain JSON, each held against its annotation."""
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    if unknown := raw.keys() - fields.keys():
        raise FormatError(f"config: unknown settings {', '.join(sorted(map(str, unknown)))}")
    tests = {"int": lambda x: type(x) is int, "float": lambda x: type(x) in (int, float) and abs(x) < float("inf"),
             "bool": lambda x: type(x) is bool, "str": lambda x: type(x) is str, "None": lambda x: x is None,
             "Rope": lambda x: isinstance(x, dict),
             "tuple[int, ...]": lambda x: isinstance(x, list | tuple) and all(type(n) is int for n in x),
             "tuple[bool, ...]": lambda x: isinstance(x, list | tuple) and all(type(n) is bool for n in x),
             "tuple[tuple[str, int], ...]": lambda x: isinstance(x, list | tuple) and all(
                 isinstance(pair, list | tuple) and [type(n) for n in pair] == [str, int] for pair in x)}
    for name, value in raw.items():
        if not any(tests[part](value) for part in fields[name].split(" | ")):
            raise FormatError(f"config: {name} must be {fields[name]}, not {value!r:.80}")
    needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if missing := needed - raw.keys():
        raise FormatError(f"config: {', '.join(sorted(missing))} must be given")
    return {name: Rope(**_checked(Rope, value)) if isinstance(value, dict) else value for name, value in raw.items()}
