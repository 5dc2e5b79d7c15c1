"""Which vocabulary another one was appended to."""

from __future__ import annotations

from pathlib import Path

from features.config import FeaturesConfig
from features.errors import DataError
from features.files import read_json
from features.vocabulary import VOCABULARY_FILE


def check_base(vocab: Path, features: FeaturesConfig) -> None:
    """Refuses a vocabulary that was appended to another one than `features.vocabulary.base`, whose path may hold anew.

    Raises:
        DataError: names both.
    """
    base = features.vocabulary.base
    found = read_json(vocab / VOCABULARY_FILE).get("base")
    expected = None if base is None else read_json(base / VOCABULARY_FILE).get("hash")
    if found != expected:
        was, now = ("none" if text is None else text[:12] for text in (found, expected))
        raise DataError(
            f"{vocab}: was appended to vocabulary {was}, features.vocabulary.base is {now}; run the vocab stage again"
        )
