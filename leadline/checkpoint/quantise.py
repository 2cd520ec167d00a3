"""`leadline quantize`: a folder of the hub's into a quantised one, measured against what it was made from.

Invariant: the new folder appears whole, checksummed and within the limits of `leadline.checkpoint.quality`, or not at
all; beside it no more than one layer of the original is ever in memory.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from leadline.checkpoint.calibrate import TOKENS, Calibration
from leadline.checkpoint.folder import weight_entries
from leadline.checkpoint.machine import check_space
from leadline.checkpoint.pack import Damage, Packer, active_bits, bits_per_weight, read_tensors
from leadline.checkpoint.plan import choose_dtype
from leadline.checkpoint.progress import progress_bar
from leadline.checkpoint.quality import (
    MAX_KL,
    MIN_AGREEMENT,
    Named,
    Quality,
    Source,
    compare,
    folder_source,
    package_text,
    packed_source,
    sequences_of,
)
from leadline.checkpoint.quantised import (
    FILE,
    Manifest,
    checksums,
    config_of,
    create_file,
    is_quantised,
    model_digest,
    views,
    write_manifest,
)
from leadline.checkpoint.recipes import Recipe
from leadline.checkpoint.regions import Region, Weights, regions, total_bytes
from leadline.checkpoint.save import COPIED, replacing
from leadline.errors import CheckpointError
from leadline.model.config import ModelConfig
from leadline.ops.cpu.memory import allocate
from leadline.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Options:
    """`text` is what the result is measured on, `calibration` what the scales are chosen for; None is the package's own
    source, and no calibration. `check` False leaves the measurement out, `force` keeps a result that fails it."""

    recipe: Recipe = "int4"
    text: str | None = None
    calibration: str | None = None
    search: bool = True
    check: bool = True
    force: bool = False
    progress: bool | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a model. `tensors`: by region format, bits a weight and the error relative to the weights."""

    recipe: Recipe
    bytes: int
    bits_per_weight: float
    active_bits: float
    tensors: Mapping[str, Mapping[str, Any]]
    quality: Quality | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@torch.inference_mode(False)  # calibration takes gradients, whoever calls
def quantise_folder(folder: Path, target: Path, options: Options = Options()) -> Report:
    """Raises `CheckpointError` for what is no model, is quantised already, or is too far off; `ResourceError` for lack
    of disk."""
    if is_quantised(folder):
        raise CheckpointError(f"{folder} is quantised already; start from the original weights")
    _keep_originals(target)
    config = ModelConfig.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    entries = weight_entries(folder, config)
    wanted = regions(config, options.recipe)
    with replacing(target) as new:
        check_space(target, total_bytes(wanted))
        block = create_file(new / FILE, wanted)
        dtype = getattr(torch, choose_dtype(config, "cpu"))
        packer = Packer(config, options.recipe, block, search=options.search)
        size = sum(entry.size for entry in entries)
        with progress_bar(f"quantising {folder.name}", size, options.progress) as advance:
            if options.calibration is None:
                _pack_all(packer, read_tensors(entries), advance)
            else:
                sequences = sequences_of(tokenizer, options.calibration, TOKENS)
                _pack_calibrated(packer, folder_source(entries), sequences, dtype, advance)
        quality = None
        if options.check:
            sequences = sequences_of(tokenizer, package_text() if options.text is None else options.text)
            changed = packed_source(views(block, wanted), config)
            quality = compare(config, folder_source(entries), changed, sequences, dtype)
        report = make_report(config, options.recipe, wanted, packer.damage, quality)
        _refuse(report, options.force)
        write_folder(folder, new, config, report, checksums(block, wanted))
    return report


def _keep_originals(target: Path) -> None:
    """A quantised folder may be made anew; original weights may be the only ones, which fewer bits do not give back."""
    if target.is_dir() and not is_quantised(target) and any(target.glob("*.safetensors")):
        raise CheckpointError(f"{target} holds original weights; name a new folder for those in fewer bits")


def pack_folder(folder: Path, config: ModelConfig, recipe: Recipe, *, progress: bool | None = None) -> Weights:
    """The folder's weights quantised in memory, for a run that keeps nothing."""
    entries = weight_entries(folder, config)
    wanted = regions(config, recipe)
    block = allocate(total_bytes(wanted))
    packer = Packer(config, recipe, block)
    with progress_bar(f"quantising {folder.name}", sum(entry.size for entry in entries), progress) as advance:
        _pack_all(packer, read_tensors(entries), advance)
    return views(block, wanted)


def _pack_all(packer: Packer, tensors: Named, advance: Callable[[int], None]) -> None:
    for name, weight in tensors:
        packer.add(name, weight)
        advance(weight.nbytes)


def _pack_calibrated(
    packer: Packer,
    source: Source,
    sequences: Sequence[Sequence[int]],
    dtype: torch.dtype,
    advance: Callable[[int], None],
) -> None:
    """Layer by layer, each for what the layers before it, quantised, make of the text."""
    four_bits = [name for name, region in packer.regions.items() if region.layout and region.layout.format == "int4"]
    calibration = Calibration(packer.config, source, sequences, dtype, four_bits)
    quantised = packed_source(views(packer.block, packer.regions), packer.config)
    for index in range(packer.config.num_hidden_layers):
        packer.moments = calibration.layer(index)
        _pack_all(packer, source.layer(index), advance)
        calibration.step(index, quantised)
    packer.moments = calibration.head()
    _pack_all(packer, source.top(), advance)


def make_report(
    config: ModelConfig,
    recipe: Recipe,
    wanted: Mapping[str, Region],
    damage: Mapping[str, Damage],
    quality: Quality | None,
) -> Report:
    tensors = {
        name: {
            "format": region.layout.format,
            "bits": round(region.layout.bits_per_weight, 3),
            "error": round(damage[name].relative, 6) if name in damage else 0.0,
        }
        for name, region in wanted.items()
        if region.layout is not None
    }
    bits, active = bits_per_weight(wanted), active_bits(wanted, config)
    return Report(recipe, total_bytes(wanted), bits, active, tensors, quality)


def _refuse(report: Report, force: bool) -> None:
    quality = report.quality
    if quality is None or quality.good or force:
        return
    raise CheckpointError(
        f"the {report.recipe} model is too far from the original: KL {quality.kl:.4f} (at most {MAX_KL}), the same "
        f"likeliest token in {quality.agreement:.2%} of {quality.tokens:,} places (at least {MIN_AGREEMENT:.0%}); try "
        f"another recipe or --calibrate, or --force keeps it. Nothing was written"
    )


def write_folder(source: Path, target: Path, config: ModelConfig, report: Report, found: Mapping[str, str]) -> None:
    """Everything but the weights."""
    text = json.dumps(config_of(config, report.recipe), indent=2)
    (target / "config.json").write_text(f"{text}\n", encoding="utf-8")
    for name in COPIED:
        if source != target and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    manifest = Manifest(report.recipe, model_digest(config), found, report.bits_per_weight, report.to_dict())
    write_manifest(target, manifest)
