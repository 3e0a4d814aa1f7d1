"""LangChain's chat models, on either wire."""

from typing import Any

from harness import Ask, Told, main, usage
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return city


def model(ask: Ask) -> Any:
    patience = {} if ask.retries is None else {"max_retries": ask.retries}
    if ask.wire == "openai":
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(
            model=ask.model, base_url=ask.v1, api_key=ask.key, max_tokens=ask.limit, stream_usage=True, **patience
        )
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model=ask.model, base_url=ask.root, api_key=ask.key, max_tokens=ask.limit, **patience)


def counted(message: Any) -> Told | None:
    found = message.usage_metadata
    return found and usage(found["input_tokens"], found["output_tokens"])


def text_of(message: Any) -> str:
    return str(message.text)


def plain(ask: Ask) -> Told:
    reply = model(ask).invoke(ask.text)
    return {"text": text_of(reply), "usage": counted(reply)}


def streamed(ask: Ask) -> Told:
    whole, pieces = None, 0
    for chunk in model(ask).stream(ask.text):
        pieces += bool(text_of(chunk))
        whole = chunk if whole is None else whole + chunk
    return {"text": text_of(whole), "pieces": pieces, "usage": counted(whole)}


def tools(ask: Ask) -> Told:
    bound = model(ask).bind_tools([weather])
    said: list[Any] = [HumanMessage(ask.text)]
    first = bound.invoke(said)
    said.append(first)
    said += [ToolMessage(ask.weather(call["args"]["city"]), tool_call_id=call["id"]) for call in first.tool_calls]
    last = bound.invoke(said)
    return {"tools": [call["args"]["city"] for call in first.tool_calls], "text": text_of(last), "usage": counted(last)}


def streamed_tools(ask: Ask) -> Told:
    whole: Any = None
    for chunk in model(ask).bind_tools([weather]).stream(ask.text):
        whole = chunk if whole is None else whole + chunk
    return {"tools": [call["args"]["city"] for call in whole.tool_calls]}


def structured(ask: Ask) -> Told:
    found = model(ask).with_structured_output(Weather, method="json_schema", include_raw=True).invoke(ask.text)
    if found["parsing_error"]:
        raise found["parsing_error"]
    return {"object": found["parsed"].model_dump(), "usage": counted(found["raw"])}


if __name__ == "__main__":
    main(plain=plain, streamed=streamed, tools=tools, streamed_tools=streamed_tools, structured=structured)
