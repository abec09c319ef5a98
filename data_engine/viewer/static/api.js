// What the server tells. Answers about images are kept for a moment, so that going back and forth waits for nothing.

const KEPT = 12;
const kept = new Map();

export class ApiError extends Error {}

async function json(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server is not there any more: start `data-engine view` again.");
  }
  if (answer.ok) return answer.json();
  throw new ApiError(await reasonOf(answer));
}

/** Why a request was refused: of JSON its error, else the text, as where the token is one of a viewer that has ended. */
export async function reasonOf(answer) {
  const body = await answer.text().catch(() => "");
  let reason = body;
  try {
    reason = JSON.parse(body).error;
  } catch {
    // the text itself is the reason
  }
  return reason || `${answer.status} ${answer.statusText}`;
}

const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== null && value !== undefined));

export const info = () => json("/api/info");
export const refresh = () => json("/api/refresh", { method: "POST" });
export const images = (values, signal) => json(`/api/images?${query(values)}`, { signal });

/** An image with the columns of its masks. */
export function image(run, id, position = null) {
  const key = `${run} ${id}`;
  if (!kept.has(key)) {
    const answer = json(`/api/image?${query({ run, id, position })}`);
    answer.catch(() => kept.delete(key));
    kept.set(key, answer);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(key);
}

export const pictureAddress = (run, id, side, position = null) => `/api/picture?${query({ run, id, side, position })}`;

/** A picture as a Blob. Throws ApiError with the reason where there is none. */
export async function picture(address, signal) {
  const answer = await fetch(address, { signal });
  if (answer.ok) return answer.blob();
  throw new ApiError(await reasonOf(answer));
}
