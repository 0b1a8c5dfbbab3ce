"""Model folders whose every word is known: after each byte comes the one that follows it in a given text, round and round."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from lithe import registry
from lithe.model.checkpoint import save
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.fitted import FRESH

ROUND = "aé€😀 "  # one to four bytes a character, no byte twice
END = "<end>"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"


def drafts() -> list[str]:
    """A spec of every shipped draft that needs no second model; those that read a corpus are given a small one, those that
    have weights to fit untrained ones."""
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    given = lambda e: f"corpus={page}" if "corpus" in e.card.needs else f"heads={FRESH}" if e.card.trains else ""
    return [":".join(filter(None, (e.address, given(e))))
            for e in registry.entries("decode", "draft") if "second_model" not in e.card.needs]


@functools.cache
def spoken(text: str = ROUND, *, context: int = 96, template: str | None = TEMPLATE, ends: bool = False) -> Path:
    """A folder with a byte for each token. ends: the text is said once, then comes the end."""
    folder = Path(tempfile.mkdtemp(prefix="lithe-")) / "model"
    tokens = [*text.encode(), 256] if ends else [*text.encode()]
    save(follower(dict(zip(tokens, tokens[1:] + tokens[:1], strict=True)), context), folder)
    alphabet = letters()
    backend = tokenizers.Tokenizer(models.BPE({letter: byte for byte, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END} | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@functools.cache
def padded(rows: int) -> Path:
    """The same folder with so many rows in the embedding, more than the tokenizer has tokens: as real families pad theirs."""
    folder = Path(tempfile.mkdtemp(prefix="lithe-")) / "model"
    shutil.copytree(spoken(), folder)
    state = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, rows - len(state[name])))
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def follower(after: dict[int, int], context: int) -> Decoder:
    """A model that looks at nothing but the last token: what follows it is `after`, for others the first of those."""
    size = 264
    config = Config(vocab=257, width=size, layers=2, heads=1, kv_heads=1, head_dim=8, ffn=8, context=context)
    model = Decoder(config).init(0)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(torch.eye(257, size))
        for block in model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token in range(257):
            model.lm_head.weight[after.get(token, next(iter(after))), token] = 1.0
    return model


def letters() -> list[str]:
    """How byte-level tokenizers write each byte, since GPT-2: printable ones as they are, the others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte if byte in plain else 256 + others.index(byte)) for byte in range(256)]
