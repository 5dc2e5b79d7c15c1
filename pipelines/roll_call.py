"""Asks the workers who they are, over the files that they are to share with this process."""

from __future__ import annotations

import os
import platform
import socket
import tempfile
import time
from pathlib import Path

import apache_beam as beam

from features.config import Closed
from features.errors import DataError
from features.files import read_json, write_json
from pipelines.config import PipelinesConfig
from pipelines.engine import run_pipeline

# Long enough for each worker to get some of the questions, and for them all to be answered in a second.
_QUESTIONS_PER_WORKER = 8
_SECONDS_PER_ANSWER = 0.1


class Answer(Closed):
    """What a worker told: the machine and process it is, and its Python."""

    host: str
    process: int
    python: str


class AnswerCall(beam.DoFn):
    """A question in, a file with the worker's answer out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(self, question: int) -> None:
        """Writes the answer."""
        answer = Answer(host=socket.gethostname(), process=os.getpid(), python=platform.python_version())
        if not self._folder.is_dir():
            raise DataError(f"{self._folder}: the worker {answer.host}:{answer.process} does not see this folder")
        write_json(self._folder / f"{question:06d}.json", answer.model_dump())
        time.sleep(_SECONDS_PER_ANSWER)


def roll_call(config: PipelinesConfig, folder: Path) -> list[Answer]:
    """The workers that answered, each once.

    Args:
        config: how to reach them.
        folder: where the outputs will be; the answers come into a folder in it that is removed again.

    Raises:
        DataError: something that the runner needs is missing, or its workers do not see the folder.
    """
    questions = range(_QUESTIONS_PER_WORKER * config.num_workers)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".roll-call-", dir=folder.absolute()) as out:
        run_pipeline(lambda pipeline: _wire(pipeline, questions, Path(out)), config)
        answers = [Answer.model_validate(read_json(path)) for path in Path(out).glob("*.json")]
    if len(answers) != len(questions):
        raise DataError(f"{folder}: {len(questions)} questions to the workers, {len(answers)} answers in this folder")
    return sorted(set(answers), key=lambda answer: (answer.host, answer.process))


def _wire(pipeline: beam.Pipeline, questions: range, out: Path) -> None:
    _ = pipeline | beam.Create(questions) | beam.Reshuffle() | beam.ParDo(AnswerCall(out))
