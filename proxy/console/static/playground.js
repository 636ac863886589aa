// A chat with the real model through the real gate, with any key: its limits hold, and what it uses is charged to it.
import { errorOf, events, get, idOf, post, send } from "./api.js";
import { compact, Component, createRef, Field, html, keepFocus, none, number, Problem, rounded, seconds } from "./html.js";

const MODELS = "/console/v1/models";
const CHAT = "/console/v1/chat/completions";
// An answer that was cut is settled when the sidecar has said what it came to.
const SETTLED_TRIES = 40;
const SETTLED_EVERY_MS = 250;
// Nearer than this to its end, the conversation is followed.
const NEAR_PX = 40;

const NOT_SETTLED = { row: null, limits: [], unread: null };

// The request in the log, once it has ended. Its id begins with the millisecond in which it came.
async function ended(keyId, requestId) {
  const came = parseInt(requestId.slice("req_".length, 16), 16);
  const query = new URLSearchParams({ key: keyId, since: new Date(came).toISOString(), until: new Date(came + 2).toISOString() });
  for (let tries = 0; tries < SETTLED_TRIES; tries++) {
    const row = (await get(`/admin/v1/log?${query}`)).data.find((one) => one.request_id === requestId);
    if (row?.ended) return row;
    await new Promise((done) => setTimeout(done, SETTLED_EVERY_MS));
  }
  return null;
}

export class Playground extends Component {
  state = {
    key: "", models: [], model: this.props.server.upstreams.flatMap((one) => one.models)[0] ?? "", temperature: "0.7", most: "256", system: "",
    text: "", turns: [], busy: false, error: null, keyError: null, figures: null, ...NOT_SETTLED, status: null, requestId: null,
  };
  turns = createRef();
  message = createRef();

  componentWillUnmount() {
    this.stop?.abort();
  }

  // Whether the end is to be seen after this change: it was, something was asked, or the page is shown again.
  getSnapshotBeforeUpdate(was, before) {
    const { scrollHeight, scrollTop, clientHeight } = this.turns.current;
    return (this.props.shown && !was.shown) || this.state.turns.length > before.turns.length || scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  componentDidUpdate(was, __, follow) {
    if (this.props.shown && !was.shown) {
      this.listedFor = undefined;
      this.listModels();
    }
    if (follow) this.turns.current.scrollTop = this.turns.current.scrollHeight;
  }

  set = (field) => (event) => this.setState({ [field]: event.target.value });

  listModels = async () => {
    const key = this.state.key.trim();
    if (!key || key === this.listedFor) return;
    this.listedFor = key;
    const asked = () => key === this.state.key.trim();
    try {
      const response = await send("GET", MODELS, { key });
      if (!response.ok) throw await errorOf(response);
      const models = (await response.json()).data.map((one) => one.id);
      if (asked()) this.setState({ models, model: models.includes(this.state.model) ? this.state.model : models[0] ?? "", keyError: null });
    } catch (error) {
      if (!asked()) return;
      // The next look may do better.
      this.listedFor = undefined;
      this.setState({ models: [], keyError: error });
    }
  };

  ask = async (event) => {
    event.preventDefault();
    const { text, turns, busy } = this.state;
    if (busy || !text.trim()) return;
    const asked = [...turns, { role: "user", content: text.trim() }];
    const asking = (this.asking = { keyId: idOf(this.state.key.trim()), model: this.state.model });
    this.stop = new AbortController();
    this.setState({ turns: [...asked, { role: "assistant", content: "" }], text: "", busy: true, error: null, figures: null, ...NOT_SETTLED, status: null });
    const began = performance.now();
    try {
      await this.stream(asked, began, asking);
    } catch (error) {
      if (error.name !== "AbortError") {
        // What was not answered is given back, to be sent again.
        this.setState(({ turns: now }) => (now[now.length - 1].content ? { error } : { error, turns, text }));
      }
    }
    // The button that had the focus may be gone.
    this.setState({ busy: false }, () => keepFocus(this.message.current));
    await this.settle(asking);
  };

  // What the ledger has of it, and what is left of the limits now that nothing is set aside for it.
  async settle(asking) {
    const { keyId, model, status, requestId } = asking;
    if (keyId === undefined || status === undefined || status === 401) return;
    let found;
    try {
      const row = status < 400 ? await ended(keyId, requestId) : null;
      found = { row, limits: (await post("/admin/v1/explain", { key: keyId, model })).explained.says };
    } catch (error) {
      found = { unread: error };
    }
    if (this.asking === asking) this.setState(found);
  }

  async stream(asked, began, asking) {
    const { key, model, temperature, most, system } = this.state;
    const messages = system.trim() ? [{ role: "system", content: system.trim() }, ...asked] : asked;
    const body = { model, messages, stream: true, stream_options: { include_usage: true } };
    if (temperature !== "") body.temperature = Number(temperature);
    if (most !== "") body.max_tokens = Number(most);
    const response = await send("POST", CHAT, { body, key: key.trim(), signal: this.stop.signal });
    Object.assign(asking, { status: response.status, requestId: response.headers.get("x-request-id") });
    this.setState({ status: asking.status, requestId: asking.requestId });
    if (!response.ok) throw await errorOf(response);
    let first = null;
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw Object.assign(new Error(piece.error.message), { code: piece.error.code });
      const now = performance.now();
      const added = piece.choices?.[0]?.delta?.content || "";
      if (added && first === null) first = now;
      if (added) this.add(added);
      const figures = { first: first === null ? null : (first - began) / 1000, total: (now - began) / 1000, reason: piece.choices?.[0]?.finish_reason };
      this.setState(({ figures: before }) => ({
        figures: { ...before, ...figures, reason: figures.reason || before?.reason, usage: piece.usage || before?.usage, decode: first === null ? null : (now - first) / 1000 },
      }));
    }
  }

