"""Profiles of datasets as files: made from what the stages counted, kept under a name that tells their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from features.config import describe
from features.errors import DataError
from features.files import atomic_file, json_text, read_json
from features.manifest import Manifest
from features.profile import FileRows, Profile, StreamsProfile
from features.vocabulary import VocabularySet

VERSION = 2
PROFILES = "profiles"  # folder of the store
_DIGEST_CHARS = 12


def build_profile(
    shards: Iterable[StreamsProfile],
    stats: dict[str, Any],
    manifest: Manifest,
    *,
    vocabularies: VocabularySet,
    timezone: str,
) -> Profile:
    """The profile of a dataset.

    Args:
        shards: profiles of all shards.
        stats: ingest's stats.json.
        manifest: of the dataset.
        vocabularies: of the dataset.
        timezone: of its days.
    """
    return Profile(
        version=VERSION,
        timezone=timezone,
        window=tuple(stats["window"]),
        streams=reduce(add, shards, StreamsProfile.empty(manifest.spec)),
        rows=stats["days"],
        files={file["file"]: FileRows(read=file["read"], quarantined=file["quarantined"]) for file in stats["files"]},
        vocabulary=vocabularies.sizes,
        actions=manifest.spec.actions,
        surfaces=tuple(vocabularies.field("surface").keys.to_pylist()),
        content_checksum=manifest.content_checksum,
    )


def profile_text(profile: Profile) -> str:
    """The bytes of a profile file."""
    return json_text(profile.model_dump(mode="json"))


def profile_name(profile: Profile) -> str:
    """Last day and digest of the content, so that a path in params.yaml pins what is compared with."""
    digest = hashlib.sha256(profile_text(profile).encode()).hexdigest()
    return f"{profile.window[1]}-{digest[:_DIGEST_CHARS]}.json"


def keep_profile(profile: Profile, folder: Path) -> Path:
    """Writes a profile under its own name, where the next night finds it."""
    path = folder / profile_name(profile)
    if not path.exists():
        with atomic_file(path) as temporary:
            temporary.write_text(profile_text(profile), encoding="utf-8")
    return path


def load_baseline(path: Path) -> Profile:
    """A kept profile.

    Raises:
        DataError: it is missing, of another version, or not what its name says.
    """
    document = read_json(path)
    found = document.get("version") if isinstance(document, dict) else None
    if found != VERSION:
        raise DataError(
            f"{path}: a profile of version {found!r}, this code reads {VERSION}; keep a new one (validate.baseline)"
        )
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        raise DataError(describe(error, path, "profile")) from None
    if path.name != profile_name(profile):
        raise DataError(f"{path}: its content is that of {profile_name(profile)}; restore it (validate.baseline)")
    return profile
