"""The one decoder. Axes: B batch, T rows of a pass, C width, H heads, G key-value heads, D head width, V vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch.utils.checkpoint
from torch import Tensor, nn

from lithe.errors import TooLargeError, UsageError
from lithe.model.config import Config, Layer, Rope
from lithe.model.mask import CAUSAL, Mask, Pass, positions
from lithe.model.modules import FFN, Experts, RMSNorm, draw, remake
from lithe.model.ragged import ragged
from lithe.model.site import Site, sites
from lithe.ops.attention import attention
from lithe.ops.rope import frequencies, rotate

if TYPE_CHECKING:
    from lithe.model.adapted import Choice
    from lithe.model.cache import Cache
    from lithe.model.fast import Fast
    from lithe.model.tokenizer import Tokenizer

ALL, LAST, NONE = "all", "last", "none"  # which rows get logits


@dataclass
class Output:
    """What a pass gives: logits [B, rows, V] (None where none were asked), hidden [B, T, C], taps by name."""

    logits: Tensor | None
    hidden: Tensor
    taps: dict[int | str, Tensor] = field(default_factory=dict)

    @property
    def scores(self) -> Tensor:
        """The logits, which must have been asked for."""
        if self.logits is None:
            raise UsageError("this pass was asked for no logits")
        return self.logits


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: Config, layer: Layer, index: int):
        super().__init__()
        D, C, bias = layer.head_dim, layer.width, config.qkv_bias
        self.index, self.shape, self.config = index, layer, config
        self.q_proj = nn.Linear(C, layer.heads * D, bias=bias)
        self.k_proj = nn.Linear(C, layer.kv_heads * D, bias=bias)
        self.v_proj = nn.Linear(C, layer.kv_heads * D, bias=bias)
        self.o_proj = nn.Linear(layer.heads * D, C, bias=config.out_bias)
        per_head = config.qk_norm == "head"
        norm = lambda heads: RMSNorm(D if per_head else heads * D, config.norm_eps, config.norm_offset)
        self.q_norm = norm(layer.heads) if config.qk_norm else None
        self.k_norm = norm(layer.kv_heads) if config.qk_norm else None
        self.sub_norm = RMSNorm(layer.heads * D, config.norm_eps) if config.sub_norm else None

    def forward(self, x_BTC: Tensor, run: Pass) -> Tensor:
        B, T, _ = x_BTC.shape
        q_BHTD = self._heads(self.q_proj(x_BTC), self.q_norm)
        k_BGTD = self._heads(self.k_proj(x_BTC), self.k_norm)
        v_BGTD = self._heads(self.v_proj(x_BTC), None)
        cos, sin = run.rotation(self.shape.rope)
        q_BHTD, k_BGTD = rotate(q_BHTD, cos, sin), rotate(k_BGTD, cos, sin)
        attend = attention if run.cache is None else partial(run.cache.attend, self.index)
        window, config = self.shape.window, self.config
        out_BHTD = attend(q_BHTD, k_BGTD, v_BGTD, visible_BTS=run.visible(window), causal=run.causal and window is None,
                          scale=config.attn_scale, cap=config.attn_cap)
        out_BTC = out_BHTD.transpose(1, 2).reshape(B, T, -1)
        return self.o_proj(out_BTC if self.sub_norm is None else self.sub_norm(out_BTC))

    def _heads(self, x_BTC: Tensor, norm: nn.Module | None) -> Tensor:
        """Split into heads, [B, heads, T, D], normed over each head or over all of them."""
        B, T, _ = x_BTC.shape
        if norm is not None and self.config.qk_norm == "all":
            x_BTC = norm(x_BTC)
        x = x_BTC.view(B, T, -1, self.shape.head_dim)
        if norm is not None and self.config.qk_norm == "head":
            x = norm(x)
        return x.transpose(1, 2)


class Block(nn.Module):
    """One layer: attention and FFN, each added to the residual stream."""

    def __init__(self, config: Config, index: int):
        super().__init__()
        layer = config.layer(index)
        norm = lambda wanted: RMSNorm(config.width, config.norm_eps, config.norm_offset) if wanted else nn.Identity()
        self.parallel = config.parallel
        self.attn_in_norm, self.attn_out_norm = norm(config.norm_in), norm(config.norm_out)
        self.mlp_in_norm, self.mlp_out_norm = norm(config.norm_in and not config.parallel), norm(config.norm_out)
        self.self_attn = Attention(config, layer, index) if layer.heads else None
        if layer.experts:
            self.mlp: nn.Module | None = Experts(
                config.width, layer.ffn, experts=layer.experts, top=config.experts_per_token,
                norm_topk=config.norm_topk, activation=config.activation)
        else:
            self.mlp = FFN(config.width, layer.ffn, activation=config.activation, gated=config.gated,
                           bias=config.mlp_bias, sub_norm=config.sub_norm, eps=config.norm_eps) if layer.ffn else None

    def forward(self, x_BTC: Tensor, run: Pass, attn: bool = True, mlp: bool = True) -> Tensor:
        if run.groups is not None:
            run.groups.enter()
        normed, out_BTC = self.attn_in_norm(x_BTC), x_BTC
        if attn and self.self_attn is not None:
            out_BTC = out_BTC + self.attn_out_norm(self.self_attn(normed, run))
        if mlp and self.mlp is not None:
            normed = normed if self.parallel else self.mlp_in_norm(out_BTC)
            out_BTC = out_BTC + self.mlp_out_norm(self.mlp(normed))
        return out_BTC


class Decoder(nn.Module):
    """A decoder-only transformer whose traits are its Config."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # Given a weight, since torch would draw one, which on the meta device imports all of its compiler: a second or two.
        self.embed_tokens = nn.Embedding.from_pretrained(torch.zeros(config.vocab, config.width), freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps, config.norm_offset)
        self.lm_head: nn.Module | None = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)
        remake(self, config.ranks, config.inputs, config.chosen, config.blocks, config.pool)
        shapes = [layer for i in range(config.layers) if (layer := config.layer(i)).heads]
        self.windows, self.ropes = {layer.window for layer in shapes}, {layer.rope for layer in shapes}
        self.fast: Fast | None = None  # compiled layers, where they were asked for
        self.recompute = False  # whether blocks keep only their input for the gradient, and run again to get it
        self.adapters: Choice | None = None  # what is attached to it (model/adapted.py)
        self._turns: dict[Rope, tuple[Tensor, Tensor]] = {}
        self.tokenizer: Tokenizer | None = None
        self.source = ""  # the name it was loaded by
        self.folder: Path | None = None  # and from where
        self.offline = False  # whether a model loaded to go with it may be asked of the hub
        self.size = sum(weight.numel() for weight in self.parameters())  # weights, however they are packed later
        self.receipts: list[dict] = []  # how it came to be
        self.settings: dict = {}  # what generation_config.json asks for
        self.token_ids: dict = {}  # bos_token_id and the like, as config.json gives them

    def forward(self, ids_BT: Tensor | None = None, *, embeds: Tensor | None = None,
                pos_BT: Tensor | list[list[int]] | None = None, mask: Mask = CAUSAL, docs_BT: Tensor | None = None,
                cache: Cache | None = None, rows: Sequence[int] | None = None, counts: Sequence[int] | None = None,
                layers: Iterable | None = None, skip: Iterable[tuple[int, str]] = (), taps: Iterable[int | str] = (),
                adapters_B: Sequence[int | None] | Tensor | None = None,
                logits: str | Tensor | Sequence[int] = LAST) -> Output:
        """Run one pass.

        ids_BT or embeds [B, T, C] are the rows; with a cache they are written behind each sequence's length, and what
        stays is decided by `cache.commit`. pos_BT defaults to the rows following the cache. rows[b] is how many of the T
        rows of sequence b are real (the others are padding on the right). counts: no padding, but one row below another,
        [R, 1], counts[b] of them sequence b's; `adapters_B` and row numbers then count those rows. layers: which blocks
        run, in order; a nested tuple runs its members on the same input. skip: (layer, "attn" or "mlp") to leave out. taps:
        layer numbers (the residual stream after that layer), "embed" or "final". adapters_B: which attached adapters each
        sequence wants, by the rack's numbers. logits: LAST real row, ALL, NONE, or row numbers.
        """
        if ids_BT is not None and embeds is None:
            x_BTC = self.embed(ids_BT)
        elif embeds is not None and ids_BT is None:
            x_BTC = embeds
        else:
            raise UsageError("a pass reads either ids_BT or embeds")
        if self.adapters is None and adapters_B is not None:
            raise UsageError("adapters_B was given, but no adapter is attached to this model")
        groups = None if self.adapters is None else self.adapters.choose(self, adapters_B, len(x_BTC))
        run = (self._prepare(x_BTC, pos_BT, mask, docs_BT, cache) if counts is None else
               ragged(self, len(x_BTC), pos_BT, mask, counts, cache))
        run.groups = groups
        skipped, wanted = frozenset(skip), frozenset(taps)
        tapped: dict[int | str, Tensor] = {"embed": x_BTC} if "embed" in wanted else {}
        order = range(self.config.layers) if layers is None else list(layers)
        x_BTC = self._through(x_BTC, run, order, skipped, wanted, tapped)
        if "final" in wanted:
            tapped["final"] = self.norm(x_BTC)
        if counts is None:
            return Output(self._logits(x_BTC, logits, rows), x_BTC, tapped)
        which = [end - 1 for end in accumulate(counts)] if isinstance(logits, str) and logits == LAST else logits
        given = self._logits(x_BTC, which, None) if isinstance(which, str) else self.head(x_BTC[which])
        return Output(given, x_BTC, tapped)

    def _through(self, x_BTC: Tensor, run: Pass, order: Sequence, skipped: frozenset, wanted: frozenset,
                 tapped: dict[int | str, Tensor]) -> Tensor:
        """The residual stream after the layers in `order`; compiled ones that follow each other go in one call."""
        compiled = None if self.fast is None else self.fast.layers(run, x_BTC)
        at = 0
        while at < len(order):
            count = 1 if compiled is None or skipped else compiled.together(order[at:], wanted)
            members = order[at] if isinstance(order[at], tuple) else (order[at + count - 1],)
            if compiled is not None and count > 1:
                outs = [compiled.run(x_BTC, order[at], count)]
            else:
                blocks = self._blocks if compiled is None else compiled
                outs = [blocks[i](x_BTC, run, (i, "attn") not in skipped, (i, "mlp") not in skipped) for i in members]
            x_BTC = outs[0] if len(outs) == 1 else x_BTC + sum(out - x_BTC for out in outs)
            tapped.update({i: x_BTC for i in members if i in wanted})
            at += count
        return x_BTC

    @property
    def _blocks(self) -> Sequence | nn.ModuleList:
        """The layers as they are, or run again for their gradient where `recompute` says so."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self.layers
        return [partial(torch.utils.checkpoint.checkpoint, block, use_reentrant=False) for block in self.layers]

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Input embeddings [B, T, C]."""
        x = self.embed_tokens(ids_BT)
        # Gemma rounds the scale to the weights' precision, so it is rounded here too.
        return x if self.config.embed_scale == 1.0 else x * torch.tensor(self.config.embed_scale, dtype=x.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of a residual stream [..., C]: the final norm, then the output matrix."""
        out = None if self.fast is None else self.fast.head(hidden)
        return self.unembed(self.norm(hidden)) if out is None else self._capped(out)

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits of states [..., C] that the final norm has been through, as the tap "final" gives them."""
        out = nn.functional.linear(normed, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(normed)
        return self._capped(out)

    def _capped(self, out: Tensor) -> Tensor:
        cap = self.config.logit_cap
        return out if cap is None else torch.tanh(out / cap) * cap

    def sites(self, pattern: str) -> list[Site]:
        """The modules whose dotted name matches a pattern such as "layers.*.mlp.down_proj"; the door for changing them."""
        return sites(self, pattern)

    def init(self, seed: int) -> Decoder:
        """Fresh weights: normal with deviation 0.02, what writes to the residual stream scaled by 1 / sqrt(2 layers)."""
        draw(self, seed)
        return self

    @property
    def kernels(self) -> str:
        """What runs the layers: "torch", or the variant of the compiled kernels."""
        return "torch" if self.fast is None else self.fast.name

    @property
    def threads(self) -> int:
        """How many threads its layers run on."""
        return torch.get_num_threads() if self.fast is None else self.fast.threads

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def _logits(self, x_BTC: Tensor, which: str | Tensor | Sequence[int], rows: Sequence[int] | None) -> Tensor | None:
        if isinstance(which, str):
            if which == NONE:
                return None
            if which == ALL:
                return self.head(x_BTC)
            if which != LAST:
                raise UsageError(f"logits={which!r}: choose ALL, LAST, NONE or row numbers")
            if rows is None:
                return self.head(x_BTC[:, -1:])
            last = torch.tensor([n - 1 for n in rows], device=x_BTC.device)
            return self.head(x_BTC[torch.arange(len(rows), device=x_BTC.device), last].unsqueeze(1))
        return self.head(x_BTC[:, torch.as_tensor(which, device=x_BTC.device)])

    def _prepare(self, x_BTC: Tensor, pos_BT: Tensor | list[list[int]] | None, mask: Mask, docs_BT: Tensor | None,
                 cache: Cache | None) -> Pass:
        B, T, _ = x_BTC.shape
        lengths = cache.lengths if cache is not None else [0] * B
        if len(lengths) != B:
            raise UsageError(f"a batch of {B} sequences was given to a cache of {len(lengths)}")
        if cache is not None:
            cache.reserve(T)
        pos_BT, last = positions(pos_BT, lengths, T, x_BTC.device)
        if cache is None and self.config.context < min(T, last + 1):  # rows may share a place
            raise TooLargeError(f"{T} tokens do not fit into this model's context of {self.config.context}")
        return Pass(self, pos_BT, last, mask, docs_BT, list(lengths), cache)

    def turns(self, rope: Rope, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin by position, [positions, rotated]: a table that grows with the positions asked for."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        table = self._turns.get(rope)
        if table is None or len(table[0]) <= last or table[0].device != device or table[0].dtype != self.dtype:
            settings = dataclasses.asdict(rope)
            inv_R, factor = frequencies(int(self.config.head_dim * settings.pop("part")), **settings)
            angles = torch.outer(torch.arange(max(4096, 2 * last), dtype=wide), inv_R.to(wide))
            angles = torch.cat((angles, angles), dim=-1).to(device)
            table = self._turns[rope] = ((angles.cos() * factor).to(self.dtype), (angles.sin() * factor).to(self.dtype))
        return table
