"""What the front says of itself, and how long a drain waits."""

import asyncio
import io

import pytest

from sidecar.api.front import Front, max_queue
from sidecar.jsonlog import JsonLog
from sidecar.metrics import Metrics
from sidecar.settings import Engine, Model, Sidecar
from sidecar.wire.errors import ApiError
from sidecar.wire.frames import Step
from tests.fakes.engine import READY, FakeEngine, language

SETTINGS = Sidecar(model=Model(id="m", source="m"), engine=Engine(max_sequences=2))


def front(engine: FakeEngine) -> Front:
    made = Front(SETTINGS, engine, Metrics("m"), JsonLog(io.StringIO()))
    made.language = language()
    return made


def test_the_queue_is_four_times_the_rows_unless_the_settings_say() -> None:
    assert max_queue(SETTINGS) == 8
    assert max_queue(Sidecar(model=Model(id="m", source="m"), max_queue=3)) == 3


def test_a_request_is_planned_with_what_the_engine_loaded() -> None:
    _, limits = front(FakeEngine()).limits()
    assert (limits.model, limits.max_context, limits.vocab_size) == ("m", READY.max_context, READY.vocab_size)
    assert limits.stop_token_ids == (0,)


def test_the_model_stays_known_while_the_engine_restarts() -> None:
    engine = FakeEngine()
    engine.ready, engine.reason = False, "restarting"
    made = front(engine)
    state = made.state()
    assert (state.ready, state.reason, [model.id for model in state.models]) == (False, "restarting", ["m"])
    with pytest.raises(ApiError) as caught:
        made.limits()
    assert caught.value.code == "upstream_unavailable"


def test_an_engine_that_is_ready_before_the_tokenizer_is_still_loading() -> None:
    made = front(FakeEngine())
    made.language = None
    state = made.state()
    assert (state.ready, state.reason, state.models) == (False, "loading", [])


def test_two_models_are_named_together() -> None:
    chat, encoder = front(FakeEngine()), front(FakeEngine())
    assert len(chat.state([encoder]).models) == 2
    for late in (chat, encoder):
        loaded, late.language = late.language, None
        assert chat.state([encoder]).models == []
        late.language = loaded


def test_the_cache_s_share_is_zero_before_the_first_step() -> None:
    engine = FakeEngine()
    assert front(engine).gauges().kv_used_ratio == 0
    engine.last_step = Step(1, [], 1, 0, 0, 1, 30, 120, 0.01, 0.02)
    assert front(engine).gauges().kv_used_ratio == 0.25


async def test_a_drain_waits_for_the_last_flight() -> None:
    made = front(FakeEngine())
    await made.landed()
    with made.flight():
        with made.flight():
            waiting = asyncio.create_task(made.landed())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
