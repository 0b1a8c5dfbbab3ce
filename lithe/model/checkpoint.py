"""Model folders: the Hugging Face layout, plus lithe.json for what that cannot say and for how the model came to be."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lithe.errors import FormatError, TooLargeError, UnsupportedError, UsageError
from lithe.kernels.room import apart
from lithe.model import families, names, packing
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.header import INDEX, WEIGHTS, Entry, inside, open_folder, read_json, some, tensors
from lithe.model.linear import PackedLinear, pack_pieces
from lithe.model.writing import writing

VERSION = 1  # of lithe.json
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
              "chat_template.jinja")


def read_config(folder: str | Path) -> Config:
    """The Config of a model folder. Raises FormatError for what lithe cannot read or does not know."""
    folder = open_folder(folder)
    raw, own = read_json(folder, "config.json"), _read_own(folder)
    if raw.get("model_type") == "lithe":
        if not isinstance(own.get("config"), dict):
            raise FormatError(f"{folder}: config.json points to lithe.json, which has no config")
        return Config.from_json(own["config"])
    return families.parse(raw)


def is_packed(folder: str | Path) -> bool:
    """Whether a folder's weights were packed before they were saved, and load as they are."""
    return bool(_read_own(open_folder(folder)).get("packed"))


def load(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", kind: str = "",
         group: int = 0) -> Decoder:
    """The Decoder in a model folder, its weights read tensor by tensor.

    dtype: float32 on the CPU and the checkpoint's own elsewhere, unless given. kind, group: pack each matrix as it is read
    (see kernels/pack.py). Where the folder's are packed already they stay so, and dtype is of the rest. Raises FormatError for
    a folder that is not what it claims, TooLargeError where the weights would not fit into the memory that is free.
    """
    folder, device = Path(folder), torch.device(device)
    config, found, own = read_config(folder), tensors(folder), _read_own(folder)
    if config.layers > len(found):
        raise FormatError(f"{folder}: config.json says {config.layers} layers, but there are only {len(found)} tensors")
    model = _blank(folder, config)
    stored = packing.stored(own.get("packed", {}), model, f"{folder}/lithe.json")
    shapes = packing.shapes(model, stored)
    table = {name: [name] for name in shapes} if stored else names.layout(shapes, config.family, names.is_stacked(found))
    _compare(folder, config, found, {name: names.shape_of(name, [shapes[m] for m in table[name]]) for name in table})
    if stored and (kind or device.type != "cpu"):
        raise UnsupportedError(f"{folder} holds packed weights, which load on a CPU, and as they are")
    rounded = not packing.is_exact(stored)
    as_is = rounded and dtype is None
    if dtype is None:
        own_dtype = DTYPES[found["norm.weight" if stored else next(iter(table))].dtype]
        dtype = torch.float32 if device.type == "cpu" and not rounded else own_dtype
    kinds = stored or (packing.all_as(model, kind, group) if kind else {})
    _check_memory(model, kinds, max(entry.stop - entry.start for entry in found.values()), dtype, device)
    packed, state = _weights(folder, model, found, table, kinds, lambda t: t.to(device, t.dtype if as_is else dtype, copy=True))
    model.load_state_dict(state, strict=False, assign=True)  # strict would miss what is packed; _compare has missed nothing
    packing.adopt(model, packed, state)
    if config.tied and "lm_head.weight" in found:
        _refuse_other_head(folder, found)
    model.receipts, model.token_ids = own.get("receipts", []), _token_ids(folder)
    return model.eval()


def save(model: Decoder, folder: str | Path, *, dtype: torch.dtype | None = None, tokenizer_from: str | Path | None = None,
         overwrite: bool = False, shard_bytes: int = 5 * 2**30) -> Path:
    """Write a model folder that `load` and transformers read. Nothing is seen under its name until all of it is written.

    dtype: the model's own unless given. tokenizer_from: a folder whose tokenizer and generation settings come along.
    overwrite: replace a model folder of that name; files in it that belong to no model are kept. A model with weights packed as
    whole numbers is written as it is, for lithe alone; packed floats are unpacked, which loses nothing.
    """
    folder = Path(folder)
    check_free(folder, overwrite)
    state, kinds = packing.contents(model)
    if kinds and dtype is not None:
        raise UnsupportedError(f"sparse weights and those packed as whole numbers are saved as they are, not in {dtype}")
    single = any(isinstance(held, PackedLinear) and held.kind == "fp32" for held in state.values())
    dtype = dtype or (torch.float32 if single else model.dtype)
    with writing(folder) as draft:
        write_config(model, draft, dtype, None if tokenizer_from is None else Path(tokenizer_from), kinds)
        _write_weights(model, draft, state, kinds, dtype, shard_bytes)
    return folder


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise UsageError for a folder that must not be written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another name")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite and (folder / "config.json").is_file()):
        raise UsageError(f"{folder} exists and is not empty; " + ("it is no model folder" if overwrite else "pass overwrite"))


