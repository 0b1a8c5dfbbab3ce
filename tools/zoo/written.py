"""Text that the target writes, and its states while it does: one lesson for all heads, made once.

Half of the rows go on from pieces of free text, half the target begins itself. What comes first is drawn at temperature 1, so
that rows differ; the rest nearer to the greedy text that heads will be asked to foretell. Axes: B rows, T tokens, C width, V
vocabulary.
"""

from pathlib import Path

import numpy as np
import torch

from lithe.model.cache import PlainCache
from lithe.train.teacher import Store, Windows

LENGTH, BATCH = 256, 128  # tokens of a row, rows written side by side
GIVEN, COLD = 32, 0.6  # tokens of a row's beginning, temperature behind it
OPENINGS = ("", "", "<|user|>\n", "Once upon a time")  # how the target's own rows begin, behind <|endoftext|>


def lesson(model, text: np.ndarray, rows: int, folder: Path) -> np.ndarray:
    """At least so many rows, one after the other; folder keeps them and the states that a Store there reads. Resumes."""
    batches = -(-rows // BATCH)
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(batches):
        if not (folder / f"{at}.npz").is_file():
            ids_BT, states_BTC = write(model, text, seed=at)
            part = folder / f"{at}.part.npz"
            np.savez(part, ids=ids_BT, states=states_BTC)
            part.rename(folder / f"{at}.npz")
            print(f"written {(at + 1) * BATCH * LENGTH:,} of {batches * BATCH * LENGTH:,} tokens", flush=True)
    parts = [np.load(folder / f"{at}.npz") for at in range(batches)]
    ids = np.concatenate([part["ids"].ravel() for part in parts])
    store = Store(states(folder, rows), Windows(ids=ids, rows=1, length=LENGTH), ["final"], model.config.width)
    for at, part in enumerate(parts):
        numbers = list(range(at * BATCH, (at + 1) * BATCH))
        if store.read(numbers) is None:
            store.write(numbers, {"final": torch.from_numpy(part["states"]).view(torch.bfloat16)})
    return ids


def states(folder: Path, rows: int) -> Path:
    """Where the target's states on so many rows are."""
    return folder / f"states-{-(-rows // BATCH)}"


@torch.inference_mode()
def write(model, text: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of rows, and the target's last states at each of their tokens, bfloat16 as int16."""
    dice, coin = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    begun = [begin(model.tokenizer, text, dice, own=b % 2 == 1) for b in range(BATCH)]
    ids_BT = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    states_BTC = torch.zeros(BATCH, LENGTH, model.config.width, dtype=torch.bfloat16)
    cache = PlainCache.like(model, batch=BATCH, capacity=LENGTH)
    for t in range(LENGTH):
        for b, ids in enumerate(begun):
            if t < len(ids):
                ids_BT[b, t] = ids[t]
        out = model(ids_BT[:, t : t + 1], cache=cache, taps=("final",))
        if t + 1 < LENGTH:
            law_BV = (out.logits[:, -1] / (1.0 if t + 1 < GIVEN else COLD)).softmax(-1)
            ids_BT[:, t + 1] = torch.multinomial(law_BV, 1, generator=coin)[:, 0]
        states_BTC[:, t] = out.taps["final"][:, -1].to(torch.bfloat16)
        cache.commit([1] * BATCH)
    return ids_BT.int().numpy(), states_BTC.view(torch.int16).numpy()


def begin(tokenizer, text: np.ndarray, dice: np.random.Generator, own: bool) -> list[int]:
    if own:
        opening = OPENINGS[dice.integers(len(OPENINGS))]
        return [tokenizer.backend.token_to_id("<|endoftext|>"), *tokenizer.backend.encode(opening).ids]
    at = int(dice.integers(len(text) - GIVEN))
    return text[at : at + GIVEN].tolist()
