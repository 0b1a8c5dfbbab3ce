"""Check lithe on a real checkpoint: logits parity with transformers, then doctor and bench for every draft that can run.

    make check-real MODEL=path/to/folder
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from lithe import registry
from lithe.model.decoder import ALL
from lithe.model.load import ZOO, load

PROMPTS = ZOO / "prompts" / "mixed.jsonl"
TOKENS = 256


def parity(folder: str) -> bool:
    """Logits of both libraries over the same text, in float32."""
    from transformers import AutoModelForCausalLM

    ours = load(folder, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    ids_BT = torch.tensor([ours.tokenizer.encode(text)[:TOKENS]])
    with torch.inference_mode():
        a, b = ours(ids_BT, logits=ALL).logits, theirs(ids_BT).logits
    worst, agree = float((a - b).abs().max()), float((a.argmax(-1) == b.argmax(-1)).float().mean())
    scale = float(b.abs().max())
    print(f"parity over {ids_BT.shape[1]} positions: largest difference {worst:.2e} (logits up to {scale:.1f}), "
          f"same argmax {agree:.1%}")
    return worst <= 1e-4 * max(1.0, scale) and agree == 1.0


def lithe(*words: str) -> bool:
    """Run a verb on the shipped prompts; True where it found nothing wrong."""
    command = [sys.executable, "-m", "lithe", *words, "--prompts", str(PROMPTS), "--max-tokens", "64"]
    return subprocess.run(command).returncode == 0


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: make check-real MODEL=folder", file=sys.stderr)
        return 2
    folder = sys.argv[1]
    good = parity(folder)
    drafts = [e.address for e in registry.entries("decode", "draft")
              if not e.card.trains and "second_model" not in e.card.needs]
    for draft in drafts:
        good &= lithe("doctor", folder, "--method", draft)
    good &= lithe("bench", folder, *(part for draft in drafts for part in ("--method", draft)))
    print("all good" if good else "something differs: see above")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
