"""Checkpoints of llama2.c and its ternary offspring to a model folder."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, processors
from torch import Tensor

from lithe.errors import FormatError
from lithe.model.checkpoint import save
from lithe.model.config import Config
from lithe.model.decoder import Decoder

MAGIC = 0x616B3432
MATRICES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
            "gate": "mlp.gate_proj", "down": "mlp.down_proj", "up": "mlp.up_proj"}  # in the files' order
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPACE = "\u2581"  # how SentencePiece writes a space


class Reader:
    """A file read from front to back; each reading checks that the file is long enough."""

    def __init__(self, path: Path):
        try:
            self.data, self.at, self.path = path.read_bytes(), 0, path
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}") from error

    def numbers(self, kind: str, *shape: int) -> np.ndarray:
        count = int(np.prod(shape, dtype=object))
        end = self.at + count * np.dtype(kind).itemsize
        if count < 0 or end > len(self.data):
            raise FormatError(f"{self.path} is truncated: it has {len(self.data)} bytes where {end} were expected")
        values = np.frombuffer(self.data, kind, count, self.at).reshape(shape)
        self.at = end
        return values

    def floats(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.numbers("<f4", *shape).astype(np.float32))


def convert(checkpoint_file: str | Path, tokenizer_file: str | Path, out_folder: str | Path) -> Path:
    """Write a model folder from a llama2.c checkpoint (float32, int8 or ternary) and its tokenizer (.bin, .model or .vocab)."""
    model = read_checkpoint(Path(checkpoint_file))
    tokenizer = build_tokenizer(read_pieces(Path(tokenizer_file)))
    if tokenizer.get_vocab_size() != model.config.vocab:
        raise FormatError(f"{tokenizer_file} has {tokenizer.get_vocab_size()} tokens, {checkpoint_file} {model.config.vocab}; "
                          "they do not belong together")
    # These models saw a new beginning after every story, so it is also how they end.
    model.token_ids = {"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": None}
    with tempfile.TemporaryDirectory() as draft:
        tokenizer.save(f"{draft}/tokenizer.json")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "clean_up_tokenization_spaces": False,
                    "unk_token": UNKNOWN, "bos_token": BEGIN, "eos_token": END}
        for name, content in (("tokenizer_config.json", settings), ("config.json", model.token_ids),
                              ("generation_config.json", {"bos_token_id": 1, "eos_token_id": [1, 2]})):
            Path(draft, name).write_text(json.dumps(content, indent=2))
        return save(model, out_folder, tokenizer_from=draft)


def read_checkpoint(path: Path) -> Decoder:
    """The Decoder in a llama2.c file of layout A (float32), B (version 2, int8) or C (version 1, ternary)."""
    file = Reader(path)
    magic, version = (int(n) for n in file.numbers("<u4", 2))
    layout = {(MAGIC, 2): "int8", (MAGIC, 1): "ternary"}.get((magic, version), "float")
    file.at = 8 if layout != "float" else 0
    width, ffn, layers, heads, kv_heads, vocab, context = (int(n) for n in file.numbers("<i4", 7))
    tied = vocab > 0
    if layout != "float":
        tied, group = bool(file.numbers("u1", 1)[0]), int(file.numbers("<i4", 1)[0])
        file.at = 256
    if min(width, ffn, layers, heads, kv_heads, abs(vocab), context) < 1 or max(width, ffn, abs(vocab), context) > 2**24:
        raise FormatError(f"{path} is no llama2.c checkpoint: its sizes cannot be")
    config = Config(vocab=abs(vocab), width=width, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn, context=context,
                    tied=tied)
    if layout == "ternary":  # its norms inside blocks have no epsilon, and inputs small enough to feel one
        config = config.replace(family="bitnet", sub_norm=True, norm_eps=1e-20)
    if layout == "float":
        state = _floats(file, config)
    else:
        state = _ternary(file, config) if layout == "ternary" else _int8(file, config, group)
    for name in [name for name in state if name.endswith(("q_proj.weight", "k_proj.weight"))]:
        # llama2.c rotates neighbouring pairs, lithe the halves of a head: even rows first, then odd ones
        weight = state[name].view(-1, config.head_dim // 2, 2, width)
        state[name] = weight.transpose(1, 2).reshape(-1, width)
    with torch.device("meta"):
        model = Decoder(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _shapes(config: Config) -> Iterator[tuple[str, tuple[int, int]]]:
    inner = int(config.kv_heads) * config.head_dim  # type: ignore[arg-type]
    rows = {"k": inner, "v": inner, "gate": config.ffn, "up": config.ffn}
    for key, name in MATRICES.items():
        yield name, (rows.get(key, config.width), config.ffn if key == "down" else config.width)  # type: ignore[misc]


def _norms(file: Reader, config: Config, *names: str) -> dict[str, Tensor]:
    return {f"layers.{i}.{name}.weight": row
            for name in names for i, row in enumerate(file.floats(config.layers, config.width))}


def _floats(file: Reader, config: Config) -> dict[str, Tensor]:
    state = {"embed_tokens.weight": file.floats(config.vocab, config.width), **_norms(file, config, "attn_in_norm")}
    for name, shape in _shapes(config):
        if name == "mlp.gate_proj":
            state |= _norms(file, config, "mlp_in_norm")
        state |= {f"layers.{i}.{name}.weight": matrix for i, matrix in enumerate(file.floats(config.layers, *shape))}
    state["norm.weight"] = file.floats(config.width)
    file.floats(2, config.context, config.head_dim // 2)  # rotary tables nobody reads any more
    return state if config.tied else state | {"lm_head.weight": file.floats(config.vocab, config.width)}


def _int8(file: Reader, config: Config, group: int) -> dict[str, Tensor]:
    state = _norms(file, config, "attn_in_norm", "mlp_in_norm") | {"norm.weight": file.floats(config.width)}

    def matrix(rows: int, columns: int) -> Tensor:
        if group < 1 or rows * columns % group:
            raise FormatError(f"{file.path}: groups of {group} values do not fill a matrix of {rows} x {columns}")
        values = file.numbers("i1", rows * columns // group, group).astype(np.float32)
        return (torch.from_numpy(values) * file.floats(rows * columns // group, 1)).view(rows, columns)

    state["embed_tokens.weight"] = matrix(config.vocab, config.width)
    state |= {f"layers.{i}.{name}.weight": matrix(*shape) for name, shape in _shapes(config) for i in range(config.layers)}
    return state if config.tied else state | {"lm_head.weight": matrix(config.vocab, config.width)}


def _ternary(file: Reader, config: Config) -> dict[str, Tensor]:
    """Scale * {-1, 0, 1}. Each linear takes x / (|x| sqrt(n)), which is RMS-norming with a weight of 1 / n."""
    state = {"norm.weight": file.floats(config.width), "embed_tokens.weight": file.floats(config.vocab, config.width)}
    for name, (rows, columns) in _shapes(config):
        for i in range(config.layers):
            scale = float(file.floats(1)[0])
            packed = file.numbers("u1", rows * columns // 4)
            codes = packed[:, None] >> np.array([6, 4, 2, 0]) & 3  # the first weight lies in the highest bits
            ternary = np.array([0, 1, 0, -1], dtype=np.float32)[codes].reshape(rows, columns)
            state[f"layers.{i}.{name}.weight"] = torch.from_numpy(ternary) * scale
    for i in range(config.layers):
        for norm in ("attn_in_norm", "mlp_in_norm", "self_attn.sub_norm", "mlp.sub_norm"):
            inputs = config.ffn if norm == "mlp.sub_norm" else config.width
            state[f"layers.{i}.{norm}.weight"] = torch.full((inputs,), 1 / inputs)  # type: ignore[arg-type, operator]
    return state


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """Pieces and scores by id, from llama2.c's .bin, SentencePiece's .model or a .vocab text file (piece[, tab, score])."""
    file = Reader(path)
    if path.suffix == ".vocab":
        rows = [line.split("\t") for line in file.data.decode("utf-8", "replace").rstrip("\n").split("\n")]
        pieces = [(row[0], float(row[1]) if len(row) > 1 else -float(i)) for i, row in enumerate(rows)]
    elif path.suffix == ".model":
        pieces = [_piece(bytes(body)) for field, body in _messages(file.data) if field == 1 and isinstance(body, bytes)]
    else:
        pieces, file.at = [], 4
        while file.at < len(file.data):
            score, length = struct.unpack("<fi", file.numbers("u1", 8).tobytes())
            pieces.append((file.numbers("u1", length).tobytes().decode("utf-8", "replace"), score))
    if len(pieces) < 4:
        raise FormatError(f"{path} holds no list of pieces")
    return [(UNKNOWN, 0.0), (BEGIN, 0.0), (END, 0.0)] + [(text.replace(" ", SPACE), score) for text, score in pieces[3:]]


def _piece(message: bytes) -> tuple[str, float]:
    fields = {field: value for field, value in _messages(message) if isinstance(value, bytes)}
    score = fields.get(2, b"")
    return fields.get(1, b"").decode("utf-8", "replace"), struct.unpack("<f", score)[0] if len(score) == 4 else 0.0


def _messages(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Field numbers and values of a protocol buffer message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128 or shift > 63:
                return value

    try:
        while at < len(data):
            key = varint()
            size = {0: None, 1: 8, 2: -1, 5: 4}[key & 7]
            if size is None:
                yield key >> 3, varint()
                continue
            size = varint() if size < 0 else size
            yield key >> 3, data[at : at + size]
            at += size
    except (IndexError, KeyError) as error:
        raise FormatError("this .model file is no SentencePiece model") from error


def build_tokenizer(pieces: list[tuple[str, float]]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: pairs merge in the order of their result's score; unknown characters fall back to bytes."""
    vocabulary = {text: i for i, (text, _) in enumerate(pieces)}
    merges = []
    for text, _ in sorted(pieces[3:], key=lambda piece: -piece[1]):
        merges += [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in vocabulary and text[i:] in vocabulary]
    bytes_known = "<0x00>" in vocabulary
    model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=False, byte_fallback=bytes_known)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True)
                                  for text in (UNKNOWN, BEGIN, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, 1)])
    return tokenizer
