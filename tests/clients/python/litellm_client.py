"""LiteLLM as a library, on either wire."""

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks for its price list on the network
import litellm
from harness import CITY_TOOL, WEATHER_SCHEMA, Ask, Told, main, usage

litellm.telemetry = False
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY_TOOL}}
]


def complete(ask: Ask, said: list[Any] | None = None, **more: Any) -> Any:
    place = ask.v1 if ask.wire == "openai" else ask.root
    patience = {} if ask.retries is None else {"max_retries": ask.retries, "num_retries": ask.retries}
    return litellm.completion(
        model=f"{ask.wire}/{ask.model}", api_base=place, api_key=ask.key, max_tokens=ask.limit,
        messages=said or [{"role": "user", "content": ask.text}], **patience, **more,
    )  # fmt: skip


def counted(of: Any) -> Told:
    return usage(of.prompt_tokens, of.completion_tokens)


def plain(ask: Ask) -> Told:
    reply = complete(ask)
    return {
        "text": reply.choices[0].message.content,
        "usage": counted(reply.usage),
        "finish": reply.choices[0].finish_reason,
    }


def streamed(ask: Ask) -> Told:
    text, pieces, told = "", 0, None
    for chunk in complete(ask, stream=True, stream_options={"include_usage": True}):
        if chunk.choices and chunk.choices[0].delta.content:
            text, pieces = text + chunk.choices[0].delta.content, pieces + 1
        told = getattr(chunk, "usage", None) or told
    return {"text": text, "pieces": pieces, "usage": told and counted(told)}


def tools(ask: Ask) -> Told:
    said: list[Any] = [{"role": "user", "content": ask.text}]
    first = complete(ask, said, tools=TOOLS).choices[0].message
    cities = [json.loads(call.function.arguments)["city"] for call in first.tool_calls]
    said.append(first.model_dump())
    said += [
        {"role": "tool", "tool_call_id": call.id, "content": ask.weather(city)}
        for call, city in zip(first.tool_calls, cities, strict=True)
    ]
    last = complete(ask, said, tools=TOOLS)
    return {"tools": cities, "text": last.choices[0].message.content, "usage": counted(last.usage)}


def structured(ask: Ask) -> Told:
    shape = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER_SCHEMA}}
    reply = complete(ask, response_format=shape)
    return {"object": json.loads(reply.choices[0].message.content), "usage": counted(reply.usage)}


if __name__ == "__main__":
    main(plain=plain, streamed=streamed, tools=tools, structured=structured)
