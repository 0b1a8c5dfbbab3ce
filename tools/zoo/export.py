"""Put a trained model into the package: bf16 weights and the tokenizer, in the Hugging Face layout.

python tools/zoo/export.py tiny [--zoo .lithe/zoo] [--to lithe/zoo]: takes the newest checkpoint of the run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import history
import torch
from models import MODELS
from tokenizer import END, SPECIALS

from lithe.model.checkpoint import save
from lithe.model.decoder import Decoder
from lithe.train import checkpoint

END_ID = SPECIALS.index(END)
PACKAGE = Path(__file__).resolve().parents[2] / "lithe" / "zoo"


def newest(name: str, zoo: Path) -> tuple[Decoder, dict]:
    """The decoder of a run's newest checkpoint, and where the run was."""
    model = MODELS[name]
    path = checkpoint.latest(zoo / name)
    if path is None:
        raise SystemExit(f"no checkpoint in {zoo / name}: run tools/zoo/pretrain.py {name} first")
    decoder = Decoder(model.config)
    checkpoint.load_weights(path, decoder)
    return decoder.eval(), checkpoint.read_state(path)


def export(name: str, zoo: Path, target: Path) -> Path:
    decoder, state = newest(name, zoo)
    companions = zoo / "companions"  # what lies beside the weights
    companions.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo / "tokenizer" / file, companions / file)
    for file in ("config.json", "generation_config.json"):
        (companions / file).write_text(json.dumps({"eos_token_id": END_ID, "pad_token_id": END_ID}, indent=2) + "\n")
    folder = save(decoder, target / name, dtype=torch.bfloat16, tokenizer_from=companions, overwrite=True)
    history.write(folder, [*history.runs(zoo / name), history.entry(state)])
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone; the package is for all
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"))
    parser.add_argument("--to", type=Path, default=PACKAGE)
    options = parser.parse_args()
    print(export(options.model, options.zoo, options.to))
