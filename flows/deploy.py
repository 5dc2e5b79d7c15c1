"""Serves the nightly schedule and registers notifications: `python -m flows.deploy --notify slack-webhook/ops`.

Needs a Prefect API that outlives it (`PREFECT_API_URL`: a server of your own, or Prefect Cloud). Credentials live in
Prefect blocks, or in the environment of this process; none passes through here.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from features.errors import DataError
from flows.nightly.report import EVENT_PREFIX

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.events.schemas.automations import AutomationCore

CRON = "30 3 * * *"
FLOWS = ["hstu2-nightly", "hstu2-retrain"]
SILENCE = datetime.timedelta(hours=26)


@dataclass(frozen=True)
class Notice:
    """When to notify, and what to say; `body` is a template of Prefect's.

    Attributes:
        name: of the automation.
        events: any of them notifies; for `silent` it is their absence for SILENCE.
        subject, body: the message.
        of_flow_runs: the events are Prefect's own about runs of our flows.
        silent: see `events`.
    """

    name: str
    events: tuple[str, ...]
    subject: str
    body: str
    of_flow_runs: bool = False
    silent: bool = False


NOTICES = (
    Notice(
        "hstu2: a night failed",
        ("prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"),
        "hstu2: a night failed",
        "{{ flow_run.state.message }}",
        of_flow_runs=True,
    ),
    Notice(
        "hstu2: the data drifted",
        (f"{EVENT_PREFIX}.drift",),
        "hstu2: the data of {{ event.payload.date }} drifted",
        "{{ event.payload.reason }}",
    ),
    Notice(
        "hstu2: a new champion",
        (f"{EVENT_PREFIX}.promoted",),
        "hstu2: a new champion of {{ event.payload.date }}",
        "{{ event.payload.reason }}",
    ),
    Notice(
        "hstu2: no night has ended",
        (f"{EVENT_PREFIX}.promoted", f"{EVENT_PREFIX}.kept", f"{EVENT_PREFIX}.failed"),
        "hstu2: no night has ended for 26 hours",
        "Is the schedule served? `prefect deployment ls`, docs/operations.md",
        silent=True,
    ),
)


def automation_of(notice: Notice, block: UUID) -> AutomationCore:
    """The Prefect automation of a notice.

    Args:
        notice: what to say when.
        block: id of the notification block to say it through.
    """
    from prefect.automations import EventTrigger, Posture
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore

    match = {"prefect.resource.id": "prefect.flow-run.*" if notice.of_flow_runs else f"{EVENT_PREFIX}.*"}
    related = {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS} if notice.of_flow_runs else {}
    trigger = EventTrigger.model_validate(
        {
            "match": match,
            "match_related": related,
            "expect": set(notice.events),
            "posture": Posture.Proactive if notice.silent else Posture.Reactive,
            "threshold": 1,
            "within": SILENCE if notice.silent else datetime.timedelta(0),
        }
    )
    action = SendNotification(block_document_id=block, subject=notice.subject, body=notice.body)
    return AutomationCore(name=notice.name, description="Made by flows.deploy", trigger=trigger, actions=[action])


def register_notices(slug: str) -> list[str]:
    """Makes an automation per notice, in place of earlier ones of the same names; returns the names.

    Args:
        slug: `type/name` of a notification block.

    Raises:
        DataError: there is no such block.
    """
    from prefect.blocks.core import Block
    from prefect.client.orchestration import get_client

    try:
        block = Block.load(slug)
    except ValueError as error:
        raise DataError(f"--notify {slug}: {error}") from None
    assert isinstance(block, Block)
    assert block._block_document_id is not None
    with get_client(sync_client=True) as client:
        for notice in NOTICES:
            for known in client.read_automations_by_name(notice.name):
                client.delete_automation(known.id)
            client.create_automation(automation_of(notice, block._block_document_id))
    return [notice.name for notice in NOTICES]


def serve(root: Path, base: str, cron: str) -> None:
    """Serves the schedule until it is stopped; the schedule stays active while nobody serves it.

    Args:
        root: the repository.
        base: commit, branch or tag whose code and settings to run.
        cron: when, in UTC.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.schedules import Cron

    from flows.retrain import nightly

    nightly.serve(
        name="nightly",
        schedule=Cron(cron, timezone="UTC"),
        parameters={"root": str(root.absolute()), "base": base},
        description="Retrains the newest missing data date.",
        limit=1,
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        pause_on_shutdown=False,
    )


def check_api() -> None:
    """Refuses to serve without a Prefect API of its own.

    Raises:
        DataError: none is configured.
    """
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value() is None:
        raise DataError(
            "PREFECT_API_URL is not set: start a server with `prefect server start --host 127.0.0.1` and set it to"
            " http://127.0.0.1:4200/api, or log in to Prefect Cloud"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploy", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository")
    parser.add_argument("--base", default="HEAD", help="commit, branch or tag whose code and settings to run")
    parser.add_argument("--cron", default=CRON, help=f"when, in UTC; {CRON} unless given")
    parser.add_argument("--notify", metavar="TYPE/NAME", help="notification block for failure, drift and promotion")
    parser.add_argument("--only-notify", action="store_true", help="register the notifications and serve nothing")
    args = parser.parse_args()
    try:
        check_api()
        if args.notify:
            print("\n".join(register_notices(args.notify)))
    except DataError as error:
        sys.exit(f"error: {error}")
    if not args.only_notify:
        serve(args.root, args.base, args.cron)


if __name__ == "__main__":
    main()
