"""The clients of the matrix: where each lives, and how it is pointed at the gateway."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Client:
    """One row of the matrix."""

    name: str
    package: str
    """Whose version is told."""
    runtime: str
    """A group of `python/`, or `node`."""
    script: tuple[str, ...]
    """The script with its arguments."""
    wire: str
    endpoint: str
    how: str
    """How it is pointed at us, as one line of code; URL is the gateway's, without a path."""
    quirks: str = ""
    raises: dict[str, str] = field(default_factory=dict)
    """The client's own class of error by case."""
    lacks: tuple[str, ...] = ()
    """Cases that the client has nothing for."""
    object_tool: str = ""
    """It asks for an object by a tool of this name."""
    repeats: bool = False
    """It cannot be told not to repeat what failed."""


_OPENAI = {
    "wrong_key": "AuthenticationError",
    "unknown_model": "NotFoundError",
    "capped": "APIStatusError",
    "limited": "RateLimitError",
    "failed": "InternalServerError",
    "broken": "APIError",
}
_ANTHROPIC = _OPENAI | {"capped": "PaymentRequiredError", "broken": "APIStatusError"}
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"

CLIENTS = [
    Client(
        name="OpenAI SDK, Python", package="openai", runtime="sdks", script=("openai_sdk.py",), wire="openai", endpoint=CHAT,
        how='openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)', raises=_OPENAI,
    ),
    Client(
        name="OpenAI SDK, Python, responses", package="openai", runtime="sdks", script=("openai_responses.py",), wire="openai",
        endpoint=RESPONSES, how='openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY).responses', raises=_OPENAI, lacks=("models",),
    ),
    Client(
        name="Anthropic SDK, Python", package="anthropic", runtime="sdks", script=("anthropic_sdk.py",), wire="anthropic",
        endpoint=MESSAGES, how="anthropic.Anthropic(base_url=URL, api_key=KEY)", raises=_ANTHROPIC,
        quirks="the URL has no `/v1`",
    ),
    Client(
        name="LiteLLM, as OpenAI", package="litellm", runtime="litellm", script=("litellm_client.py",), wire="openai",
        endpoint=CHAT, how='litellm.completion(model="openai/MODEL", api_base=f"{URL}/v1", api_key=KEY, …)',
        lacks=("streamed_tools", "models"),
    ),
    Client(
        name="LiteLLM, as Anthropic", package="litellm", runtime="litellm", script=("litellm_client.py",), wire="anthropic",
        endpoint=MESSAGES, how='litellm.completion(model="anthropic/MODEL", api_base=URL, api_key=KEY, …)',
        lacks=("streamed_tools", "models"),
    ),
    Client(
        name="LangChain, ChatOpenAI", package="langchain-openai", runtime="langchain", script=("langchain_client.py",),
        wire="openai", endpoint=CHAT, how='ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key=KEY, stream_usage=True)',
        lacks=("models",),
    ),
    Client(
        name="LangChain, ChatAnthropic", package="langchain-anthropic", runtime="langchain", script=("langchain_client.py",),
        wire="anthropic", endpoint=MESSAGES, how="ChatAnthropic(model=MODEL, base_url=URL, api_key=KEY)", lacks=("models",),
    ),
    Client(
        name="Pydantic AI, OpenAI", package="pydantic-ai-slim", runtime="sdks", script=("pydantic_ai_client.py",), wire="openai",
        endpoint=CHAT, how='OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))',
        lacks=("streamed_tools", "models"),
    ),
    Client(
        name="Pydantic AI, Anthropic", package="pydantic-ai-slim", runtime="sdks", script=("pydantic_ai_client.py",),
        wire="anthropic", endpoint=MESSAGES,
        object_tool="final_result", how="AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=AsyncAnthropic(base_url=URL, api_key=KEY)))",
        lacks=("streamed_tools", "models"),
    ),
    Client(
        name="Instructor, OpenAI", package="instructor", runtime="tools", script=("instructor_client.py",), wire="openai",
        endpoint=CHAT, how="instructor.from_openai(openai.OpenAI(…), mode=instructor.Mode.JSON_SCHEMA)",
        lacks=("plain", "translated", "streamed", "tools", "streamed_tools", "models", "broken"),
    ),
    Client(
        name="Instructor, Anthropic", package="instructor", runtime="tools", script=("instructor_client.py",), wire="anthropic",
        endpoint=MESSAGES, how="instructor.from_anthropic(anthropic.Anthropic(…))", object_tool="Weather",
        lacks=("plain", "translated", "streamed", "tools", "streamed_tools", "models", "broken"),
    ),
    Client(
        name="llm", package="llm", runtime="tools", script=("llm_client.py",), wire="openai", endpoint=CHAT,
        how="in `extra-openai-models.yaml`: model_id, model_name: MODEL, api_base: URL/v1, api_key_name", repeats=True,
        lacks=("streamed_tools", "models", "limited"),
    ),
    Client(
        name="OpenAI SDK, Node", package="openai", runtime="node", script=("openai.mjs",), wire="openai", endpoint=CHAT,
        how="new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY })", raises=_OPENAI | {"capped": "APIError"},
    ),
    Client(
        name="Anthropic SDK, Node", package="@anthropic-ai/sdk", runtime="node", script=("anthropic.mjs",), wire="anthropic",
        endpoint=MESSAGES, how="new Anthropic({ baseURL: URL, apiKey: KEY })", raises=_ANTHROPIC | {"broken": "APIError"},
        quirks="the URL has no `/v1`",
    ),
    Client(
        name="AI SDK, openai.chat", package="@ai-sdk/openai", runtime="node", script=("ai.mjs", "chat"), wire="openai",
        endpoint=CHAT, how="createOpenAI({ baseURL: `${URL}/v1`, apiKey: KEY }).chat(MODEL)", lacks=("models",),
    ),
    Client(
        name="AI SDK, openai", package="@ai-sdk/openai", runtime="node", script=("ai.mjs", "responses"), wire="openai",
        endpoint=RESPONSES, how="createOpenAI({ baseURL: `${URL}/v1`, apiKey: KEY })(MODEL)", lacks=("models",),
        quirks="calls `/v1/responses`",
    ),
    Client(
        name="AI SDK, openai-compatible", package="@ai-sdk/openai-compatible", runtime="node", script=("ai.mjs", "compatible"),
        wire="openai", endpoint=CHAT,
        how='createOpenAICompatible({ name: "ours", baseURL: `${URL}/v1`, apiKey: KEY, includeUsage: true })(MODEL)',
        lacks=("models",), quirks="`includeUsage: true`, or a stream tells no usage",
    ),
    Client(
        name="AI SDK, anthropic", package="@ai-sdk/anthropic", runtime="node", script=("ai.mjs", "anthropic"), wire="anthropic",
        endpoint=MESSAGES, how="createAnthropic({ baseURL: `${URL}/v1`, apiKey: KEY })(MODEL)", lacks=("models",),
        quirks="the URL ends in `/v1` here",
    ),
]  # fmt: skip
