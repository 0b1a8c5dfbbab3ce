"""Random files and settings: whatever they hold, what comes out is a model or a LitheError."""

import contextlib
import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from lithe.errors import LitheError
from lithe.model import families
from lithe.model.checkpoint import load
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.header import parse_json, read_header
from tests.model import families_zoo as zoo

GOOD = {"model_type": "llama", **zoo.BASE}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
        ["sliding_attention", "full_attention", "yarn", "llama3", "linear", "silu", 0, 1, 2, 3, 1e-300, 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted({
        "rope_type", "type", "factor", "rope_theta", "mscale", "mscale_all_dim", "full_attention", "sliding_attention",
        "truncate",
        "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "attention_factor"})), inner, max_size=5),
        max_leaves=8)
KEYS = sorted({key for family in families.FAMILIES.values() for key in (*family.keys, *family.further)} | set(families.SIZES)
              | set(families.NEUTRAL) | families.HARMLESS | set(families.rope_keys.KEYS) | {"layer_types",
                                                                                            "use_sliding_window"})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    zoo.make("llama").save_pretrained(folder)
    return folder


def blank(config: Config) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


@FUZZ
@given(st.sampled_from(sorted(families.FAMILIES)), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_settings(name, changes):
    try:
        config = families.parse({**GOOD, "model_type": name, **{k: v for k, v in changes.items() if k != "model_type"}})
    except LitheError:
        return
    if config.context <= 4096 and config.experts <= 64 and sum(w.numel() for w in blank(config).parameters()) < 10**6:
        with torch.no_grad():
            assert Decoder(config)(torch.tensor([[1, 2, 3]])).logits.shape == (1, 1, config.vocab)
    raw = families.express(config)
    assert raw is None or families.parse(json.loads(json.dumps(raw))) == config
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@FUZZ
@given(st.dictionaries(st.sampled_from([*Config(vocab=1, width=2, layers=1, heads=1, kv_heads=1, ffn=1, context=1).to_json(),
                                        "x"]), VALUES))
def test_any_settings_of_our_own(raw):
    with contextlib.suppress(LitheError):
        Config.from_json({"vocab": 8, "width": 8, "layers": 2, "heads": 2, "kv_heads": 2, "ffn": 8, "context": 8} | raw)


@FUZZ
@given(st.dictionaries(st.text(max_size=3), VALUES | st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "BF16", "U8", "Z"]), "shape": st.lists(st.integers(-1, 5), max_size=3),
    "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2)}), max_size=4), st.binary(max_size=40))
def test_any_header(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with contextlib.suppress(LitheError):
        assert sum(entry.stop - entry.start for entry in read_header(path).values()) == len(data)


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    for read in (lambda: read_header(path), lambda: parse_json(data, "x")):
        with contextlib.suppress(LitheError):
            read()


@FUZZ
@given(st.integers(0, 2000), st.integers(0, 255))
def test_any_flipped_byte(good, tmp_path_factory, at, value):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        data = bytearray((good / file).read_bytes())
        data[at % len(data)] = value
        (folder / file).write_bytes(data)
    with contextlib.suppress(LitheError):
        assert all(torch.is_tensor(weight) for weight in load(folder).parameters())
