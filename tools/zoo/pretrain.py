"""Train one model of the zoo. The same command resumes an interrupted run.

python tools/zoo/pretrain.py tiny [--until HH:MM | --seconds N] [--go-on] [--mirror FOLDER]

--go-on starts the next reading (see READINGS) from the shipped weights: warm-up, flat part and decay anew.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import history
import torch
from export import PACKAGE
from models import MODELS, READINGS

from lithe.errors import LitheError
from lithe.model.checkpoint import load as load_weights
from lithe.model.decoder import Decoder
from lithe.train import checkpoint
from lithe.train.checkpoint import KEPT
from lithe.train.loop import fit
from lithe.train.loss import next_token


def mirror(folder: Path, copy: Path | None):
    """Keep a second copy of the run's folder, newest checkpoints only."""

    def on_save(path: Path) -> None:
        if copy is None:
            return
        aside = copy / f".{path.name}"
        shutil.copytree(path, aside, dirs_exist_ok=True)
        shutil.rmtree(copy / path.name, ignore_errors=True)
        aside.rename(copy / path.name)
        shutil.copy(folder / "log.jsonl", copy / "log.jsonl")
        for old in sorted(copy.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)

    return on_save


def seconds_until(clock: str) -> float:
    hour, minute = map(int, clock.split(":"))
    now = datetime.now(UTC)
    return (now.replace(hour=hour, minute=minute, second=0) - now).total_seconds()


def trained(folder: Path) -> float:
    """Seconds that the parts of an interrupted run have had."""
    path = checkpoint.latest(folder)
    return checkpoint.read_state(path)["seconds"] if path else 0.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"), help="where tokens are and the run goes")
    parser.add_argument("--seconds", type=float, help="training time, all resumed parts together")
    parser.add_argument("--until", help="HH:MM (UTC) at which the decay must be done, instead of --seconds")
    parser.add_argument("--go-on", action="store_true", help="start from the shipped weights")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="processor threads")
    parser.add_argument("--mirror", type=Path, help="a second place for the checkpoints")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    model = MODELS[options.model]
    folder = options.zoo / model.name
    seconds = options.seconds or model.seconds
    if options.until:
        seconds = seconds_until(options.until) + trained(folder)
    torch.set_num_threads(options.threads)
    decoder = Decoder(model.config).init(model.seed)
    if options.go_on and checkpoint.latest(folder) is None:
        had = len(history.runs(PACKAGE / model.name))
        if not 0 < had < len(READINGS):
            raise SystemExit(f"{model.name} has had {had} readings of the {len(READINGS)} in models.py: none to go on with")
        decoder = load_weights(PACKAGE / model.name, dtype=torch.float32)
        history.write(folder, history.runs(PACKAGE / model.name))
    reading = READINGS[len(history.runs(folder))]
    try:
        fit(decoder, model.batches(options.zoo / "tokens", reading), next_token, model.plan(reading, seconds=seconds),
            folder=folder, on_save=mirror(folder, options.mirror))
    except LitheError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
