// OpenAI's own client for Node.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const model = process.env.TOLLHOUSE_MODEL;
const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model, messages, temperature: 0, max_tokens: 8 };
const client = new OpenAI();

test("a chat, whole and streamed", async () => {
  const whole = await client.chat.completions.create(greedy);
  const stream = await client.chat.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(usage, whole.usage);
});

test("the stream's helper", async () => {
  const runner = client.chat.completions.stream(greedy);
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.role, "assistant");
  assert.ok(final.choices[0].message.content);
});

test("a completion", async () => {
  const answer = await client.completions.create({ model, prompt: "One, two,", max_tokens: 4 });
  assert.ok(answer.choices[0].text);
});

test("a response, whole and streamed", async () => {
  const asked = { model, input: messages, temperature: 0, max_output_tokens: 8 };
  const whole = await client.responses.create(asked);
  let last;
  for await (const event of await client.responses.create({ ...asked, stream: true })) last = event;
  assert.equal(last.type, `response.${whole.status}`);
  assert.equal(last.response.output[0].content[0].text, whole.output_text);
});

test("embeddings", async () => {
  const answer = await client.embeddings.create({ model: process.env.TOLLHOUSE_EMBEDDER, input: ["a cat", "a kitten"] });
  assert.deepEqual(answer.data.map((one) => one.embedding.length), [384, 384]);
});

test("models", async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.ok(ids.includes(model));
});

test("errors are its own", async () => {
  await assert.rejects(client.chat.completions.create({ ...greedy, model: "gpt-9" }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...greedy, temperature: 3 }), (error) => {
    return error instanceof OpenAI.BadRequestError && error.param === "temperature";
  });
  await assert.rejects(new OpenAI({ apiKey: "sk-wrong" }).models.list(), OpenAI.AuthenticationError);
});
