// What the page where masks are corrected asks of the server. Throws Error with what went wrong and what to do.

import { reasonOf } from "./api.js";

async function json(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server is not there any more: start `data-engine view` again. What you have kept is stored.");
  }
  if (answer.ok) return answer.json();
  throw new Error(await reasonOf(answer));
}

const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== null && value !== undefined));

/** The answer of /api/correct<path>, with these values in its query. */
export const asked = (path, values) => json(`/api/correct${path}?${query(values)}`);

/** The answer to an object that is posted. */
export const posted = (path, values, signal) =>
  json(`/api/correct${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(values),
    signal,
  });
