"""Instructor, which makes objects of answers, on either wire."""

from typing import Any

import instructor
from harness import Ask, Told, main, usage
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


def client(ask: Ask) -> Any:
    if ask.wire == "openai":
        import openai

        vendor = openai.OpenAI(base_url=ask.v1, api_key=ask.key, **ask.patience)
        return instructor.from_openai(vendor, mode=instructor.Mode.JSON_SCHEMA)
    import anthropic

    return instructor.from_anthropic(anthropic.Anthropic(base_url=ask.root, api_key=ask.key, **ask.patience))


def structured(ask: Ask) -> Told:
    found, raw = client(ask).chat.completions.create_with_completion(
        model=ask.model,
        response_model=Weather,
        max_tokens=ask.limit,
        max_retries=1,
        messages=[{"role": "user", "content": ask.text}],
    )
    of = raw.usage
    counted = (
        usage(of.prompt_tokens, of.completion_tokens)
        if ask.wire == "openai"
        else usage(of.input_tokens, of.output_tokens)
    )
    return {"object": found.model_dump(), "usage": counted}


if __name__ == "__main__":
    main(plain=structured, structured=structured)
