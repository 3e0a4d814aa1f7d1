"""Systems that several files share, and the models that are no chat models."""

from collections.abc import Iterator

import pytest

from tests.fakes.provider import FakeProvider
from tests.memcached import MEMCACHED, Memcached
from tests.system import System, set_up_provider, start_system

MODELS = {
    "embed-1": ["input=0.02"],
    "moderate-1": ["input=0"],
    "gpt-image-1": ["input=5", "cache_read=1.25", "output=40", "input_image=10"],
    "dall-e-3": ["image_1024=0.04/1", "image_wide=0.08/1", "image_hd_1024=0.08/1", "image_hd_wide=0.12/1"],
    "tts-1": ["input_characters=15"],
    "gpt-4o-mini-tts": ["input=0.6", "output_audio=12"],
    "whisper-1": ["input_seconds=0.0001/1"],
    "gpt-4o-transcribe": ["input=2.5", "input_audio=6", "output=10"],
}


@pytest.fixture(scope="session")
def _media_models(running: System) -> None:
    running.manage(
        "provider_set", "media", "--wire", "openai", "--base-url", f"{running.far_end.base_url}/v1",
        "--key-env", "FAKE_KEY", "--models", ",".join([*MODELS, "no-price"]),
    )  # fmt: skip
    for model, components in MODELS.items():
        parts = [word for one in components for word in ("--component", one)]
        running.manage("price_set", "media", model, *parts)


@pytest.fixture
def media(_media_models: None, system: System) -> System:
    """The shared system, whose far end serves embeddings, images and audio as well."""
    return system


@pytest.fixture(scope="session")
def _two_webs(far_end: FakeProvider) -> Iterator[System]:
    # It drains two streams at once for three seconds, and drops who reads nothing for four.
    more = {"DRAIN_STREAM_SECONDS": "3", "DRAIN_STREAMS": "2", "SEND_SECONDS": "4"}
    with start_system(far_end, WEB_PROCESSES="2", **more) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system


@pytest.fixture
def two_webs(_two_webs: System) -> Iterator[System]:
    """A system with two web processes on one port, whose worker may be killed or stopped."""
    _two_webs.far_end.clear()
    yield _two_webs
    _two_webs.close_clients()
    _two_webs.far_end.clear()


@pytest.fixture(scope="session")
def behind_proxy(far_end: FakeProvider) -> Iterator[System]:
    """A system of which this machine is a proxy, and which keeps answers in Memcached where there is one.

    Its Redis may be stopped, or emptied, and its Memcached too: no other test shares them.
    """
    memcached = Memcached() if MEMCACHED else None
    more = {"CACHE_URL": f"memcached://127.0.0.1:{memcached.port}"} if memcached else {}
    if memcached:
        memcached.start()
    try:
        with start_system(far_end, TRUSTED_PROXIES="127.0.0.0/8,::1", **more) as stack:
            system = System(stack, far_end)
            set_up_provider(system)
            system.memcached = memcached
            yield system
    finally:
        if memcached:
            memcached.stop()
