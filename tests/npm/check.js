// What the official npm packages do through the service: `node check.js PACKAGE FEATURE URL`. Fails with the reason.
// tests/support/npm_clients.py lists the checks; docs/clients.md is generated from that list.

import assert from "node:assert/strict";

import { Ollama } from "ollama";
import OpenAI from "openai";

const MODEL = "llama3.2";
const EMBEDDER = "nomic-embed-text";
const QUESTION = "What is the weather in Paris?";
const ECHO = `echo: ${QUESTION}`;
const ASKED = { model: MODEL, messages: [{ role: "user", content: QUESTION }] };
const PARAMETERS = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const TOOLS = [
  { type: "function", function: { name: "weather", description: "The weather of a city", parameters: PARAMETERS } },
];
const SCHEMA = { type: "object", properties: { answer: { type: "string" } }, required: ["answer"] };

const ollama = (url) => new Ollama({ host: url });
const openai = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });

async function collected(parts, textOf) {
  let text = "";
  for await (const part of parts) text += textOf(part) ?? "";
  return text;
}

const CHECKS = {
  ollama: {
    async chat(url) {
      assert.equal((await ollama(url).chat(ASKED)).message.content, ECHO);
    },
    async stream(url) {
      const parts = await ollama(url).chat({ ...ASKED, stream: true });
      assert.equal(await collected(parts, (part) => part.message.content), ECHO);
    },
    async tools(url) {
      const [call] = (await ollama(url).chat({ ...ASKED, tools: TOOLS })).message.tool_calls;
      assert.deepEqual(call.function, { name: "weather", arguments: { city: "Paris" } });
    },
    async "structured output"(url) {
      const answer = await ollama(url).chat({ ...ASKED, format: SCHEMA });
      assert.deepEqual(JSON.parse(answer.message.content), { answer: "echo" });
    },
    async embeddings(url) {
      const [vector] = (await ollama(url).embed({ model: EMBEDDER, input: "a text" })).embeddings;
      assert.equal(vector.length, 16);
      const older = await ollama(url).embeddings({ model: EMBEDDER, prompt: "a text" });
      assert.deepEqual(older.embedding, vector);
    },
    async models(url) {
      const client = ollama(url);
      assert.equal((await client.list()).models[0].model, "llama3.2:latest");
      assert.ok((await client.ps()).models.length);
      assert.deepEqual((await client.show({ model: MODEL })).capabilities, ["completion", "tools"]);
    },
    async other(url) {
      const client = ollama(url);
      assert.equal((await client.generate({ model: MODEL, prompt: QUESTION })).response, ECHO);
      const parts = await client.chat({ ...ASKED, stream: true });
      parts.abort();
      await assert.rejects(() => collected(parts, () => ""), { name: "AbortError" });
      assert.ok((await client.version()).version);
    },
  },
  openai: {
    async chat(url) {
      assert.equal((await openai(url).chat.completions.create(ASKED)).choices[0].message.content, ECHO);
    },
    async stream(url) {
      const chunks = await openai(url).chat.completions.create({ ...ASKED, stream: true });
      assert.equal(await collected(chunks, (chunk) => chunk.choices[0].delta.content), ECHO);
      assert.equal(await openai(url).chat.completions.stream(ASKED).finalContent(), ECHO);
    },
    async tools(url) {
      const [choice] = (await openai(url).chat.completions.create({ ...ASKED, tools: TOOLS })).choices;
      assert.equal(choice.finish_reason, "tool_calls");
      const [call] = choice.message.tool_calls;
      assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], ["weather", { city: "Paris" }]);
    },
    async "structured output"(url) {
      const response_format = { type: "json_schema", json_schema: { name: "reply", schema: SCHEMA } };
      const answer = await openai(url).chat.completions.create({ ...ASKED, response_format });
      assert.deepEqual(JSON.parse(answer.choices[0].message.content), { answer: "echo" });
    },
    async embeddings(url) {
      const { data } = await openai(url).embeddings.create({ model: EMBEDDER, input: ["a text", "another"] });
      assert.deepEqual(data.map((row) => row.embedding.length), [16, 16]);
    },
    async models(url) {
      const client = openai(url);
      const { data } = await client.models.list();
      assert.equal(data[0].id, "llama3.2:latest");
      assert.equal((await client.models.retrieve(data[0].id)).id, data[0].id);
    },
    async other(url) {
      const client = openai(url);
      assert.equal((await client.completions.create({ model: MODEL, prompt: QUESTION })).choices[0].text, ECHO);
      assert.equal((await client.responses.create({ model: MODEL, input: QUESTION })).output_text, ECHO);
    },
  },
};

const [, , name, feature, url] = process.argv;
await CHECKS[name][feature](url);