def receipts(folder: str | Path) -> list:
    """How the model in a folder came to be, oldest first."""
    return _read_own(open_folder(folder)).get("receipts", [])


def available_memory(device: torch.device) -> int | None:
    """Free bytes on a device; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over the configuration and every tensor's name, type, shape and bytes: alike for any sharding of one model."""
    folder = Path(folder)
    found = tensors(folder)
    files = sorted({entry.file for entry in found.values()})
    stamps = tuple((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    settings = json.dumps(read_config(folder).to_json(), sort_keys=True)
    packed = _read_own(folder).get("packed")
    return _digest(settings + (json.dumps(packed, sort_keys=True) if packed else ""), tuple(sorted(found.items())), stamps)


@functools.lru_cache(maxsize=64)
def _digest(config: str, entries: tuple[tuple[str, Entry], ...], stamps: tuple) -> str:  # stamps: part of the cache's key
    digest = hashlib.sha256(config.encode())
    for name, entry in entries:
        digest.update(repr((name, entry.dtype, entry.shape)).encode())
        with open(entry.file, "rb") as file:
            file.seek(entry.start)
            for start in range(entry.start, entry.stop, 2**20):
                digest.update(file.read(min(2**20, entry.stop - start)))
    return digest.hexdigest()


def _blank(folder: Path, config: Config) -> Decoder:
    """The model of a config, its weights not there yet."""
    try:
        with torch.device("meta"):
            return Decoder(config)
    except RuntimeError as error:
        raise TooLargeError(f"{folder}: config.json describes tensors beyond any memory: {error}") from error


def _weights(folder: Path, model: Decoder, found: dict[str, Entry], table: dict[str, list[str]], kinds: packing.Kinds,
             take: Callable[[Tensor], Tensor]) -> tuple[dict[str, packing.Matrix], dict[str, Tensor]]:
    """Matrices as packed, and what is not packed as `take` gives it."""
    layer_of = {packing.weight_of(model, name): name for name in kinds} | {f"{name}.data": name for name in kinds}
    size, shapes = packing.linears(model), {name: weight.shape for name, weight in model.named_parameters()}
    packed: dict[str, packing.Matrix] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in _read(found, table):
        members = table[name]
        whole = tensor if tensor.dim() <= 2 or tensor.shape == shapes.get(members[0]) else tensor.flatten(0, -2)
        pieces = whole.split([shapes[member][0] for member in members]) if members[1:] else [whole]
        for member, piece in zip(members, pieces, strict=True):
            if (layer := layer_of.get(member)) is None:
                state[member] = take(piece)
            elif member.endswith(".data"):
                packed[layer] = packing.matrix(piece, kinds[layer][0], *size[layer], kinds[layer][1])
            else:
                try:
                    packed[layer] = pack_pieces(piece, *kinds[layer])
                except UsageError as problem:
                    raise FormatError(f"{folder}: {name}: {problem}") from None
    return packed, state


def _compare(folder: Path, config: Config, found: dict[str, Entry], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise FormatError unless the checkpoint holds exactly the wanted tensors, in shapes and types that fit."""
    if missing := sorted(wanted.keys() - found.keys()):
        raise FormatError(f"{folder}: the {config.family} model of config.json needs {some(missing)}, which no file holds")
    known = {name for name in found if name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")}
    if strange := sorted(found.keys() - wanted.keys() - known):
        raise FormatError(f"{folder} holds {some(strange)}, for which the {config.family} model of config.json has no place")
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise FormatError(f"{folder}: {name} has shape {list(found[name].shape)}, config.json asks for {list(shape)}")
        if found[name].dtype not in (("U8",) if name.endswith(".data") else DTYPES):
            raise FormatError(f"{folder}: tensor {name} is {found[name].dtype}; lithe reads weights of {', '.join(DTYPES)}")


def _check_memory(model: Decoder, kinds: packing.Kinds, largest: int, dtype: torch.dtype, device: torch.device) -> None:
    rotations = 2 * model.config.context * model.config.head_dim * (1 + (model.config.rope_local is not None))
    sizes = {name: math.prod(shape) for name, shape in packing.shapes(model, kinds).items()}
    weights = sum(n * (1 if name.endswith(".data") else dtype.itemsize) for name, n in sizes.items())
    needed, free = weights + rotations * dtype.itemsize + largest, available_memory(device)
    if free is not None and needed > free:
        form = "+".join(sorted({kind for kind, _ in kinds.values()})) or dtype
        raise TooLargeError(f"the weights need {needed / 1e9:.2f} GB of memory in {form}, {free / 1e9:.2f} GB are available; "
                            "choose a smaller model or a shorter dtype")


def _read(found: dict[str, Entry], wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors one by one, each in memory of its own: a mapped file would stay beside what is made of it."""
    for path in dict.fromkeys(found[name].file for name in wanted):
        try:
            with open(path, "rb") as file:
                for name, entry in ((name, found[name]) for name in wanted if found[name].file == path):
                    data = apart(entry.stop - entry.start)
                    file.seek(entry.start)
                    if file.readinto(data.numpy().data) < len(data):
                        raise FormatError(f"{path} ends within {name}; was the download cut short?")
                    yield name, data.view(DTYPES.get(entry.dtype, torch.uint8)).view(entry.shape)
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error}") from error


def _refuse_other_head(folder: Path, found: dict[str, Entry]) -> None:
    head, embedding = (tensor for _, tensor in _read(found, ("lm_head.weight", "model.embed_tokens.weight")))
    if head.dtype != embedding.dtype or not torch.equal(head, embedding):
        raise FormatError(f"{folder}: config.json ties the output matrix to the embedding, but lm_head.weight is another one; "
                          "set tie_word_embeddings to false to use it")


def _token_ids(folder: Path) -> dict:
    """The special tokens that config.json names; said even where absent, since transformers would put its defaults."""
    raw = read_json(folder, "config.json", optional=True)
    return {key: raw.get(key) for key in TOKEN_IDS}


def _read_own(folder: Path) -> dict:
    own = read_json(folder, "lithe.json", optional=True)
    if own and own.get("version") != VERSION:
        raise FormatError(f"{folder}/lithe.json has version {own.get('version')!r}, this lithe reads {VERSION}; update lithe")
    if not isinstance(own.get("receipts", []), list):
        raise FormatError(f"{folder}/lithe.json: receipts must be a list")
    return own


def write_config(model: Decoder, draft: Path, dtype: torch.dtype, source: Path | None, kinds: packing.Kinds) -> None:
    """config.json and lithe.json, and a tokenizer's files from a folder that has some."""
    own: dict = {"version": VERSION, "receipts": model.receipts}
    raw = None if kinds else families.express(model.config)
    if raw is None:  # a name that no other library knows, so that none misreads the weights
        raw = {"model_type": "lithe", "architectures": ["LitheDecoder"]}
        own["config"] = model.config.to_json()
    if kinds:
        own["packed"] = packing.described(kinds)
    raw |= {"torch_dtype": str(dtype).removeprefix("torch."), **dict.fromkeys(TOKEN_IDS), **model.token_ids}
    if source is not None:
        raw |= {key: ids for key, ids in _token_ids(source).items() if ids is not None}
        for name in COMPANIONS:
            if inside(source, name).is_file():
                shutil.copy(source / name, draft / name)
    for name, content in (("config.json", raw), ("lithe.json", own)):
        (draft / name).write_text(json.dumps(content, indent=2) + "\n")


def _write_weights(model: Decoder, draft: Path, state: dict[str, Tensor | PackedLinear], kinds: packing.Kinds,
                   dtype: torch.dtype, shard_bytes: int) -> None:
    known = packing.linears(blank := _blank(draft, model.config))
    plain = packing.shapes(blank, {name: held for name, held in kinds.items() if name in known})
    shape = lambda name: packing.shape(state[name]) if name in state else None
    strange = sorted(name for name in state.keys() | plain.keys() if shape(name) != plain.get(name))
    strange += [f"{name}.data" for name, layer in packing.layers(model).items()  # padded, other sizes may fill as many bytes
                if known.get(name) != (layer.out_features, layer.in_features)]
    if strange:
        raise UnsupportedError(f"this model differs from its config in {some(strange)}, which a model folder cannot hold: "
                               "merge or undo what was swapped in, then save")
    table = {name: [name] for name in plain} if kinds else names.layout(plain, model.config.family)
    taken = lambda held: packing.value(held).to("cpu", None if kinds else dtype)
    wide = {name: 1 if name.endswith(".data") else dtype.itemsize for name in table}
    size = {name: sum(math.prod(plain[member]) for member in table[name]) * wide[name] for name in table}
    shards: list[list[str]] = [[]]
    for name in table:
        if shards[-1] and sum(size[held] for held in shards[-1]) + size[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = [WEIGHTS] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, held in zip(files, shards, strict=True):
        whole = {name: [taken(state[member]) for member in table[name]] for name in held}
        save_file({name: torch.cat(parts) if len(parts) > 1 else parts[0].contiguous() for name, parts in whole.items()},
                  draft / file, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {name: file for file, held in zip(files, shards, strict=True) for name in held}
        (draft / INDEX).write_text(json.dumps({"metadata": {"total_size": sum(size.values())}, "weight_map": where}, indent=2))
