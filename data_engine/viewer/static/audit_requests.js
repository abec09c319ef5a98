// What the audit page asks of the server. Throws Error with what went wrong and what to do.

import { reasonOf } from "./api.js";

async function json(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server is not there any more: start `data-engine view` again. What you have answered is stored.");
  }
  if (answer.ok) return answer.json();
  throw new Error(await reasonOf(answer));
}

/** The answer of /api/<path>, with these values in its query. */
export const asked = (path, values) => json(`/api/${path}?${new URLSearchParams(values)}`);

/** Resolves when an answer is stored durably. */
export const store = (answer) =>
  json("/api/audit/answer", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(answer),
  });
