"""Scores equal those computed directly, whatever the windows."""

import json
from math import log

import pytest
import torch

from lithe.bench import evaluate
from lithe.errors import FormatError, UsageError
from lithe.model.decoder import ALL
from tests.bench.folder import LETTERS, small_text_model

TEXT = "the quick brown fox jumps over the lazy dog. " * 6
BOS = len(LETTERS)


def nats_of(model, context, token):
    """Nats of one token after a context, by a pass of its own."""
    with torch.inference_mode():
        return float(-model(torch.tensor([context])).logits[0, -1].log_softmax(-1)[token])


@pytest.mark.parametrize("bos", [False, True])
def test_a_text_within_the_context_is_scored_in_one_pass(bos):
    model, text = small_text_model(bos=bos), TEXT[:40]
    ids = model.tokenizer.encode(text)
    assert len(ids) == 40 + bos
    with torch.inference_mode():
        law = model(torch.tensor([ids]), logits=ALL).logits[0].log_softmax(-1)
    wanted = -sum(float(law[i, ids[i + 1]]) for i in range(len(ids) - 1))
    found = evaluate.evaluate(model, [text])
    assert found.tokens == found.bytes == 39 + bos
    assert found.nll * found.tokens == pytest.approx(wanted)
    assert found.bits_per_byte == pytest.approx(wanted / log(2) / found.bytes)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("context", [8, 9, 64])
def test_a_long_text_is_scored_once_with_at_least_half_a_context(bos, context):
    model = small_text_model(bos=bos)
    ids = model.tokenizer.encode(TEXT)[bos:]
    head, size = [BOS] * bos, context + 1 - bos
    total, start, scored = 0.0, 0, []
    for i in range(0 if bos else 1, len(ids)):
        if i >= start + size:
            start = i - size // 2
        before = head + ids[start:i]
        assert len(before) <= context and (start == 0 or i - start >= context // 2)
        total += nats_of(model, before, ids[i])
        scored.append(i)
    found = evaluate.evaluate(model, [TEXT], context=context)
    assert found.tokens == len(scored) == len(TEXT) - 1 + bos
    assert found.nll * found.tokens == pytest.approx(total)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("tokens", [0, 1, 2, 6, 7, 8, 50])
def test_windows_cover_every_token_once(tokens, size, given):
    scored = []
    for first, start, stop in evaluate.windows(tokens, size, given=given):
        assert 0 <= start <= first < stop <= min(tokens, start + size)
        assert start == 0 or first - start >= size // 2
        scored += range(first, stop)
    assert scored == list(range(0 if given else 1, tokens))


def test_documents_are_scored_apart_and_the_vocabulary_in_pieces(monkeypatch):
    model = small_text_model()
    texts = ["once upon a time.", "a fox.", TEXT]
    apart = [evaluate.evaluate(model, [text]) for text in texts]
    monkeypatch.setattr(evaluate, "CELLS", 3 * model.config.vocab)  # three rows at a time
    seen = []
    found = evaluate.evaluate(model, texts, progress=lambda done, total: seen.append((done, total)))
    assert found.tokens == sum(one.tokens for one in apart) and found.documents == 3
    assert found.nll * found.tokens == pytest.approx(sum(one.nll * one.tokens for one in apart))
    assert seen == sorted(seen) and seen[-1] == (found.tokens, found.tokens)


def test_bytes_are_those_of_what_was_scored():
    assert [evaluate._first_bytes(piece) for piece in ("a", "ä", "\ufffd", "")] == [1, 2, 1, 0]


def test_what_cannot_be_scored_is_told():
    model = small_text_model()
    for documents in ([], [""], ["a"]):
        with pytest.raises(FormatError, match="no token"):
            evaluate.evaluate(model, documents)
    with pytest.raises(UsageError, match="window"):
        evaluate.evaluate(model, [TEXT], context=65)


def test_files_hold_one_text_or_one_a_line(tmp_path):
    def file(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    assert evaluate.documents(file("a.txt", b"\xef\xbb\xbfone\ntwo\n")) == ["one\ntwo\n"]
    lines = b"\n".join(json.dumps({"text": text, "id": 1}).encode() for text in ("one\u2028", "two")) + b"\n\n"
    assert evaluate.documents(file("a.jsonl", lines)) == ["one\u2028", "two"]
    for name, data, error, match in [
        ("b.txt", b"ok \xff", FormatError, "not UTF-8: byte 4 is 0xff"),
        ("b.jsonl", b'{"text": "a"}\n{"words": 1}', FormatError, "line 2 has no field"),
        ("c.jsonl", b'{"text": ', FormatError, "line 1 is not JSON"),
        ("a.csv", b"", UsageError, "read from"),
    ]:
        with pytest.raises(error, match=match):
            evaluate.documents(file(name, data))
    with pytest.raises(UsageError, match="cannot read"):
        evaluate.documents(tmp_path / "nowhere.txt")


def test_divergence_is_the_kl_of_the_laws_and_zero_to_itself():
    dense, other, text = small_text_model(), small_text_model(bos=False), TEXT[:40]
    assert evaluate.divergence(dense, dense, [text]) == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        other = type(dense)(dense.config).init(5).to(dense.dtype).eval()
        other.tokenizer = dense.tokenizer
        ids = torch.tensor([dense.tokenizer.encode(text)])
        p, q = (one(ids[:, :-1], logits=ALL).scores.log_softmax(-1) for one in (dense, other))
    wanted = float((p.exp() * (p - q)).sum(-1).mean())
    assert evaluate.divergence(other, dense, [text]) == pytest.approx(wanted, rel=1e-5)
    assert evaluate.divergence(other, dense, [text], context=8) != pytest.approx(wanted, rel=1e-5)
