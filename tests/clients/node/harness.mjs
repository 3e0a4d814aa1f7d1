// What every Node client's script shares: it reads what to ask from stdin, and tells what it saw as JSON.

export const CITY_TOOL = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
export const WEATHER_SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, degrees: { type: "integer" } },
  required: ["city", "degrees"],
  additionalProperties: false,
};
// Each error is met by an ordinary call; what differs is the key, the model, or what the provider does.
const ERRORS = {
  wrong_key: "plain", unknown_model: "plain", capped: "plain", limited: "plain", failed: "plain", broken: "streamed",
  translated: "plain",
};

export async function main(cases) {
  const pieces = [];
  for await (const piece of process.stdin) pieces.push(piece);
  const given = JSON.parse(Buffer.concat(pieces).toString());
  const told = {};
  for (const [name, asked] of Object.entries(given.cases)) {
    const play = cases[ERRORS[name] ?? name];
    const ask = { case: name, wire: given.wire, root: given.root, v1: `${given.root}/v1`, ...asked };
    ask.weather = (city) => `${ask.text}: 21 degrees in ${city}`;
    ask.patience = ask.retries === null ? {} : { maxRetries: ask.retries };
    told[name] = play ? await play(ask).catch((error) => ({ error: toldError(error) })) : null;
  }
  console.log(JSON.stringify(told));
  process.exit(0);
}

export function toldError(error) {
  const cause = error?.lastError ?? error?.cause;
  const headers = error?.headers ?? error?.responseHeaders ?? cause?.responseHeaders ?? {};
  return {
    class: error?.constructor?.name ?? typeof error,
    status: error?.status ?? error?.statusCode ?? cause?.statusCode ?? null,
    message: String(error?.message ?? error).slice(0, 400),
    retry_after: (headers.get ? headers.get("retry-after") : headers["retry-after"]) ?? null,
    caused_by: cause?.constructor?.name ?? null,
  };
}

export const usage = (input, output) => ({ input: input ?? null, output: output ?? null });
