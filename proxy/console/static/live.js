// Requests as they begin and end. What is in them is never here.
import { errorOf, events, send } from "./api.js";
import { clock, Component, counted, Empty, html, none, number, Problem, seconds, zone } from "./html.js";

// Of those that ended. Of those that a filter is for, as many older ones are kept.
const MOST = 200;
const RETRY_MS = 2000;

const ENDINGS = {
  complete: "done",
  client_gone: "client left",
  client_stalled: "client too slow",
  refused: "refused",
  revoked: "key revoked",
  shutting_down: "server ended",
  upstream_failed: "sidecar failed",
  upstream_refused: "sidecar refused",
  internal: "our error",
};

function wordsOf(sought) {
  return sought.toLowerCase().split(/\s+/).filter(Boolean);
}

// As it stands on the page.
const stateOf = (one) => (one.ended ? `${one.status} ${ENDINGS[one.ending] || one.ending}` : "running");

function fits(one, words) {
  const kind = one.stream ? "stream" : "";
  const told = [one.id, one.key_id, one.tier, one.model, one.endpoint, kind, stateOf(one), one.error_code, one.rule].join(" ").toLowerCase();
  return words.every((word) => told.includes(word));
}

// All that run, and the last that ended: the newest stand last.
function kept(requests, words) {
  let recent = 0;
  let older = 0;
  const keeps = ([, one]) => !one.ended || recent++ < MOST || (words.length > 0 && fits(one, words) && older++ < MOST);
  return new Map([...requests].reverse().filter(keeps).reverse());
}

export class Live extends Component {
  // `held`: what a paused list shows, `requests` and `now` as they were then.
  state = { requests: new Map(), connected: false, lost: 0, error: null, held: null, sought: "", now: Date.now() / 1000 };

  componentDidMount() {
    this.stop = new AbortController();
    this.follow();
    this.timer = setInterval(() => this.setState({ now: Date.now() / 1000 }), 1000);
  }

  componentWillUnmount() {
    this.stop.abort();
    clearInterval(this.timer);
  }

  async follow() {
    while (!this.stop.signal.aborted) {
      const began = Date.now();
      try {
        const response = await send("GET", "/console/data/live", { signal: this.stop.signal });
        if (!response.ok) throw await errorOf(response);
        this.setState({ connected: true, error: null });
        for await (const data of events(response)) this.take(JSON.parse(data));
        // It ends each minute, so that the key is asked for again.
        if (Date.now() - began > RETRY_MS) continue;
      } catch (error) {
        if (this.stop.signal.aborted) return;
        this.setState({ error });
      }
      this.setState({ connected: false });
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }

  take(news) {
    this.setState(({ requests, lost, sought }) => {
      // The whole has all that run, and fewer of those that ended than are here.
      const next = new Map(news.whole ? [...requests].filter(([, one]) => one.ended) : requests);
      for (const one of news.requests) {
        next.delete(one.id);
        next.set(one.id, one);
      }
      return { requests: kept(next, wordsOf(sought)), lost: lost + news.lost };
    });
  }

  pause = () => this.setState(({ held, requests, now }) => ({ held: held === null ? { requests, now } : null }));

  render(_, { connected, lost, error, held, sought, ...state }) {
    const { requests, now } = held ?? state;
    const words = wordsOf(sought);
    const shown = [...kept(requests, words).values()].filter((one) => fits(one, words));
    const rows = [...shown.filter((one) => !one.ended).reverse(), ...shown.filter((one) => one.ended).reverse()];
    const running = [...requests.values()].filter((one) => !one.ended).length;
    return html`
      <div class="page-head">
        <h1>Live</h1>
        <span class=${`state ${connected ? "good" : "bad"}`} role="status"><span class="dot"></span>
          ${connected ? "connected" : "connecting…"}</span>
        <span class="dim">${held ? `paused at ${clock(now)}` : `${counted(running, "request")} running`}</span>
        <input type="search" placeholder="Filter: key, model, status…" aria-label="Filter" value=${sought}
          onInput=${(e) => this.setState({ sought: e.target.value })} />
        <button class="quiet" aria-pressed=${held ? "true" : "false"} onClick=${this.pause}>${held ? "Go on" : "Pause"}</button>
      </div>
      <${Problem} error=${error} />
      ${lost > 0 && html`<p class="notice" role="status">${counted(lost, "event")} came faster than this page could take them, and were left out.</p>`}
      ${rows.length === 0
        ? html`<${Empty} title=${words.length ? "Nothing fits the filter." : "No requests yet."}>
            ${words.length ? "Write less into it." : html`They appear here as they come. Send one from the <a href="#/playground">playground</a>.`}<//>`
        : html`<div class="scroll"><table class="list dense">
            <caption class="sr">Requests, the running ones first</caption>
            <thead><tr>
              <th>Came, ${zone(now)}</th><th>State</th><th>Model</th><th>Endpoint</th><th>Key</th><th>Tier</th>
              <th class="num">Prompt</th><th class="num">Output</th><th class="num">First token</th><th class="num">Took</th><th>Request</th>
            </tr></thead>
            <tbody>${rows.map((one) => html`<${Row} key=${one.id} one=${one} now=${one.ended ? 0 : now} />`)}</tbody>
          </table></div>`}
      <p class="hint">What runs, and the last ${MOST} that ended; with a filter, up to ${MOST} older ones that fit it. What was asked and answered is not here. For older ones: <code>tollhouse log list</code>.</p>`;
  }
}

function Row({ one, now }) {
  const kind = !one.ended ? "run" : one.status >= 500 || (one.ending !== "complete" && one.status === 200) ? "bad" : one.status >= 400 ? "warn" : "good";
  const why = one.rule || one.error_code;
  return html`<tr class=${one.ended ? "" : "running"}>
    <td class="num left">${clock(one.began)}</td>
    <td><span class=${`chip ${kind}`}>${stateOf(one)}</span>${why && html`<code class="more">${why}</code>`}</td>
    <td>${one.model || none}</td>
    <td><code>${one.endpoint.replace(/^\/v1\//, "")}</code>${one.stream ? html` <span class="dim">stream</span>` : ""}</td>
    <td><code>${one.key_id || none}</code></td>
    <td>${one.tier || none}</td>
    <td class="num">${number(one.prompt_tokens)}</td>
    <td class="num">${number(one.completion_tokens)}</td>
    <td class="num">${one.ttft_ms == null ? none : seconds(one.ttft_ms / 1000)}</td>
    <td class="num">${seconds(one.ended ? one.duration_ms / 1000 : Math.max(0, Math.round(now - one.began)))}</td>
    <td><code class="dim" title=${one.id}>…${one.id.slice(-8)}</code></td>
  </tr>`;
}
