"""Doing a compression again from what its folder says of it, and holding the result against the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lithe.compress import calibrate
from lithe.compress.api import compress
from lithe.compress.run import Tell
from lithe.errors import FormatError, UsageError
from lithe.model import checkpoint
from lithe.model.decoder import Decoder
from lithe.model.load import load, resolve

TOLERANCE = 1e-3  # of a layer's norm, on other versions or another machine


@dataclass(frozen=True, kw_only=True)
class Replay:
    """was, now: hashes of folders. worst: the largest difference of a layer's weights as a share of their norm; layer: which.
    changed: what of the versions and the machine is another than it was."""

    was: str
    now: str
    worst: float
    layer: str
    changed: dict[str, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """Bit for bit."""
        return self.was == self.now

    @property
    def good(self) -> bool:
        """Bit for bit where nothing around it changed, within the tolerance otherwise."""
        return self.same or (bool(self.changed) and self.worst <= TOLERANCE)


def replay(folder: str | Path, *, model: str = "", calibration: str = "", offline: bool = False,
           tell: Tell | None = None) -> Replay:
    """Compress again as a folder's receipts say. model, calibration: where these now lie, if not where they did.

    Raises FormatError for a folder that no compression made, UsageError where the model or the text is not what it was.
    """
    folder = resolve(folder, offline=True)
    receipts = _receipts(folder)
    first = receipts[0]
    text = next((receipt["calibration"] for receipt in receipts if receipt["calibration"]), None)
    dense = load(model or first["model"], fast=False, offline=offline)
    assert dense.folder is not None
    if checkpoint.fingerprint(dense.folder) != first["parent"]:
        raise UsageError(f"{dense.source} is not the model that {folder} was made from: its weights differ")
    read = None
    if text is not None:
        file = calibration or text["file"]
        read = calibrate.read(file, dense, length=text["length"], tokens=text["tokens"], seed=first["seed"])
        if read.digest != text["digest"]:
            raise UsageError(f"{file} is not the calibration text that {folder} was made with")
    with TemporaryDirectory() as place:
        compress(dense, [receipt["knobs"]["exact"] for receipt in receipts], calibration=read, out=Path(place) / "m",
                 seed=first["seed"], tell=tell)
        was, now = (load(found, fast=False, offline=True) for found in (folder, Path(place) / "m"))
        worst, layer = max(_differences(was, now))
        hashes = [checkpoint.fingerprint(found) for found in (folder, Path(place) / "m")]
        here = now.receipts[-1]["made"]
    changed = {key: (first["made"].get(key), here[key]) for key in here if first["made"].get(key) != here[key]}
    return Replay(was=hashes[0], now=hashes[1], worst=worst, layer=layer, changed=changed)


def _receipts(folder: Path) -> list[dict[str, Any]]:
    """Of the steps that made it, in order."""
    wanted = {"method": str, "knobs": dict, "seed": int, "parent": str, "calibration": dict | None, "model": str, "made": dict}
    text = {"digest": str, "tokens": int, "length": int, "file": str}
    found = checkpoint.receipts(folder)
    mine = [receipt for receipt in found if isinstance(receipt, dict) and "made" in receipt and "allocation" in receipt]
    fits = lambda held, kinds: all(isinstance(held.get(key), kind) for key, kind in kinds.items())  # type: ignore[arg-type]
    if not mine or not all(fits(receipt, wanted) and isinstance(receipt["knobs"].get("exact"), str)
                           and (receipt["calibration"] is None or fits(receipt["calibration"], text)) for receipt in mine):
        raise FormatError(f"{folder}: lithe.json tells of no compression that could be done again")
    return [receipt for receipt in mine if receipt["parent"] == mine[-1]["parent"]]


def _differences(was: Decoder, now: Decoder) -> list[tuple[float, str]]:
    """How far the weights of each module are apart, as a share of their norm."""
    found = [(float("inf"), "its shape")] if was.config != now.config else []
    modules = dict(now.named_modules())
    for name, one in was.named_modules():
        a, b = getattr(one, "weight", None), getattr(modules.get(name), "weight", None)
        if a is not None and b is not None and a.shape == b.shape:
            wide, other = a.detach().double(), b.detach().double()
            found.append((float((wide - other).norm() / wide.norm().clamp(min=1e-30)), name))
    return found
