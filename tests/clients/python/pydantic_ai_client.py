"""Pydantic AI, on either wire."""

from typing import Any

import anthropic
import openai
from harness import Ask, Told, main, usage
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


def agent(ask: Ask, **more: Any) -> Agent[None, Any]:
    model: Any
    if ask.wire == "openai":
        client = openai.AsyncOpenAI(base_url=ask.v1, api_key=ask.key, **ask.patience)
        model = OpenAIChatModel(ask.model, provider=OpenAIProvider(openai_client=client))
    else:
        vendor = anthropic.AsyncAnthropic(base_url=ask.root, api_key=ask.key, **ask.patience)
        model = AnthropicModel(ask.model, provider=AnthropicProvider(anthropic_client=vendor))
    return Agent(model, model_settings={"max_tokens": ask.limit}, retries=0, **more)


def counted(of: Any) -> Told:
    return usage(of.input_tokens, of.output_tokens)


def used(result: Any) -> Told:
    return counted(result.usage() if callable(result.usage) else result.usage)


def plain(ask: Ask) -> Told:
    result = agent(ask).run_sync(ask.text)
    return {"text": result.output, "usage": used(result)}


def streamed(ask: Ask) -> Told:
    result = agent(ask).run_stream_sync(ask.text)
    pieces = list(result.stream_text(delta=True, debounce_by=None))
    return {"text": "".join(pieces), "pieces": len(pieces), "usage": used(result)}


def tools(ask: Ask) -> Told:
    cities: list[str] = []
    one = agent(ask)

    @one.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        cities.append(city)
        return ask.weather(city)

    result = one.run_sync(ask.text)
    return {"tools": sorted(cities, reverse=True), "text": result.output, "usage": None}


def structured(ask: Ask) -> Told:
    # Of a Claude whose name it does not know, it asks for objects by a tool.
    shape: Any = NativeOutput(Weather) if ask.wire == "openai" else Weather
    result = agent(ask, output_type=shape).run_sync(ask.text)
    return {"object": result.output.model_dump(), "usage": used(result)}


if __name__ == "__main__":
    main(plain=plain, streamed=streamed, tools=tools, structured=structured)
