"""A tuning from model and data to a folder: what `lithe.tune` and the verb of that name do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lithe import __version__, registry
from lithe.errors import UnsupportedError, UsageError
from lithe.model import checkpoint as folders
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.train import checkpoint, text
from lithe.train.guide import Guide
from lithe.train.session import Settings, settings_of, train
from lithe.train.team import Team, join
from lithe.train.track import tracker
from lithe.tune.rack import Adapter, Rack
from lithe.tune.targets import linears

RESULT, LOG = "train.json", "train.jsonl"  # beside the weights
NAME = "tuned"  # of the adapter, while it is trained


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is trained on what, and where to."""

    model: str
    data: str
    out: Path
    valid: str | None = None
    method: str | None = None
    context: int | None = None
    cut: bool = False
    learn_prompts: bool = False
    from_scratch: bool = False
    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    offline: bool = False
    log_to: str | None = None

    @property
    def run(self) -> Path:
        """Where checkpoints lie until the run is done."""
        return self.out.with_name(self.out.name + ".run")


def tune(model: str | Path, data: str | Path, out: str | Path, *, quiet: bool = False,
         **settings: Any) -> dict[str, Any] | None:
    """Tune a model on a data file and write a folder like any other; the model that was named stays as it is.

    model: a folder, `zoo:NAME` or a hub id. data: .jsonl or .jsonl.gz (see train/rows.py). settings: the fields of `Order` and
    of train.session's `Settings`, among them method="lora:rank=8" (else all weights), valid, steps, epochs, lr, seed. Returns
    the result as plain JSON. Interrupted, the same call goes on from the last checkpoint. Raises UsageError for settings that
    are unknown or cannot be.

    >>> lithe.tune("zoo:tiny", "rows.jsonl", "tuned", method="lora:rank=8", steps=100)  # doctest: +SKIP
    """
    known = {field.name for kind in (Order, Settings) for field in dataclasses.fields(kind)}
    if unknown := sorted(settings.keys() - known):
        raise UsageError(f"a tuning has no setting {unknown[0]!r}{registry.near(unknown[0], known)}")
    given = settings | {"model": str(model), "data": str(data), "out": Path(out)}
    return run(named(Order, given), named(Settings, given), quiet=quiet)


def named(kind: Any, given: dict[str, Any]) -> Any:
    """A dataclass made of the settings that its fields are named after."""
    return kind(**{field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given})


def run(order: Order, settings: Settings, *, quiet: bool = False, open: Callable[..., Decoder] = load) -> dict[str, Any] | None:
    """Train and write the folder. Returns the result as plain JSON, None in all processes of a team but the first."""
    if order.method and order.from_scratch:
        raise UsageError("--method tunes a trained model: leave --from-scratch out")
    with join(order.device) as team:
        model, adapter, objectives = prepare(order, settings, str(team.device), open)
        assert model.tokenizer is not None and model.folder is not None
        context = min(order.context or model.config.context, model.config.context)
        read = lambda file: text.read(file, model.tokenizer, context=context, cut=order.cut, everything=order.learn_prompts)
        examples, held_out = read(order.data), read(order.valid) if order.valid else None
        identity = {"parent": folders.fingerprint(model.folder), "data": examples.digest, "context": context,
                    "valid": held_out.digest if held_out else None, "method": exact(order.method),
                    "dtype": str(model.dtype), "from_scratch": order.from_scratch, "settings": settings_of(settings)}
        done = finished(order, identity)
        tell = teller(quiet or not team.first)
        if done is not None:
            tell(f"{order.out} is the result of this very command already")
            return done if team.first else None
        for line in notes(examples):
            tell(line)
        session = train(
            model, examples, settings, context=context, folder=order.run, valid=held_out, team=team, quiet=quiet, tell=tell,
            guide=Guide(adapter.method if adapter else None, adapter.parts if adapter else None, objectives),
            adapter=adapter is not None, fresh=order.from_scratch, identity=identity,
            trackers=tracker(order.log_to, order.run) if team.first else ())
        if not team.first:
            return None
        told = {"out": str(order.out), **session.json(), "examples": len(examples), "run": identity}
        write(order, settings, model, adapter, objectives, told, team, open)
        return told


