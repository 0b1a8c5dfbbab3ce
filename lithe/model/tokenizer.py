"""Text to token ids and back: tokenizer.json with the settings that lie beside it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import decoders

from lithe import registry
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model.header import inside, read_json, setting

if TYPE_CHECKING:
    from lithe.model.template import ChatTemplate

HARMLESS = {"bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id", "max_length", "min_length", "use_cache",
            "transformers_version", "cache_implementation", "_from_model_config", "trust_remote_code", "low_memory",
            "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits"}
NEUTRAL = {"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
           "diversity_penalty": 0.0, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
           "early_stopping": False, "renormalize_logits": False, "remove_invalid_values": False, "is_assistant": False,
           "token_healing": False}
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def generation_settings(folder: str | Path) -> dict[str, float | bool]:
    """generation_config.json's sampling settings: do_sample, max_new_tokens and the warps it sets, by their names here.

    Raises FormatError for settings that are neither, nor known to change nothing.
    """
    warps = {entry.name for entry in registry.entries("sampling", "warp")}
    raw = read_json(Path(folder), "generation_config.json", optional=True)
    found = {}
    for key, value in raw.items():
        name = key if key in warps else key.removesuffix("_cutoff").removesuffix("_p")
        if name in warps or key in ("do_sample", "max_new_tokens"):
            if value is not None:
                kind = "flag" if key == "do_sample" else "amount"
                found[name] = setting(raw, key, kind, where="generation_config.json")
        elif value is not None and key not in HARMLESS and value != NEUTRAL.get(key):
            raise FormatError(f"{folder}/generation_config.json: {key} = {value!r:.80} is not supported; remove the key to go "
                              "without")
    return found


class Tokenizer:
    """A model folder's tokenizer. ids lie in range(vocab_size); eos_ids, bos_id and pad_id are its special tokens.

    embedding: how many rows the model's embedding has; a larger vocabulary raises FormatError.
    """

    def __init__(self, folder: str | Path, embedding: int | None = None):
        folder = Path(folder)
        self.backend = _backend(folder)
        config = read_json(folder, "tokenizer_config.json", optional=True)
        if "auto_map" in config:
            raise FormatError(f"{folder}/tokenizer_config.json names Python code to run (auto_map); lithe runs no code from "
                              "a checkpoint. Remove the entry if tokenizer.json is all there is to it")
        named = read_json(folder, "special_tokens_map.json", optional=True) | config
        self.special = {name: text for name in NAMES if (text := _content(named.get(name))) is not None}
        self.vocab_size = max(self.vocabulary.values(), default=-1) + 1
        self._pieces: dict[int, str] | None = {} if isinstance(self.backend.decoder, decoders.ByteLevel) else None
        if embedding is not None and self.vocab_size > embedding:
            raise FormatError(f"{folder}: the tokenizer has {self.vocab_size} tokens, the embedding only {embedding} rows; "
                              "these files do not belong together")
        model, generation = (read_json(folder, name, optional=True) for name in ("config.json", "generation_config.json"))
        token = lambda key: _ids(generation, key) or _ids(model, key) or self._named(key)
        self.eos_ids: set[int] = set(token("eos_token_id"))
        self.pad_id: int | None = next(iter(token("pad_token_id")), None)
        self.bos_id: int | None = next(iter(self._named("bos_token_id") or token("bos_token_id")), None)
        self.prefix = self._prefix(config.get("add_bos_token"))
        self._template = _template(folder, config)

    @classmethod
    def load(cls, folder: str | Path, embedding: int | None = None) -> Tokenizer:
        return cls(folder, embedding)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids; with `bos` what the tokenizer puts in front of a text comes first, unless the text has it already."""
        try:
            ids = self.backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise UsageError(f"this text cannot be encoded: {error}") from error
        return ids if not bos or ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of token ids, special tokens left out unless asked for."""
        return self.backend.decode(list(ids), skip_special_tokens=not special)

    def piece(self, token: int) -> str:
        """The text this token adds whatever surrounds it, looked up from the second time on; "" where that cannot be told.

        It can where tokens are bytes and these end no character midway.
        """
        if self._pieces is None:
            return ""
        found = self._pieces.get(token)
        if found is None:
            text = self.decode([token])
            found = self._pieces[token] = "" if "\ufffd" in text else text
        return found

    def chat(self, messages: list[dict], add_generation_prompt: bool = True, **extra) -> str:
        """The prompt for a conversation in this model's format; encode it with bos=False, as transformers does."""
        if self.template is None:
            raise UnsupportedError("this model has no chat template; give it plain text, or one trained on conversations")
        variables = {"tools": None, "documents": None, **self.special, **extra}
        return self.template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, compiled when it is asked for: plain text needs none, and jinja2 takes a third of a start."""
        if self._template is None:
            return None
        from lithe.model.template import ChatTemplate

        return ChatTemplate(self._template)

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token's text and id."""
        return self.backend.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: alike exactly where every id means the same token."""
        return hashlib.sha256(json.dumps(sorted(self.vocabulary.items())).encode()).hexdigest()

    def _named(self, key: str) -> list[int]:
        text = self.special.get(key.removesuffix("_id"))
        if text is None:
            return []
        if text not in self.vocabulary:
            raise FormatError(f"tokenizer: {key.removesuffix('_id')} is {text!r}, which tokenizer.json does not have")
        return [self.vocabulary[text]]

    def _prefix(self, wanted: object) -> list[int]:
        """What goes in front of a text: as add_bos_token says, else what tokenizer.json's post-processor puts there."""
        if wanted is not None:
            return [self.bos_id] if wanted and self.bos_id is not None else []
        bare, full = (self.backend.encode("a", add_special_tokens=with_special).ids for with_special in (False, True))
        return next((full[:i] for i in range(len(full)) if full[i : i + len(bare)] == bare), [])


