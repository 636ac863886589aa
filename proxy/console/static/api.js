// What the server is asked, and how its errors are told. The key is in this tab's memory alone: sessionStorage.
const KEY = "tollhouse.key";
// An answer is there by then, to its end, unless it is one that may take longer.
const LIMIT_S = 30;

export class ServerError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const session = {
  get key() {
    return sessionStorage.getItem(KEY);
  },
  set key(value) {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  },
};

// The public id in a key.
export const idOf = (key) => /^sk-th_([0-9A-Za-z]+)_/.exec(key ?? "")?.[1];

// Who is told that the key is not good any more.
export const signedOut = new EventTarget();

function headers(key, body) {
  const told = {};
  if (key) told.authorization = `Bearer ${key}`;
  if (body !== undefined) told["content-type"] = "application/json";
  return told;
}

// Why a request that was sent has no answer. Whether the server took it is not known then.
function unanswered(error, method, limit_s) {
  if (!["TypeError", "TimeoutError"].includes(error.name)) return error;
  const late = error.name === "TimeoutError";
  const said = late ? `There was no answer within ${limit_s} s.` : "The server does not answer. Is it running, and is this address still right?";
  return new ServerError(0, method === "GET" ? said : `${said} What was asked may have been done all the same.`);
}

// A header takes no other letters, and the browser would say that there is no server.
function checked(key) {
  if (key && !/^[\x20-\x7e]+$/.test(key)) throw new ServerError(401, "This is no API key: it has letters that no key has.", "invalid_api_key");
}

export async function send(method, path, { body, key = session.key, limit_s = LIMIT_S, signal = AbortSignal.timeout(limit_s * 1000) } = {}) {
  checked(key);
  const options = { method, headers: headers(key, body), signal, cache: "no-store", credentials: "omit" };
  if (body !== undefined) options.body = JSON.stringify(body);
  try {
    return await fetch(path, options);
  } catch (error) {
    throw unanswered(error, method, limit_s);
  }
}

export async function errorOf(response) {
  let told = {};
  try {
    told = (await response.json()).error || {};
  } catch {
    told = { message: `The server answered with status ${response.status}.` };
  }
  return new ServerError(response.status, told.message, told.code);
}

export async function ask(method, path, options = {}) {
  const { key } = session;
  const response = await send(method, path, options);
  if (!response.ok) {
    const error = await errorOf(response);
    // An answer to a key that was here before says nothing of the one that is here now.
    if (error.status === 401 && session.key === key) signedOut.dispatchEvent(new Event("signed-out"));
    throw error;
  }
  try {
    return await response.json();
  } catch (error) {
    throw unanswered(error, method, options.limit_s ?? LIMIT_S);
  }
}

export const get = (path) => ask("GET", path);
export const post = (path, body = {}, options = {}) => ask("POST", path, { body, ...options });
export const patch = (path, body) => ask("PATCH", path, { body });

// A list that comes in parts, as one. `MOST` keeps a page usable where there are very many: then it is `cut`.
export const MOST = 5000;

export async function all(path, field = "data") {
  const rows = [];
  let after = null;
  do {
    const query = new URLSearchParams({ limit: 1000, ...(after === null ? {} : { after }) });
    const part = await get(`${path}?${query}`);
    rows.push(...part[field]);
    after = part.next;
  } while (after !== null && rows.length < MOST);
  return { rows, cut: after !== null };
}

// Server-sent events of an answer, as their data. Lines may come in pieces.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "TypeError" ? new ServerError(0, "The server broke off in the middle of its answer.") : error;
    });
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}