def prepare(order: Order, settings: Settings, device: str,
            open: Callable[..., Decoder]) -> tuple[Decoder, Adapter | None, list[Any]]:
    """The model, the adapter on it where a method is to be trained, and the objectives. What trains requires gradients."""
    model = open(order.model, dtype=order.dtype, device=device, threads=order.threads, offline=order.offline, fast=False)
    if model.tokenizer is None:
        raise UnsupportedError(f"{order.model} has no tokenizer, which reading text needs")
    if order.from_scratch:
        fresh = Decoder(model.config).init(settings.seed).to(model.device, model.dtype)
        model.load_state_dict(fresh.state_dict())
    torch.manual_seed(settings.seed)
    builder, objectives = methods(order.method)
    adapter = None
    if builder is None:
        model.requires_grad_(True)
        if packed := next((site for site, layer in linears(model).items() if not layer.weight.requires_grad), None):
            raise UnsupportedError(f"{packed} is packed in whole numbers, which cannot be trained: name a --method that trains "
                                   "beside the weights, or tune the model that was packed")
    else:
        rack = Rack.of(model)
        rack.make(builder.exact, name=NAME, seed=settings.seed)
        adapter = rack.train(NAME)
        adapter.receipt["method"] = exact(order.method)
    made = [spec.entry.module.Method(spec.knobs, model) for spec in objectives]
    for objective in made:
        if hasattr(objective, "enter"):
            objective.enter(model)
    return model, adapter, made


def methods(text: str | None) -> tuple[registry.Spec | None, list[registry.Spec]]:
    """What is tuned, None for all weights, and the objectives that it is tuned for, of a text such as "NAME:knob=1 + NAME"."""
    builders: list[registry.Spec] = []
    objectives: list[registry.Spec] = []
    for spec in map(registry.parse, text.split(" + ") if text else ()):
        if spec.entry.room != "tune":
            raise UsageError(f"{spec.entry.address} is no tuning method; lithe methods tells which are")
        (builders if hasattr(spec.entry.module.Method, "build") else objectives).append(spec)
    if len(builders) > 1:
        raise UsageError(f"{builders[0]} and {builders[1]} both say what is tuned: name one of them")
    return builders[0] if builders else None, objectives


def exact(text: str | None) -> str | None:
    """The methods of a run, as they are kept: text that parses back to them."""
    builder, objectives = methods(text)
    return " + ".join(spec.exact for spec in (builder, *objectives) if spec is not None) or None


def finished(order: Order, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result of this very run where the folder holds it. Raises UsageError for a folder that holds anything else."""
    if not order.out.exists() or (order.out.is_dir() and not any(order.out.iterdir())):
        return None
    told = None
    if (order.out / RESULT).is_file():
        try:
            told = json.loads((order.out / RESULT).read_text(encoding="utf-8"))
        except ValueError:
            told = None
    if isinstance(told, dict) and told.get("run") == identity:
        shutil.rmtree(order.run, ignore_errors=True)
        return told
    path = checkpoint.latest(order.run)
    if path is not None and checkpoint.read_state(path).get("run") == identity:
        return None  # killed between writing the folder and its last file: it is written again
    raise UsageError(f"{order.out} exists and is not the result of this command; choose another folder")


def write(order: Order, settings: Settings, model: Decoder, adapter: Adapter | None, objectives: list[Any],
          told: dict[str, Any], team: Team, open: Callable[..., Decoder]) -> None:
    """The folder, with the run's result and log; the checkpoints are then gone."""
    if team.size > 1:  # this process holds its share only
        model, adapter, objectives = prepare(order, settings, str(team.device), open)
        path = checkpoint.latest(order.run)
        assert path is not None
        checkpoint.load_weights(path, model)
    for objective in objectives:
        if hasattr(objective, "leave"):
            objective.leave(model)
    receipt = {"verb": "tune", "method": told["run"]["method"] or "full", "seed": settings.seed, "lithe": __version__,
               "parent": told["run"]["parent"], "run": _short(told["run"]), "data": told["run"]["data"],
               "steps": told["steps"], "tokens": told["tokens"], "rate": told["rate"], "batch_tokens": told["batch_tokens"]}
    if adapter is None:
        model.receipts = [*model.receipts, receipt]
        folders.save(model, order.out, tokenizer_from=model.folder, overwrite=True)
    else:
        Guide(adapter.method, adapter.parts).finish()
        adapter.receipt["training"] = {key: receipt[key] for key in ("run", "data", "steps", "tokens", "rate", "batch_tokens")}
        Rack.of(model).save(NAME, order.out, overwrite=True)
    shutil.copyfile(order.run / "log.jsonl", order.out / LOG)
    aside = order.out / f".{RESULT}"
    aside.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    aside.replace(order.out / RESULT)
    shutil.rmtree(order.run)


def notes(examples: text.Examples) -> list[str]:
    """What a user should know of the data before it is trained on."""
    forms = ", ".join(f"{count:,} of {form}" for form, count in examples.forms.items())
    lines = [f"{len(examples):,} rows ({forms}), {int(examples.lengths.sum()):,} tokens, of which "
             f"{int(examples.counted.sum()):,} are learned"]
    if examples.cut:
        lines.append(f"{examples.cut:,} rows lost their end, beyond the context")
    if examples.unread:
        lines.append("fields not read: " + ", ".join(f"{name} ({count:,})" for name, count in sorted(examples.unread.items())))
    return lines


def teller(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))


def _short(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
