// Tools that must be called, by OpenAI's client and by Vercel's AI SDK.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";

const id = process.env.TOLLHOUSE_MODEL;
const where = { baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY };
const tollhouse = createOpenAICompatible({ name: "tollhouse", ...where });
const openai = createOpenAI(where);
const models = { "openai-compatible": tollhouse(id), "openai, chat": openai.chat(id), "openai, responses": openai(id) };
// All is bounded: a small model finds no end of a text by itself.
const schema = z.object({ name: z.enum(["Paris", "Berlin", "Rome"]), people: z.number().int().min(0).max(99999999), old: z.boolean() });
const asked = { prompt: "Tell me about Paris.", maxOutputTokens: 64, temperature: 0, maxRetries: 0 };

test("openai: a strict tool's arguments are parsed, whole and streamed", async () => {
  const messages = [{ role: "user", content: asked.prompt }];
  const tools = [zodFunction({ name: "save_city", parameters: schema })];
  const body = { model: id, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 64, temperature: 0 };
  const [call] = (await new OpenAI().chat.completions.parse(body)).choices[0].message.tool_calls;
  assert.ok(schema.parse(call.function.parsed_arguments));
  const streamed = await new OpenAI().chat.completions.stream(body).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
});

for (const [name, model] of Object.entries(models)) {
  test(`${name}: generateText and streamText with a tool that must be called`, async () => {
    const tools = { save_city: tool({ description: "Saves a city.", inputSchema: schema }) };
    const whole = await generateText({ model, tools, toolChoice: "required", ...asked });
    const streamed = streamText({ model, tools, toolChoice: { type: "tool", toolName: "save_city" }, ...asked });
    for (const [call] of [whole.toolCalls, await streamed.toolCalls]) {
      assert.equal(call.toolName, "save_city");
      assert.ok(schema.parse(call.input));
    }
  });

  test(`${name}: a tool that runs is answered`, async () => {
    const seen = [];
    const execute = async (city) => (seen.push(city), "saved");
    const tools = { save_city: tool({ description: "Saves a city.", inputSchema: schema, execute }) };
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? { type: "tool", toolName: "save_city" } : "none" });
    const stopWhen = ({ steps }) => steps.length === 2;
    const { steps } = await generateText({ model, tools, prepareStep, stopWhen, ...asked });
    assert.equal(seen.length, 1);
    assert.equal(steps.length, 2);
    assert.ok(steps[1].text);
  });
}
