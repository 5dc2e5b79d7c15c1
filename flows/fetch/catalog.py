"""The published datasets that can be fetched, and where from."""

from __future__ import annotations

from dataclasses import dataclass

_ZENODO = "https://zenodo.org/records/10439422/files"
_ZENODO_RECORD = "https://zenodo.org/api/records/10439422"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_HUGGING_FACE = "https://huggingface.co/datasets/yandex/yambda/resolve/main/flat"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        url: where from.
        name: under which it is kept; a `.zip`, `.tar` or `.tar.gz` is unpacked.
        checksum: `md5:...` or `sha256:...` as its publisher gives it.
        record_url: a Zenodo record that tells the checksum instead.
    """

    url: str
    name: str
    checksum: str | None = None
    record_url: str | None = None


@dataclass(frozen=True)
class Published:
    """A dataset.

    Attributes:
        source: what data.source is for it.
        files: what to download.
        login_url: where a person has to log in and download by hand, if no file can be had without.
        by_hand: the files that the login gives.
    """

    source: str
    files: tuple[RemoteFile, ...] = ()
    login_url: str | None = None
    by_hand: str = ""


def _kuairand(name: str) -> Published:
    archive = f"KuaiRand-{name}.tar.gz"
    return Published("kuairand", (RemoteFile(f"{_ZENODO}/{archive}", archive, record_url=_ZENODO_RECORD),))


def _movielens(name: str, checksum: str | None) -> Published:
    return Published("movielens", (RemoteFile(f"{_GROUPLENS}/{name}.zip", f"{name}.zip", checksum),))


def _yambda(size: str) -> Published:
    return Published("yambda", (RemoteFile(f"{_HUGGING_FACE}/{size}/multi_event.parquet", "multi_event.parquet"),))


PUBLISHED = {
    "kuairand-pure": _kuairand("Pure"),
    "kuairand-1k": _kuairand("1K"),
    "kuairand-27k": _kuairand("27K"),
    "ml-latest-small": _movielens("ml-latest-small", None),
    "ml-1m": _movielens("ml-1m", "md5:c4d9eecfca2ab87c1945afe126590906"),
    "ml-20m": _movielens("ml-20m", "md5:cd245b17a1ae2cc31bb14903e1204af3"),
    "otto": Published(
        "otto",
        (RemoteFile("https://www.kaggle.com/api/v1/datasets/download/otto/recsys-dataset", "otto-recsys-dataset.zip"),),
    ),
    "taobao": Published("taobao", login_url="https://tianchi.aliyun.com/dataset/649", by_hand="UserBehavior.csv"),
    "yambda-50m": _yambda("50m"),
    "yambda-500m": _yambda("500m"),
    "yambda-5b": _yambda("5b"),
}
