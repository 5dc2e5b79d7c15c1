"""The store of trained models, addressed by content, and the one pointer that says which of them is the champion."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from features.config import Closed, describe
from features.errors import DataError
from features.files import atomic_directory, exclusive_lock, read_json, write_json

Kind = TypeVar("Kind", bound=Closed)
POINTER = "champion.json"
_ID_LENGTH = 16
_CONTENT = "content.json"
_LINEAGE = "lineage.json"


class Promotion(Closed):
    """Who became the champion, for which data date, when, and by whose decision."""

    model: str
    date: datetime.date
    promoted_at: datetime.datetime
    by: str


class Champion(Closed):
    """models/champion.json: the last entry of `reign` is the champion, those before it are its predecessors."""

    reign: tuple[Promotion, ...]


class StoredModel(Closed):
    """A model of the store: id, the data date that made it first, the digest of each file and their size."""

    model: str
    date: datetime.date
    files: dict[str, str]
    num_bytes: int


class ModelStore:
    """`models/` of a repository: `store/<id>/{ranker,vocab}` and `champion.json`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, model: str) -> Path:
        """Folder of a model."""
        return self._folder / "store" / model

    def add(self, ranker: Path, vocab: Path, date: datetime.date) -> StoredModel:
        """Copies a model and its vocabulary into the store; equal content is one model.

        Args:
            ranker: a checkpoint.
            vocab: the vocabulary that it was trained with.
            date: its data date.
        """
        sources = {
            f"{name}/{path.name}": path
            for name, folder in (("ranker", ranker), ("vocab", vocab))
            for path in sorted(folder.iterdir())
            if path.is_file()
        }
        files = {name: _digest(path) for name, path in sources.items()}
        model = hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in files.items()).encode()).hexdigest()
        model = model[:_ID_LENGTH]
        if (self.path(model) / _CONTENT).is_file():
            return self.get(model)
        stored = StoredModel(
            model=model, date=date, files=files, num_bytes=sum(path.stat().st_size for path in sources.values())
        )
        with atomic_directory(self.path(model)) as target:
            for name, source in sources.items():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target / name)
            write_json(target / _CONTENT, stored.model_dump(mode="json"))
        return stored

    def get(self, model: str) -> StoredModel:
        """A model of the store; a unique beginning of its id will do.

        Raises:
            DataError: there is none, or several begin so.
        """
        found = [stored for stored in self.all() if stored.model.startswith(model)]
        if len(found) != 1:
            problem = "no such model" if not found else f"{len(found)} models begin so"
            raise DataError(f"{self._folder}: {model}: {problem}; `hstu2 models list` shows them")
        return found[0]

    def verify(self, model: str) -> None:
        """Reads every file of a model.

        Raises:
            DataError: a file is missing or differs from what was stored.
        """
        stored = self.get(model)
        for name, expected in stored.files.items():
            path = self.path(stored.model) / name
            if not path.is_file() or _digest(path) != expected:
                raise DataError(
                    f"{path}: missing or damaged; `git checkout TAG && dvc pull` brings a night's model back"
                )

    def all(self) -> list[StoredModel]:
        """The models of the store, oldest first."""
        paths = (self._folder / "store").glob(f"*/{_CONTENT}")
        return sorted(
            (_load(path, StoredModel) for path in paths if not path.parent.name.startswith(".")),
            key=lambda stored: (stored.date, stored.model),
        )

    def reign(self) -> tuple[Promotion, ...]:
        """All promotions whose champions were not rolled back, the present champion last."""
        path = self._folder / POINTER
        return _load(path, Champion).reign if path.is_file() else ()

    def champion(self) -> Promotion | None:
        """The present champion."""
        return next(reversed(self.reign()), None)

    def promote(self, model: str, date: datetime.date, *, by: str) -> Promotion:
        """Makes a stored model the champion: one rename of one file. Twice the same is once.

        Raises:
            DataError: it is not in the store, or damaged.
        """
        stored = self.get(model)
        self.verify(stored.model)
        with self._writing():
            reign = self.reign()
            if reign and (reign[-1].model, reign[-1].date) == (stored.model, date):
                return reign[-1]
            now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
            promotion = Promotion(model=stored.model, date=date, promoted_at=now, by=by)
            self._point(promotion, (*reign, promotion), ever=promotion.model)
        return promotion

    def rollback(self) -> Promotion:
        """Makes the predecessor the champion again.

        Raises:
            DataError: there is none, or it is damaged.
        """
        with self._writing():
            reign = self.reign()
            if len(reign) < 2:
                raise DataError(f"{self._folder / POINTER}: there is no earlier champion to go back to")
            self.verify(reign[-2].model)
            self._point(reign[-2], reign[:-1], ever=reign[-2].model)
        return reign[-2]

    def promoted(self) -> set[str]:
        """Models that ever were champion, those rolled back included."""
        path = self._folder / _LINEAGE
        known = set(read_json(path)) if path.is_file() else set()
        return known | {promotion.model for promotion in self.reign()}

    def prune(self, before: datetime.date, keep: Collection[str] = ()) -> list[str]:
        """Removes models of data dates before `before` that never were champion; returns their ids."""
        kept = self.promoted() | set(keep)
        removed = [stored.model for stored in self.all() if stored.date < before and stored.model not in kept]
        for model in removed:
            shutil.rmtree(self.path(model))
        return removed

    def _point(self, promotion: Promotion, reign: tuple[Promotion, ...], *, ever: str) -> None:
        # What was champion once is never pruned, so it is noted before the pointer moves.
        write_json(self._folder / _LINEAGE, sorted(self.promoted() | {ever}))
        write_json(self._folder / POINTER, Champion(reign=reign).model_dump(mode="json"))

    def _writing(self) -> AbstractContextManager[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        return exclusive_lock(
            self._folder / f".{POINTER}.lock", f"{self._folder / POINTER}: process {{holder}} is writing it; try again"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(describe(error, path, path.stem)) from None
