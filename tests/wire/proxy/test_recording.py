"""What a running server tells of recorded requests, and what a simulation makes of it."""

import asyncio
import datetime as dt
import json
from pathlib import Path

import pytest

from proxy.admin.client import AdminClient
from proxy.admin.recording import WantedRecording
from proxy.policy.load import load_policy
from proxy.simulation.run import simulate
from sidecar.wire.errors import ApiError
from tests.wire.proxy.house import OPEN, House, chat


async def test_a_server_s_recording_can_be_tried_under_another_policy(house: House, tmp_path: Path) -> None:
    key, other = await house.key(), await house.key()
    for used in (key, other, key):
        await (await house.ask(used, chat(stream=False))).answer()
    now = dt.datetime.now(dt.UTC)
    wanted = WantedRecording(since=now - dt.timedelta(minutes=5), until=now + dt.timedelta(minutes=5))
    async with AdminClient(house.settings.admin.socket) as client:
        told = await client.recording(wanted)
        again = await client.recording(WantedRecording(since=wanted.since, until=wanted.until, after=told.rows[0]))
        one = await client.recording(
            WantedRecording(since=wanted.since, until=wanted.until, key_id=told.rows[1].key_id)
        )
        with pytest.raises(ApiError, match="before"):
            await client.recording(WantedRecording(since=wanted.until, until=wanted.since))
    assert [row.state for row in told.rows] == ["settled"] * 3
    assert [row.asked_output_tokens for row in told.rows] == [8] * 3
    assert (again.rows, one.rows, told.more) == (told.rows[1:], [told.rows[1]], False)
    assert {caller.key_id for caller in told.callers} == {row.key_id for row in told.rows}

    (tmp_path / "next").mkdir()
    strict = {"version": 1, "tiers": {"open": OPEN | {"requests_per_minute": 1}}}
    await asyncio.to_thread((tmp_path / "next/a.yaml").write_text, json.dumps(strict))
    policy = await asyncio.to_thread(load_policy, tmp_path / "next")
    found = await asyncio.to_thread(simulate, policy, told.rows, told.callers, since=wanted.since, until=wanted.until)
    assert [(one.request_id, one.rule) for one in found.refusals] == [(told.rows[2].request_id, "requests_per_minute")]
