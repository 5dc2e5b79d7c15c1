"""The schedule and its notifications, on a Prefect server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from features.errors import DataError
from flows.deploy import CRON, FLOWS, NOTICES, check_api, register_notices
from flows.nightly.report import EVENT_PREFIX
from flows.retrain import nightly, retrain

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("prefect_home")
def test_notices_are_registered_once_and_hold_no_secret():
    CustomWebhookNotificationBlock(name="ops", url="https://example.invalid/{{token}}", secrets={"token": "hush"}).save(
        "ops", overwrite=True
    )
    for _ in range(2):
        assert register_notices("custom-webhook/ops") == [notice.name for notice in NOTICES]
    with get_client(sync_client=True) as client:
        found = client.read_automations()
    assert sorted(automation.name for automation in found) == sorted(notice.name for notice in NOTICES)
    assert "hush" not in json.dumps([automation.model_dump(mode="json") for automation in found])


@pytest.mark.usefixtures("prefect_home")
def test_an_unknown_block_is_named():
    with pytest.raises(DataError, match="--notify custom-webhook/nobody: "):
        register_notices("custom-webhook/nobody")


def test_a_schedule_needs_an_api_that_outlives_it():
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(DataError, match="PREFECT_API_URL is not set"),
    ):
        check_api()


def test_every_outcome_can_be_heard_of():
    events = {event for notice in NOTICES for event in notice.events}
    assert {f"{EVENT_PREFIX}.{name}" for name in ("promoted", "kept", "failed", "drift")} <= events
    assert sorted(FLOWS) == sorted([nightly.name, retrain.name])


def test_both_ways_to_deploy_have_one_schedule_in_utc():
    (deployment,) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert deployment["schedules"] == [{"cron": CRON, "timezone": "UTC", "active": True}]
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    module, _, name = deployment["entrypoint"].partition(":")
    assert (ROOT / module).is_file()
    assert name == "nightly"
    assert set(deployment["parameters"]) <= set(nightly.parameters.properties)
