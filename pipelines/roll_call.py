"""Asks the workers who they are, over the files that they are to share with this process."""

from __future__ import annotations

import os
import platform
import socket
import tempfile
import time
from pathlib import Path

from features.config import Closed
from features.errors import DataError
from features.files import read_json, write_json
from features.storage import Remote
from pipelines.config import PipelinesConfig
from pipelines.engine import run_job
from pipelines.steps import Job, Step

# Long enough for each worker to get some of the questions, and for them all to be answered in a second.
_QUESTIONS_PER_WORKER = 8
_SECONDS_PER_ANSWER = 0.1


class Answer(Closed):
    """What a worker told: the machine and process it is, and its Python."""

    host: str
    process: int
    python: str


class AnswerCall(Step):
    """A question in, a file with the worker's answer out, in a folder or at a URL."""

    def __init__(self, folder: Path | Remote) -> None:
        self._folder = folder

    def process(self, question: int) -> None:
        """Writes the answer."""
        answer = Answer(host=socket.gethostname(), process=os.getpid(), python=platform.python_version())
        name = f"{question:06d}.json"
        if isinstance(self._folder, Remote):
            with tempfile.TemporaryDirectory(prefix="hstu2-") as folder:
                write_json(Path(folder) / name, answer.model_dump())
                self._folder.upload(Path(folder) / name, name)
        elif self._folder.is_dir():
            write_json(self._folder / name, answer.model_dump())
        else:
            raise DataError(f"{self._folder}: the worker {answer.host}:{answer.process} does not see this folder")
        time.sleep(_SECONDS_PER_ANSWER)


def roll_call(config: PipelinesConfig, folder: Path) -> list[Answer]:
    """The workers that answered, each once.

    Args:
        config: how to reach them.
        folder: where the outputs will be; the answers come into a folder in it that is removed again, or through
            `pipelines.spill` when that is a URL.

    Raises:
        DataError: something that the runner needs is missing, or its workers do not see the folder.
    """
    questions = range(_QUESTIONS_PER_WORKER * config.num_workers)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".roll-call-", dir=folder.absolute()) as out:
        place: Path | Remote = Path(out)
        if config.spill is not None:
            place = Remote(f"{config.spill.rstrip('/')}/{Path(out).name.lstrip('.')}")
        run_job(Job(questions, AnswerCall(place)), config, needs_disk=False)
        if isinstance(place, Remote):
            for file in place.files():
                place.download(file.name, Path(out) / file.name)
            place.remove()
        answers = [Answer.model_validate(read_json(path)) for path in Path(out).glob("*.json")]
    if len(answers) != len(questions):
        raise DataError(f"{folder}: {len(questions)} questions to the workers, {len(answers)} answers in this folder")
    return sorted(set(answers), key=lambda answer: (answer.host, answer.process))