class Stream:
    """Text of tokens as they come. Bytes of an unfinished character wait for the rest.

    prompt: ids that came before; their tail decides whether the first new token keeps its leading space.
    """

    LONGEST = 8  # tokens to wait for a character to end; one has at most four bytes, so what still waits is no character

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()):
        self.decode, self.piece = tokenizer.decode, tokenizer.piece
        self.before: list[int] = list(prompt[-self.LONGEST :])  # tokens already shown, as context for the decoder
        self.waiting: list[int] = []
        while len(self.before) > self.LONGEST - 4 and "\ufffd" in self.decode(self.before):
            self.before = self.before[1:]  # the context must not begin inside a character

    def push(self, token: int) -> str:
        """The text this token completes, "" while a character is unfinished."""
        if not self.waiting and (piece := self.piece(token)):
            self.before = [token]
            return piece
        self.waiting.append(token)
        text = self.decode(self.before + self.waiting)
        return "" if text.endswith("\ufffd") and len(self.waiting) < self.LONGEST else self._show(text)

    def flush(self) -> str:
        """What is still waiting, unfinished characters as U+FFFD."""
        return self._show(self.decode(self.before + self.waiting)) if self.waiting else ""

    def _show(self, text: str) -> str:
        new = text[len(self.decode(self.before)) :]
        # The context must hold text: decoders strip the space of what looks like a beginning.
        self.before, self.waiting = self.waiting if new else self.before + self.waiting, []
        return new


def same_vocabulary(a: Tokenizer, b: Tokenizer) -> str | None:
    """None where every id means the same token in both, else how the two differ."""
    if a.vocabulary == b.vocabulary:
        return None
    ours, theirs = ({i: text for text, i in t.vocabulary.items()} for t in (a, b))
    unlike = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    return (f"vocabularies of {a.vocab_size} and {b.vocab_size} tokens in which {len(unlike)} ids mean different tokens; the "
            f"first is {unlike[0]}: {ours.get(unlike[0])!r} and {theirs.get(unlike[0])!r}")


def _backend(folder: Path) -> tokenizers.Tokenizer:
    path = inside(folder, "tokenizer.json")
    if not path.is_file():
        others = [name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (folder / name).is_file()]
        hint = f", only {others[0]}: load it once with transformers and save_pretrained, which writes one" if others else ""
        raise FormatError(f"{folder} has no tokenizer.json{hint}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise FormatError(f"{path} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _content(token: object) -> str | None:
    """A special token's text; files give it plain or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _ids(raw: dict, key: str) -> list[int]:
    value = raw.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int for i in ids):
        raise FormatError(f"{key} must be a token id or a list of them, not {value!r:.80}")
    return [i for i in ids if i >= 0]  # -1 stands for none


def _template(folder: Path, config: dict) -> str | None:
    path = inside(folder, "chat_template.jinja")
    try:
        found = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    if isinstance(found, list):  # several by name
        found = next((one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None)
    if found is not None and not isinstance(found, str):
        raise FormatError(f"{folder}: chat_template must be text, not {type(found).__name__}")
    return found
