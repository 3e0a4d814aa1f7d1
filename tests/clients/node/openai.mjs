// The official OpenAI SDK.
import OpenAI from "openai";
import { CITY_TOOL, WEATHER_SCHEMA, main, usage } from "./harness.mjs";

const tools = [{ type: "function", function: { name: "weather", description: "The weather", parameters: CITY_TOOL } }];
const client = (ask) => new OpenAI({ baseURL: ask.v1, apiKey: ask.key, ...ask.patience });
const asked = (ask, more = {}) => ({
  model: ask.model, max_tokens: ask.limit, messages: [{ role: "user", content: ask.text }], ...more,
});
const counted = (of) => of && usage(of.prompt_tokens, of.completion_tokens);
const cityOf = (call) => JSON.parse(call.function.arguments).city;

await main({
  async plain(ask) {
    const reply = await client(ask).chat.completions.create(asked(ask));
    return { text: reply.choices[0].message.content, usage: counted(reply.usage), finish: reply.choices[0].finish_reason };
  },
  async streamed(ask) {
    let text = "", pieces = 0, told = null;
    const stream = await client(ask).chat.completions.create(
      asked(ask, { stream: true, stream_options: { include_usage: true } }),
    );
    for await (const chunk of stream) {
      const piece = chunk.choices[0]?.delta?.content;
      if (piece) { text += piece; pieces += 1; }
      told = chunk.usage ?? told;
    }
    return { text, pieces, usage: counted(told) };
  },
  async tools(ask) {
    const first = (await client(ask).chat.completions.create(asked(ask, { tools }))).choices[0].message;
    const results = first.tool_calls.map((call) => ({
      role: "tool", tool_call_id: call.id, content: ask.weather(cityOf(call)),
    }));
    const messages = [...asked(ask).messages, first, ...results];
    const last = await client(ask).chat.completions.create(asked(ask, { tools, messages }));
    return { tools: first.tool_calls.map(cityOf), text: last.choices[0].message.content, usage: counted(last.usage) };
  },
  async streamed_tools(ask) {
    const reply = await client(ask).chat.completions.stream(asked(ask, { tools })).finalChatCompletion();
    return { tools: reply.choices[0].message.tool_calls.map(cityOf) };
  },
  async structured(ask) {
    const shape = { type: "json_schema", json_schema: { name: "weather", strict: true, schema: WEATHER_SCHEMA } };
    const reply = await client(ask).chat.completions.create(asked(ask, { response_format: shape }));
    return { object: JSON.parse(reply.choices[0].message.content), usage: counted(reply.usage) };
  },
  async models(ask) {
    const found = [];
    for await (const one of client(ask).models.list()) found.push(one.id);
    return { models: found };
  },
});
