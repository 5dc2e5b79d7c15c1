"""Checkpoints: directories of safetensors and a JSON header that appear whole, resume exactly, hold nothing pickled.

Each rank of a run writes the rows of the tables that it holds into a file of its own; a checkpoint is read as if one
rank had written it, by any number of ranks. All ranks need the directory to be the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.config import Closed
from features.errors import DataError
from features.files import atomic_directory, json_text, read_json, write_json
from features.spec import FeatureSpec
from model.config import ModelConfig
from model.training.distributed import World

CHECKPOINT_VERSION = 2
_HEADER = "checkpoint.json"
# Groups of which each rank has every num_ranks-th row, and those that each rank has for itself.
_ROWS, _OWN = ("tables", "adagrad"), ("rng",)
INDIFFERENT = {("model", "impl"), ("model", "compute"), ("model", "gemm")}
Tensors = Mapping[str, Tensor]


class FileRecord(Closed):
    """What a file must look like."""

    num_bytes: int
    sha256: str


class Header(Closed):
    """Everything of a checkpoint that is not a tensor.

    run_hash: of what decides the weights: dataset content, sections model and train. A run resumes only its own.
    step: optimizer steps taken.
    epoch, position: where the reader stands.
    num_requests, num_candidates, num_tokens: processed so far.
    """

    version: int = CHECKPOINT_VERSION
    run_hash: str
    step: int
    epoch: int
    position: int
    num_requests: int
    num_candidates: int
    num_tokens: int
    seed: int
    spec: FeatureSpec
    model: ModelConfig
    vocabulary_hash: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: `tensors` by group, then by name.

    dense, tables: weights. optimizer, adagrad: what the optimizers of the two remember. rng: generators. losses: of
    every step. sampling, early_stop: where these stand, if they are on. Of a run of several ranks, what `capture` gives
    has this rank's rows of tables and adagrad; what `load_checkpoint` gives has all rows, and `rng` under `rng_group`.
    """

    header: Header
    tensors: Mapping[str, Tensors]


def rng_group(world: World) -> str:
    """The group of a rank's generators in a loaded checkpoint of as many ranks."""
    return f"rng{_suffix(world)}"


def _suffix(world: World) -> str:
    return "" if world.size == 1 else f"-{world.rank}-of-{world.size}"


@contextmanager
def shared_directory(target: Path, world: World) -> Iterator[Path]:
    """atomic_directory for several ranks: the first makes it, all write into it, it appears when all have done so."""
    if not world.is_first:
        yield world.from_first(Path())
        world.barrier()
    else:
        with atomic_directory(target) as directory:
            world.from_first(directory)
            yield directory
            world.barrier()
    world.barrier()


def save_checkpoint(target: Path, checkpoint: Checkpoint, world: World | None = None) -> None:
    """Writes a checkpoint that appears whole; called by all ranks alike."""
    world = world or World()
    with shared_directory(target, world) as directory:
        write_checkpoint(directory, checkpoint, world)


def write_checkpoint(directory: Path, checkpoint: Checkpoint, world: World | None = None) -> None:
    """Writes a checkpoint's files into an existing directory; equal checkpoints give equal bytes."""
    world = world or World()
    files = {}
    for group, tensors in checkpoint.tensors.items():
        if group in (*_ROWS, *_OWN):
            path = directory / f"{group}{_suffix(world)}.safetensors"
        elif world.is_first:
            path = directory / f"{group}.safetensors"
        else:
            continue
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        # safetensors makes files that only their owner may read
        path.chmod(0o644)
        files[path.name] = _record(path).model_dump()
    all_files = {name: record for part in world.gather_objects(files) for name, record in part.items()}
    if world.is_first:
        write_json(directory / _HEADER, {"header": checkpoint.header.model_dump(mode="json"), "files": all_files})


def load_header(directory: Path) -> Header:
    """Reads a checkpoint's header only.

    Raises:
        DataError: the header is missing, damaged or of another version.
    """
    return _read_header(directory)[0]


def checkpoint_digest(directory: Path) -> str:
    """Hex digest of a checkpoint's content.

    Raises:
        DataError: the header is missing or damaged.
    """
    header, files = _read_header(directory)
    records = {name: record.sha256 for name, record in files.items()}
    return hashlib.sha256(json_text([header.model_dump(mode="json"), records]).encode()).hexdigest()


def load_checkpoint(directory: Path) -> Checkpoint:
    """Reads a checkpoint whole, on the CPU.

    Raises:
        DataError: a file is missing or damaged; names it.
    """
    header, files = _read_header(directory)
    tensors = {}
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path}: no such file; the checkpoint is incomplete, train again")
        if _record(path) != expected:
            raise DataError(f"{path}: checksum differs from {_HEADER}; the checkpoint is damaged, train again")
        try:
            tensors[path.stem] = load_file(path)
        except SafetensorError as error:
            raise DataError(f"{path}: not a safetensors file: {error}") from None
    return Checkpoint(header, _assembled(tensors))


def _assembled(tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Joins the ranks' rows: row r of a table is in part r % ranks."""
    for group in _ROWS:
        names = sorted(
            (name for name in tensors if name.startswith(f"{group}-")), key=lambda name: int(name.split("-")[1])
        )
        parts = [tensors.pop(name) for name in names]
        if parts:
            tensors[group] = {name: _interleaved([part[name] for part in parts]) for name in parts[0]}
    return tensors


def _interleaved(parts: list[Tensor]) -> Tensor:
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


def _read_header(directory: Path) -> tuple[Header, dict[str, FileRecord]]:
    path = directory / _HEADER
    document = read_json(path)
    try:
        found = document["header"]["version"]
        if found != CHECKPOINT_VERSION:
            raise DataError(f"{path}: checkpoint version {found}, this code reads version {CHECKPOINT_VERSION}")
        header = Header.model_validate(document["header"])
        return header, {name: FileRecord.model_validate(record) for name, record in document["files"].items()}
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a checkpoint header: {error}") from None


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(num_bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def check_compatible(
    header: Header, config: ModelConfig, spec: FeatureSpec, *, vocabulary_hash: str, source: Path
) -> None:
    """Refuses a checkpoint whose weights mean something else than this dataset and configuration do.

    `model.impl`, `compute` and `gemm` may differ: they choose code and rounding, not the function that is computed.

    Raises:
        DataError: names the checkpoint and the first difference.
    """
    if header.vocabulary_hash != vocabulary_hash:
        raise DataError(
            f"{source}: trained with vocabulary {header.vocabulary_hash[:12]}, "
            f"the dataset has {vocabulary_hash[:12]}; train again"
        )
    for section, ours, theirs in (("features", spec, header.spec), ("model", config, header.model)):
        for key, value in ours.model_dump(mode="json").items():
            saved = theirs.model_dump(mode="json")[key]
            if saved != value and (section, key) not in INDIFFERENT:
                raise DataError(f"{source}: trained with {section}.{key} = {saved}, now it is {value}; train again")


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: Tensors, device: torch.device) -> None:
    """Sets the generators to saved states."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
