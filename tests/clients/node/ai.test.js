// Vercel's AI SDK, over chats by @ai-sdk/openai-compatible and over responses by @ai-sdk/openai.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateText, streamText } from "ai";

const where = { baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY };
const tollhouse = createOpenAICompatible({ name: "tollhouse", ...where, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI(where);
const models = {
  "openai-compatible": tollhouse(process.env.TOLLHOUSE_MODEL),
  "openai, chat": openai.chat(process.env.TOLLHOUSE_MODEL),
  "openai, responses": openai(process.env.TOLLHOUSE_MODEL),
};
const embedders = [
  tollhouse.textEmbeddingModel(process.env.TOLLHOUSE_EMBEDDER),
  openai.textEmbeddingModel(process.env.TOLLHOUSE_EMBEDDER),
];
const asked = { prompt: "What is the capital of France?", maxOutputTokens: 16, temperature: 0, maxRetries: 0 };

for (const [name, model] of Object.entries(models)) {
  test(`${name}: generateText and streamText`, async () => {
    const whole = await generateText({ model, ...asked });
    assert.ok(whole.text);
    assert.ok(whole.usage.outputTokens > 0);
    const stream = streamText({ model, ...asked });
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert.equal(text, whole.text);
    assert.equal(await stream.finishReason, whole.finishReason);
    assert.deepEqual((await stream.usage).outputTokens, whole.usage.outputTokens);
  });
}

test("embedMany", async () => {
  for (const model of embedders) {
    const { embeddings } = await embedMany({ model, values: ["a cat", "a kitten"], maxRetries: 0 });
    assert.deepEqual(embeddings.map((one) => one.length), [384, 384]);
  }
});

test("errors are its own", async () => {
  await assert.rejects(generateText({ ...asked, model: tollhouse("gpt-9") }), (error) => {
    return APICallError.isInstance(error) && error.statusCode === 404;
  });
});
