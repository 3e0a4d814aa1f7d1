"""The official OpenAI SDK."""

import json
from typing import Any

import openai
from harness import CITY_TOOL, WEATHER_SCHEMA, Ask, Told, main, usage

TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY_TOOL}}
]


def client(ask: Ask) -> openai.OpenAI:
    return openai.OpenAI(base_url=ask.v1, api_key=ask.key, **ask.patience)


def messages(ask: Ask) -> list[Any]:
    return [{"role": "user", "content": ask.text}]


def counted(of: Any) -> Told:
    return usage(of.prompt_tokens, of.completion_tokens)


def plain(ask: Ask) -> Told:
    reply = client(ask).chat.completions.create(model=ask.model, messages=messages(ask), max_tokens=ask.limit)
    return {
        "text": reply.choices[0].message.content,
        "usage": counted(reply.usage),
        "finish": reply.choices[0].finish_reason,
    }


def streamed(ask: Ask) -> Told:
    text, pieces, told = "", 0, None
    for chunk in client(ask).chat.completions.create(
        model=ask.model,
        messages=messages(ask),
        max_tokens=ask.limit,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            text, pieces = text + chunk.choices[0].delta.content, pieces + 1
        told = chunk.usage or told
    return {"text": text, "pieces": pieces, "usage": told and counted(told)}


def tools(ask: Ask) -> Told:
    said = messages(ask)
    first = client(ask).chat.completions.create(model=ask.model, messages=said, max_tokens=ask.limit, tools=TOOLS)
    calls = first.choices[0].message.tool_calls or []
    cities = [json.loads(call.function.arguments)["city"] for call in calls]  # type: ignore[union-attr]
    said.append(first.choices[0].message)
    said += [
        {"role": "tool", "tool_call_id": call.id, "content": ask.weather(city)}
        for call, city in zip(calls, cities, strict=True)
    ]
    last = client(ask).chat.completions.create(model=ask.model, messages=said, max_tokens=ask.limit, tools=TOOLS)
    return {"tools": cities, "text": last.choices[0].message.content, "usage": counted(last.usage)}


def streamed_tools(ask: Ask) -> Told:
    with client(ask).chat.completions.stream(
        model=ask.model, messages=messages(ask), max_tokens=ask.limit, tools=TOOLS
    ) as stream:
        reply = stream.get_final_completion()
    calls = reply.choices[0].message.tool_calls or []
    return {"tools": [json.loads(call.function.arguments)["city"] for call in calls]}


def structured(ask: Ask) -> Told:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER_SCHEMA}}
    reply = client(ask).chat.completions.create(
        model=ask.model, messages=messages(ask), max_tokens=ask.limit, response_format=shape
    )
    return {"object": json.loads(reply.choices[0].message.content or ""), "usage": counted(reply.usage)}


def models(ask: Ask) -> Told:
    return {"models": [one.id for one in client(ask).models.list()]}


if __name__ == "__main__":
    main(
        plain=plain, streamed=streamed, tools=tools, streamed_tools=streamed_tools, structured=structured, models=models
    )
