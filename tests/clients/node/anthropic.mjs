// The official Anthropic SDK.
import Anthropic from "@anthropic-ai/sdk";
import { CITY_TOOL, WEATHER_SCHEMA, main, usage } from "./harness.mjs";

const tools = [{ name: "weather", description: "The weather", input_schema: CITY_TOOL }];
const client = (ask) => new Anthropic({ baseURL: ask.root, apiKey: ask.key, ...ask.patience });
const asked = (ask, more = {}) => ({
  model: ask.model, max_tokens: ask.limit, messages: [{ role: "user", content: ask.text }], ...more,
});
const counted = (of) => usage(of.input_tokens, of.output_tokens);
const textOf = (reply) => reply.content.filter((block) => block.type === "text").map((block) => block.text).join("");
const callsOf = (reply) => reply.content.filter((block) => block.type === "tool_use");

await main({
  async plain(ask) {
    const reply = await client(ask).messages.create(asked(ask));
    return { text: textOf(reply), usage: counted(reply.usage), finish: reply.stop_reason };
  },
  async streamed(ask) {
    let pieces = 0;
    const stream = client(ask).messages.stream(asked(ask)).on("text", () => { pieces += 1; });
    const reply = await stream.finalMessage();
    return { text: textOf(reply), pieces, usage: counted(reply.usage) };
  },
  async tools(ask) {
    const first = await client(ask).messages.create(asked(ask, { tools }));
    const results = callsOf(first).map((call) => ({
      type: "tool_result", tool_use_id: call.id, content: ask.weather(call.input.city),
    }));
    const messages = [
      ...asked(ask).messages, { role: "assistant", content: first.content }, { role: "user", content: results },
    ];
    const last = await client(ask).messages.create(asked(ask, { tools, messages }));
    return { tools: callsOf(first).map((call) => call.input.city), text: textOf(last), usage: counted(last.usage) };
  },
  async streamed_tools(ask) {
    const reply = await client(ask).messages.stream(asked(ask, { tools })).finalMessage();
    return { tools: callsOf(reply).map((call) => call.input.city) };
  },
  async structured(ask) {
    const shape = { format: { type: "json_schema", schema: WEATHER_SCHEMA } };
    const reply = await client(ask).messages.create(asked(ask, { output_config: shape }));
    return { object: JSON.parse(textOf(reply)), usage: counted(reply.usage) };
  },
  async models(ask) {
    const found = [];
    for await (const one of client(ask).models.list()) found.push(one.id);
    return { models: found };
  },
});
