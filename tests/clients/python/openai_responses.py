"""The official OpenAI SDK's Responses."""

import json
from typing import Any

import openai
from harness import CITY_TOOL, WEATHER_SCHEMA, Ask, Told, main, usage

TOOLS: Any = [
    {"type": "function", "name": "weather", "description": "The weather", "parameters": CITY_TOOL, "strict": False}
]


def client(ask: Ask) -> openai.OpenAI:
    return openai.OpenAI(base_url=ask.v1, api_key=ask.key, **ask.patience)


def asked(ask: Ask, **more: Any) -> dict[str, Any]:
    return {"model": ask.model, "input": ask.text, "max_output_tokens": ask.limit} | more


def counted(of: Any) -> Told:
    return usage(of.input_tokens, of.output_tokens)


def calls_of(reply: Any) -> list[Any]:
    return [item for item in reply.output if item.type == "function_call"]


def cities_of(reply: Any) -> list[str]:
    return [json.loads(call.arguments)["city"] for call in calls_of(reply)]


def plain(ask: Ask) -> Told:
    reply = client(ask).responses.create(**asked(ask))
    return {"text": reply.output_text, "usage": counted(reply.usage), "finish": reply.status}


def streamed(ask: Ask) -> Told:
    pieces = 0
    with client(ask).responses.stream(**asked(ask)) as stream:
        for event in stream:
            pieces += event.type == "response.output_text.delta"
        reply = stream.get_final_response()
    return {"text": reply.output_text, "pieces": pieces, "usage": counted(reply.usage)}


def tools(ask: Ask) -> Told:
    first = client(ask).responses.create(**asked(ask, tools=TOOLS))
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": ask.weather(city)}
        for call, city in zip(calls_of(first), cities_of(first), strict=True)
    ]
    said = [
        {"role": "user", "content": ask.text},
        *(call.model_dump(exclude_none=True) for call in calls_of(first)),
        *results,
    ]
    last = client(ask).responses.create(**asked(ask, tools=TOOLS, input=said))
    return {"tools": cities_of(first), "text": last.output_text, "usage": counted(last.usage)}


def streamed_tools(ask: Ask) -> Told:
    with client(ask).responses.stream(**asked(ask, tools=TOOLS)) as stream:
        for _ in stream:
            pass
        return {"tools": cities_of(stream.get_final_response())}


def structured(ask: Ask) -> Told:
    shape = {"format": {"type": "json_schema", "name": "weather", "strict": True, "schema": WEATHER_SCHEMA}}
    reply = client(ask).responses.create(**asked(ask, text=shape))
    return {"object": json.loads(reply.output_text), "usage": counted(reply.usage)}


if __name__ == "__main__":
    main(plain=plain, streamed=streamed, tools=tools, streamed_tools=streamed_tools, structured=structured)