  add(text) {
    this.setState(({ turns }) => {
      const last = turns[turns.length - 1];
      return { turns: [...turns.slice(0, -1), { ...last, content: last.content + text }] };
    });
  }

  startOver = () => this.setState({ turns: [], figures: null, error: null, ...NOT_SETTLED, status: null }, () => keepFocus(this.message.current));

  press = (event) => {
    // Enter also ends a word of an input method, which is not sent yet.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.ask(event);
  };

  settings() {
    const { key, models, model, temperature, most, system, keyError } = this.state;
    return html`<section class="card settings" aria-label="Settings">
      <${Field} label="API key" hint="Any key, not the admin key. It stays on this page.">
        <input id="api-key" type="password" autocomplete="off" spellcheck="false" value=${key} onInput=${this.set("key")} onBlur=${this.listModels} /><//>
      <${Problem} error=${keyError} />
      <${Field} label="Model">
        ${models.length
          ? html`<select id="model" value=${model} onChange=${this.set("model")}>${models.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select>`
          : html`<input id="model" value=${model} onInput=${this.set("model")} spellcheck="false" />`}<//>
      <div class="row">
        <${Field} label="Temperature"><input type="number" min="0" max="2" step="0.1" value=${temperature} onInput=${this.set("temperature")} /><//>
        <${Field} label="Max tokens"><input id="most" type="number" min="1" step="1" value=${most} onInput=${this.set("most")} /><//>
      </div>
      <${Field} label="System message"><textarea rows="3" value=${system} onInput=${this.set("system")}></textarea><//>
    </section>`;
  }

  render(_, { key, turns, text, busy, error }) {
    return html`
      <div class="page-head"><h1>Playground</h1>
        <span class="dim">The real model, through the real gate. What it uses is charged to the key.</span></div>
      <div class="play">
        <div class="side">${this.settings()}<${Figures} ...${this.state} /></div>
        <section class="card chat" aria-label="Conversation">
          <div class="turns" id="turns" ref=${this.turns} aria-live="polite" aria-busy=${busy ? "true" : "false"}>
            ${turns.length === 0 && html`<div class="empty"><p class="empty-title">Nothing asked yet.</p><p>${key ? "Write something below." : "Paste an API key, and write something below."}</p></div>`}
            ${turns.map((turn, i) => html`<div key=${i} class=${`turn ${turn.role}`}><span class="who">${turn.role === "user" ? "You" : "Model"}</span>
              <div class="said">${turn.content || (busy && i === turns.length - 1 ? html`<span class="dim">…</span>` : html`<span class="dim">nothing</span>`)}</div></div>`)}
          </div>
          <${Problem} error=${error} />
          <form onSubmit=${this.ask} class="ask">
            <textarea id="message" ref=${this.message} rows="3" aria-label="Message" placeholder="Ask something. Enter sends, Shift+Enter begins a line." value=${text} onInput=${this.set("text")} onKeyDown=${this.press}></textarea>
            <div class="buttons">
              ${turns.length > 0 && html`<button type="button" class="quiet" disabled=${busy} onClick=${this.startOver}>Start over</button>`}
              ${busy
                ? html`<button type="button" class="primary" id="stop" onClick=${() => this.stop.abort()}>Stop</button>`
                : html`<button class="primary" id="send" disabled=${!text.trim() || !key.trim()}>Send</button>`}
            </div>
          </form>
        </section>
      </div>`;
  }
}

function Figures({ figures, row, limits, unread, status, requestId }) {
  if (status === null) return null;
  const usage = figures?.usage;
  const used = row ?? (usage && { ...usage, cached_tokens: usage.prompt_tokens_details?.cached_tokens });
  const speed = usage && figures.decode > 0 && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / figures.decode : null;
  const rows = [
    ["Status", String(status)],
    ["First token after", seconds(figures?.first)],
    ["Took", seconds(figures?.total)],
    ["Tokens per second", speed === null ? none : rounded(speed)],
    ["Prompt tokens", used ? `${number(used.prompt_tokens)}${used.cached_tokens ? `, ${number(used.cached_tokens)} cached` : ""}` : none],
    ["Output tokens", number(used?.completion_tokens)],
    ["Charged", used ? `${number(used.prompt_tokens + used.completion_tokens)} tokens` : none],
    ["Ended by", figures?.reason || row?.reason?.replace("_", " ") || none],
  ];
  return html`<section class="card" id="figures" aria-label="Figures">
    <h2>This answer</h2>
    <table class="pairs"><tbody>${rows.map(([name, value]) => html`<tr key=${name}><th scope="row">${name}</th><td class="num">${value}</td></tr>`)}</tbody></table>
    ${limits.length > 0 && html`<h3>Left of the key's limits</h3>
      <table class="pairs"><tbody>${limits.map((one) => html`<tr key=${one.rule}><th scope="row">${one.rule}</th>
        <td class="num">${number(Math.max(0, one.limit - one.used))} of ${compact(one.limit)}<span class="more">${one.whose}</span></td></tr>`)}</tbody></table>`}
    <${Problem} error=${unread} />
    <p class="hint"><code>${requestId}</code></p>
  </section>`;
}
