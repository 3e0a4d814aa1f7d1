"""The official Anthropic SDK."""

import json
from typing import Any

import anthropic
from harness import CITY_TOOL, WEATHER_SCHEMA, Ask, Told, main, usage

TOOLS: Any = [{"name": "weather", "description": "The weather", "input_schema": CITY_TOOL}]


def client(ask: Ask) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=ask.root, api_key=ask.key, **ask.patience)


def asked(ask: Ask, **more: Any) -> dict[str, Any]:
    return {"model": ask.model, "messages": [{"role": "user", "content": ask.text}], "max_tokens": ask.limit} | more


def counted(of: Any) -> Told:
    return usage(of.input_tokens, of.output_tokens)


def text_of(reply: Any) -> str:
    return "".join(block.text for block in reply.content if block.type == "text")


def plain(ask: Ask) -> Told:
    reply = client(ask).messages.create(**asked(ask))
    return {"text": text_of(reply), "usage": counted(reply.usage), "finish": reply.stop_reason}


def streamed(ask: Ask) -> Told:
    pieces = 0
    with client(ask).messages.stream(**asked(ask)) as stream:
        for _ in stream.text_stream:
            pieces += 1
        reply = stream.get_final_message()
    return {"text": text_of(reply), "pieces": pieces, "usage": counted(reply.usage)}


def tools(ask: Ask) -> Told:
    first = client(ask).messages.create(**asked(ask, tools=TOOLS))
    calls = [block for block in first.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": ask.weather(call.input["city"])} for call in calls
    ]
    said = [
        *asked(ask)["messages"],
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    last = client(ask).messages.create(**asked(ask, tools=TOOLS, messages=said))
    return {"tools": [call.input["city"] for call in calls], "text": text_of(last), "usage": counted(last.usage)}


def streamed_tools(ask: Ask) -> Told:
    with client(ask).messages.stream(**asked(ask, tools=TOOLS)) as stream:
        reply = stream.get_final_message()
    return {"tools": [block.input["city"] for block in reply.content if block.type == "tool_use"]}


def structured(ask: Ask) -> Told:
    shape = {"format": {"type": "json_schema", "schema": WEATHER_SCHEMA}}
    reply = client(ask).messages.create(**asked(ask, output_config=shape))
    return {"object": json.loads(text_of(reply)), "usage": counted(reply.usage)}


def models(ask: Ask) -> Told:
    return {"models": [one.id for one in client(ask).models.list()]}


if __name__ == "__main__":
    main(
        plain=plain, streamed=streamed, tools=tools, streamed_tools=streamed_tools, structured=structured, models=models
    )
