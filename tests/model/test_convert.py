"""llama2.c's files converted: known losses, a coherent story, and the tokenizer against its description."""

import gzip
import json
import os
import random
import struct
from pathlib import Path

import pytest
import torch

from lithe.errors import FormatError
from lithe.model.checkpoint import load
from lithe.model.convert import SPACE, build_tokenizer, convert, read_checkpoint, read_pieces
from lithe.model.tokenizer import Tokenizer

DATA = Path(os.environ.get("LITHE_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILES = DATA / "checkpoints"
needs_data = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the checkpoints in {FILES}; set LITHE_DATA")
torch.set_num_threads(1)


def stories(count: int) -> list[str]:
    with gzip.open(DATA / "tinystories" / "valid.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(count), strict=False)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    made = {}

    def get(checkpoint: str, tokenizer: str = "tok512.bin"):
        if checkpoint not in made:
            folder = convert(FILES / checkpoint, FILES / tokenizer, tmp_path_factory.mktemp("converted") / checkpoint)
            model = load(folder)
            made[checkpoint] = model, Tokenizer.load(folder, model.config.vocab)
        return made[checkpoint]

    return get


@needs_data
@torch.no_grad()
@pytest.mark.parametrize("checkpoint, tokenizer, rows, expected", [
    ("stories260K.bin", "tok512.bin", 200, 1.490), ("stories260K-q8.bin", "tok512.model", 200, 1.491),
    ("bitllama-1M.bin", "tok512.bin", 200, 1.543), ("bitllama-3M.bin", "tok512.bin", 200, 1.403),
    ("babyllama-char105.bin", "tok105.model", 256, 0.791), ("babyllama-char361.bin", "tok361.vocab", 256, 0.725)])
def test_known_losses(converted, checkpoint, tokenizer, rows, expected):
    model, tok = converted(checkpoint, tokenizer)
    loss = count = 0
    for story in stories(16):
        ids = torch.tensor([tok.encode(story)[:rows]])
        log_p = model(ids, logits="all").logits[0, :-1].log_softmax(-1)
        loss -= log_p.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert loss / count == pytest.approx(expected, abs=0.01)


@needs_data
@torch.no_grad()
def test_tells_a_story(converted):
    model, tok = converted("stories260K.bin")
    ids = tok.encode("Once upon a time")
    for _ in range(40):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    print(story := tok.decode(ids))
    assert story.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")
    assert tok.eos_ids == {1, 2}


@needs_data
def test_tokenizer_is_as_described(converted):
    pieces = read_pieces(FILES / "tok512.bin")
    assert pieces == read_pieces(FILES / "tok512.model")
    tok, dice = converted("stories260K.bin")[1], random.Random(0)
    letters = [text for text, _ in pieces if len(text) == 1] + list("é漢😀\n\t ")
    for text in stories(8) + ["".join(dice.choices(letters, k=30)) for _ in range(200)] + ["".join(dice.choices("hent  ",
                                                                                                                k=30))]:
        assert tok.encode(text[:400]) == [1, *described(pieces, text[:400])]
    assert tok.decode(tok.encode("Hé 漢 \n<0x41>")) == "Hé 漢 \n<0x41>"


def described(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """Merge the adjacent pair whose concatenation has the best score until none has one."""
    ids, scores = {piece: i for i, (piece, _) in enumerate(pieces)}, dict(pieces[259:])
    parts = [part for c in SPACE + text.replace(" ",
                                                SPACE) for part in ([c] if c in ids else [f"<0x{b:02X}>" for b in c.encode()])]
    while True:
        best = max((i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in scores),
                   key=lambda i: scores[parts[i] + parts[i + 1]], default=None)
        if best is None:
            return [ids[part] for part in parts]
        parts[best : best + 2] = [parts[best] + parts[best + 1]]


def test_broken_files(tmp_path):
    def error(content: bytes, name: str = "x.bin", read=read_checkpoint) -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError) as caught:
            read(tmp_path / name)
        return str(caught.value)

    sizes = struct.pack("<7i", 8, 16, 1, 2, 2, 10, 32)
    assert "truncated" in error(b"")
    assert "truncated" in error(sizes + bytes(100))
    assert "sizes" in error(struct.pack("<7i", 8, -16, 1, 2, 2, 10, 32))
    assert "sizes" in error(struct.pack("<7i", 2**30, 2**30, 1, 2, 2, 2**30, 32))
    assert "truncated" in error(struct.pack("<II", 0x616B3432, 2) + sizes + bytes(300))
    assert "no list" in error(b"1234", read=read_pieces)
    assert "truncated" in error(struct.pack("<ifi", 3, 0.0, 2**30), read=read_pieces)
    error(b"\xff" * 40, "x.model", read_pieces)
    with pytest.raises(FormatError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.bin")


def test_tokenizer_and_checkpoint_must_belong_together(tmp_path):
    torch.manual_seed(0)
    with open(tmp_path / "model.bin", "wb") as file:
        file.write(struct.pack("<7i", 8, 16, 1, 2, 2, 10, 32) + torch.rand(2000).numpy().tobytes())
    (tmp_path / "tok.vocab").write_text("<unk>\n<s>\n</s>\na\nb\nab\n")
    with pytest.raises(FormatError, match=r"6 tokens.* 10"):
        convert(tmp_path / "model.bin", tmp_path / "tok.vocab", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "tok.vocab").write_text("<unk>\n<s>\n</s>\n" + "\n".join("abcdefg") + "\n")
    assert load(convert(tmp_path / "model.bin", tmp_path / "tok.vocab", tmp_path / "out")).config.vocab == 10


def test_unknown_characters_without_byte_tokens():
    assert build_tokenizer([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), (SPACE, 0.0), ("a", -1.0)]).encode("aé").ids == [1, 3,
                                                                                                                          4, 0]
