"""Checkpoints: directories of safetensors and a JSON header that appear whole, resume exactly, hold nothing pickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.config import Closed
from features.errors import DataError
from features.files import atomic_directory, read_json, write_json
from features.spec import FeatureSpec
from model.config import ModelConfig

CHECKPOINT_VERSION = 1
_HEADER = "checkpoint.json"
_INDIFFERENT = {("model", "impl"), ("model", "compute"), ("model", "gemm")}
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
    """A checkpoint in memory: `tensors` by group (`dense`, `tables`, `optimizer`, `rng`, `losses`), then by name."""

    header: Header
    tensors: Mapping[str, Tensors]


def save_checkpoint(target: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint that appears whole."""
    with atomic_directory(target) as directory:
        write_checkpoint(directory, checkpoint)


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint's files into an existing directory; equal checkpoints give equal bytes."""
    files = {}
    for group, tensors in checkpoint.tensors.items():
        path = directory / f"{group}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        # safetensors makes files that only their owner may read
        path.chmod(0o644)
        files[path.name] = _record(path).model_dump()
    write_json(directory / _HEADER, {"header": checkpoint.header.model_dump(mode="json"), "files": files})


def load_header(directory: Path) -> Header:
    """Reads a checkpoint's header only.

    Raises:
        DataError: the header is missing, damaged or of another version.
    """
    return _read_header(directory)[0]


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
    return Checkpoint(header, tensors)


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
            if saved != value and (section, key) not in _INDIFFERENT:
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
