// Objects by a schema, by OpenAI's client and by Vercel's AI SDK.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, Output, streamObject } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const id = process.env.TOLLHOUSE_MODEL;
const where = { baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY };
const tollhouse = createOpenAICompatible({ name: "tollhouse", ...where, supportsStructuredOutputs: true });
const openai = createOpenAI(where);
const models = {
  "openai-compatible": tollhouse(id),
  "openai, chat": openai.chat(id),
  "openai, responses": openai(id),
};
// All is bounded: a small model finds no end of a text by itself.
const schema = z.object({ name: z.enum(["Paris", "Berlin", "Rome"]), people: z.number().int().min(0).max(99999999), old: z.boolean() });
const asked = { prompt: "Tell me about Paris.", maxOutputTokens: 64, temperature: 0, maxRetries: 0 };

test("openai: parse", async () => {
  const messages = [{ role: "user", content: asked.prompt }];
  const response_format = zodResponseFormat(schema, "city");
  const answer = await new OpenAI().chat.completions.parse({ model: id, messages, response_format, max_tokens: 64, temperature: 0 });
  assert.ok(schema.parse(answer.choices[0].message.parsed));
});

for (const [name, model] of Object.entries(models)) {
  test(`${name}: generateObject and streamObject`, async () => {
    const { object } = await generateObject({ model, schema, ...asked });
    assert.ok(schema.parse(object));
    const stream = streamObject({ model, schema, ...asked });
    let last;
    for await (const part of stream.partialObjectStream) last = part;
    assert.deepEqual(last, object);
    assert.deepEqual(await stream.object, object);
  });

  test(`${name}: Output.object`, async () => {
    const { output } = await generateText({ model, output: Output.object({ schema }), ...asked });
    assert.ok(schema.parse(output));
  });
}
