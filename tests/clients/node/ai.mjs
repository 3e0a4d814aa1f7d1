// Vercel's AI SDK with one of its providers, which the first argument names.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { main, usage } from "./harness.mjs";

const MODELS = {
  responses: (ask) => createOpenAI({ baseURL: ask.v1, apiKey: ask.key })(ask.model),
  chat: (ask) => createOpenAI({ baseURL: ask.v1, apiKey: ask.key }).chat(ask.model),
  compatible: (ask) =>
    createOpenAICompatible({
      name: "ours", baseURL: ask.v1, apiKey: ask.key, includeUsage: true, supportsStructuredOutputs: true,
    })(ask.model),
  anthropic: (ask) => createAnthropic({ baseURL: ask.v1, apiKey: ask.key })(ask.model),
};
const asked = (ask, more = {}) => ({
  model: MODELS[process.argv[2]](ask), prompt: ask.text, maxOutputTokens: ask.limit, ...ask.patience, ...more,
});
const counted = (of) => usage(of.inputTokens, of.outputTokens);
const weather = (ask) =>
  tool({
    description: "The weather",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => ask.weather(city),
  });
const citiesOf = (step) => step.toolCalls.map((call) => call.input.city);

async function read(ask, more = {}) {
  let pieces = 0, failure = null;
  const result = streamText({ ...asked(ask, more), onError: ({ error }) => { failure = error; } });
  for await (const _ of result.textStream) pieces += 1;
  if (failure) throw failure;
  return { result, pieces };
}

await main({
  async plain(ask) {
    const reply = await generateText(asked(ask));
    return { text: reply.text, usage: counted(reply.usage), finish: reply.finishReason };
  },
  async streamed(ask) {
    const { result, pieces } = await read(ask);
    return { text: await result.text, pieces, usage: counted(await result.usage) };
  },
  async tools(ask) {
    const reply = await generateText(asked(ask, { tools: { weather: weather(ask) }, stopWhen: stepCountIs(2) }));
    return { tools: citiesOf(reply.steps[0]), text: reply.text, usage: counted(reply.usage) };
  },
  async streamed_tools(ask) {
    const { result } = await read(ask, { tools: { weather: weather(ask) } });
    return { tools: citiesOf((await result.steps)[0]) };
  },
  async structured(ask) {
    const schema = z.object({ city: z.string(), degrees: z.number().int() });
    const reply = await generateText(asked(ask, { output: Output.object({ schema }) }));
    return { object: reply.output, usage: counted(reply.usage) };
  },
});
