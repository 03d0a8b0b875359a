// openai-node, unchanged, over TLS. TIERGATE_READY names the ready file; NODE_EXTRA_CA_CERTS its ca_file.
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const ready = JSON.parse(readFileSync(process.env.TIERGATE_READY, "utf8"));
const model = ready.models[0];
const messages = [{ role: "user", content: "Say hello." }];
const make = (more = {}) =>
  new OpenAI({ apiKey: ready.api_key, baseURL: ready.base_url, maxRetries: 0, timeout: 60000, ...more });
const client = make();

const refused = (call, kind, status, code, param = null) =>
  assert.rejects(call, (e) => {
    assert.ok(e instanceof kind, `${e.constructor.name}: ${e.message}`);
    assert.deepEqual([e.status, e.code, e.param], [status, code, param]);
    assert.ok(e.requestID);
    return true;
  });

test("models are listed and found", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.ok(ids.includes(model));
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("a chat is answered", async () => {
  const chat = await client.chat.completions.create({ model, messages, max_completion_tokens: 8, temperature: 0 });
  assert.equal(chat.object, "chat.completion");
  assert.ok(chat.choices[0].message.content);
  assert.equal(chat.usage.total_tokens, chat.usage.prompt_tokens + chat.usage.completion_tokens);
  assert.ok(chat.id.includes(chat._request_id));
});

test("a stream says what the whole answer says", async () => {
  const wanted = { model, messages, max_tokens: 10, temperature: 0 };
  const whole = await client.chat.completions.create(wanted);
  const stream = await client.chat.completions.create({ ...wanted, stream: true, stream_options: { include_usage: true } });
  let text = "", usage = null, reason = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(reason, whole.choices[0].finish_reason);
  assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);
});

test("the streaming helper understands the stream", async () => {
  const stream = client.chat.completions.stream({ model, messages, max_tokens: 6, temperature: 0 });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.role, "assistant");
  assert.ok(final.choices[0].message.content);
});

test("a completion echoes, stops and is repeated by its seed", async () => {
  const wanted = { model, prompt: "1, 2, 3, 4, 5,", max_tokens: 16, temperature: 0 };
  const free = (await client.completions.create(wanted)).choices[0].text;
  const stopped = await client.completions.create({ ...wanted, stop: "8", echo: true, logprobs: 1 });
  assert.equal(stopped.choices[0].text, wanted.prompt + free.slice(0, free.indexOf("8")));
  assert.equal(stopped.choices[0].logprobs.token_logprobs[0], null);
  const hot = { ...wanted, temperature: 1.3, seed: 5, n: 2 };
  const [one, two] = [await client.completions.create(hot), await client.completions.create(hot)];
  assert.deepEqual(one.choices.map((c) => c.text), two.choices.map((c) => c.text));
  let text = "";
  for await (const chunk of await client.completions.create({ ...wanted, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, free);
});

test("errors have their classes", async () => {
  await refused(() => make({ apiKey: "nonsense" }).models.list(), OpenAI.AuthenticationError, 401, "invalid_api_key");
  const chat = (more) => () => client.chat.completions.create({ model, messages, max_tokens: 4, ...more });
  await refused(chat({ model: "gpt-99" }), OpenAI.NotFoundError, 404, "model_not_found", "model");
  await refused(chat({ model: "gpt-99", stream: true }), OpenAI.NotFoundError, 404, "model_not_found", "model");
  await refused(chat({ temperature: 3 }), OpenAI.BadRequestError, 400, "invalid_request", "temperature");
  await refused(chat({ tools: [{ type: "function", function: { name: "f" } }] }), OpenAI.BadRequestError, 400,
    "unsupported_parameter", "tools");
  await refused(chat({ messages: [{ role: "user", content: [{ type: "image_url" }] }] }), OpenAI.BadRequestError, 400,
    "unsupported_parameter", "messages[0].content[0].type");
  await refused(chat({ max_tokens: 1000000 }), OpenAI.BadRequestError, 400, "context_length_exceeded", "messages");
  await refused(() => client.embeddings.create({ model, input: "x" }), OpenAI.NotFoundError, 404, "not_found");
});

test("a stream may be aborted", async () => {
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 4000, stream: true, ignore_eos: true });
  let n = 0;
  for await (const _ of stream) if (++n === 4) stream.controller.abort();
  assert.ok(n >= 4 && n < 100);
  assert.ok((await client.chat.completions.create({ model, messages, max_tokens: 2 })).choices.length === 1);
});
