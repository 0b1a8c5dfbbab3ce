"""The corpus as ids: one flat uint16 file a source and side, documents apart by <|endoftext|>, sizes in tokens.json."""

import json
import sys
from pathlib import Path

import numpy as np
from corpus import END, sources
from tokenizers import Tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Ids of all documents; each begins with <|endoftext|>, so that the first token of a text is predicted too."""
    end, parts = tokenizer.token_to_id(END), []
    for start in range(0, len(documents), 1000):
        for encoding in tokenizer.encode_batch_fast(documents[start : start + 1000]):
            parts += [np.array([end], np.uint16), np.array(encoding.ids, np.uint16)]
    return np.concatenate([*parts, np.array([end], np.uint16)])


def write(folder: Path) -> None:
    """`folder`/tokens/<source>.<side>.bin for every source. Bytes count the text without the separators."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    sizes, out = {}, folder / "tokens"
    out.mkdir(parents=True, exist_ok=True)
    for name, split in sources().items():
        for side, documents in (("train", split.train), ("heldout", split.heldout)):
            ids = encode(tokenizer, documents)
            ids.tofile(out / f"{name}.{side}.bin")
            text_bytes = sum(len(document.encode()) for document in documents)
            sizes[f"{name}.{side}"] = {"documents": len(documents), "tokens": len(ids), "bytes": text_bytes}
            print(f"{name}.{side}: {len(ids):,} tokens, {text_bytes / len(ids):.2f} bytes a token", flush=True)
    (out / "tokens.json").write_text(json.dumps(sizes, indent=2) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else ".lithe/zoo"))
