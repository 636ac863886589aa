// Traffic, speed, errors, queues and quotas of the last minutes.
import { get } from "./api.js";
import { Chart } from "./chart.js";
import { Bar, compact, Component, counted, Empty, html, none, number, percent, Problem, seconds, shortly } from "./html.js";

const SPANS = [[5, "5 min"], [15, "15 min"], [60, "1 hour"]];
const BANDS = [["0_50", "under half"], ["50_80", "50 to 80 %"], ["80_95", "80 to 95 %"], ["95_100", "95 to 100 %"], ["over", "used up"]];
// Types of errors, in an operator's words.
const ERRORS = {
  invalid_request_error: "wrong request or key",
  requests: "too many requests",
  tokens: "too many tokens a minute",
  insufficient_quota: "quota used up",
  service_unavailable_error: "not available",
  server_error: "server fault",
  _other: "other",
};
// An hour of five seconds each.
const MOST = 720;

function Tile({ name, value, hint }) {
  return html`<div class="tile"><span class="tile-name">${name}</span><span class="tile-value">${value}</span><span class="hint">${hint}</span></div>`;
}

function quantiles(samples, of) {
  return ["p50", "p95", "p99"].map((name) => ({ name, values: samples.map((one) => (one[of] ? one[of][name] : null)) }));
}

export class Overview extends Component {
  state = { samples: null, minutes: 15, error: null };

  componentDidMount() {
    this.look();
    this.timer = setInterval(() => document.hidden || this.look(), 5000);
  }

  componentWillUnmount() {
    clearInterval(this.timer);
  }

  // One at a time: what comes twice would be drawn twice.
  async look() {
    if (this.looking) return;
    this.looking = true;
    const before = this.state.samples || [];
    const after = before.length ? before[before.length - 1].at : 0;
    try {
      const found = await get(`/console/data/samples?after=${after}`);
      this.setState({ samples: [...before, ...found.samples].slice(-MOST), error: null });
    } catch (error) {
      this.setState({ error });
    }
    this.looking = false;
  }

  charts(shown) {
    const times = shown.map((one) => one.at);
    const line = (name, of) => ({ name, values: shown.map(of) });
    const engines = [...new Set(shown.flatMap((one) => Object.keys(one.engines)))];
    const kinds = [...new Set(shown.flatMap((one) => Object.keys(one.errors)))].sort();
    const errors = kinds.length ? kinds.map((kind) => ({ ...line(ERRORS[kind] ?? kind, (one) => one.errors[kind] || 0), hint: kind })) : [line("errors", () => 0)];
    const waiting = (one) => one.queued + Object.values(one.engines).reduce((sum, of) => sum + (of ? of.waiting : 0), 0);
    return html`<div class="charts">
      <${Chart} title="Requests per second" times=${times} format=${compact} lines=${[line("requests", (one) => one.requests_per_s)]} />
      <${Chart} title="Tokens per second" times=${times} format=${compact} least=${10}
        lines=${[line("output", (one) => one.tokens_out_per_s), line("prompt", (one) => one.tokens_in_per_s)]} />
      <${Chart} title="Latency" times=${times} format=${seconds} axis=${shortly} least=${0.1} lines=${quantiles(shown, "latency")} />
      <${Chart} title="Time to first token" times=${times} format=${seconds} axis=${shortly} least=${0.1} lines=${quantiles(shown, "first_token")} />
      <${Chart} title="In progress and waiting" times=${times} format=${compact} least=${4}
        lines=${[line("in progress", (one) => one.in_progress), line("waiting", waiting)]} />
      <${Chart} key=${engines.join()} title="KV cache in use" times=${times} format=${percent} most=${1}
        lines=${engines.map((name) => line(name, (one) => one.engines[name]?.kv_used ?? null))} />
      <${Chart} key=${kinds.join()} title="Errors by type, per 5 s" times=${times} format=${compact} least=${4} lines=${errors} />
      <${Bands} bands=${shown[shown.length - 1].bands} />
      <${Sidecars} upstreams=${this.props.server.upstreams} engines=${shown[shown.length - 1].engines} />
    </div>`;
  }

  render({ server }, { samples, minutes, error }) {
    const head = html`<div class="page-head">
      <h1>Overview</h1>
      <div class="spans" role="group" aria-label="Span">
        ${SPANS.map(([span, name]) => html`<button key=${span} class="quiet" aria-pressed=${span === minutes ? "true" : "false"}
          onClick=${() => this.setState({ minutes: span })}>${name}</button>`)}
      </div>
    </div>`;
    if (!samples || !samples.length) {
      return html`${head}<${Problem} error=${error} />
        <${Empty} title="Nothing measured yet.">The first sample is here within ten seconds of the server's start.<//>`;
    }
    const last = samples[samples.length - 1];
    const shown = samples.filter((one) => one.at > last.at - minutes * 60);
    const engines = Object.values(last.engines).filter(Boolean);
    return html`${head}
      <${Problem} error=${error} />
      ${server.policy_problems.length > 0 && html`<div class="problem" role="alert"><strong>The policy files are wrong.</strong>
        Revision ${server.policy_revision} stays in force. ${server.policy_problems[0]}</div>`}
      <div class="tiles">
        <${Tile} name="Requests" value=${`${compact(last.requests_per_s)} / s`} hint=${`${counted(last.in_progress, "request")} in progress`} />
        <${Tile} name="Tokens out" value=${`${compact(last.tokens_out_per_s)} / s`} hint=${`${compact(last.tokens_in_per_s)} / s of prompts`} />
        <${Tile} name="Latency, p95" value=${last.latency ? seconds(last.latency.p95) : none} hint=${last.latency ? `half within ${seconds(last.latency.p50)}` : "no request in the last minute"} />
        <${Tile} name="First token, p95" value=${last.first_token ? seconds(last.first_token.p95) : none} hint=${last.first_token ? `half within ${seconds(last.first_token.p50)}` : "no answer in the last minute"} />
        <${Tile} name="KV cache" value=${engines.length ? percent(Math.max(...engines.map((one) => one.kv_used))) : none} hint=${engines.length ? `${counted(engines.reduce((sum, one) => sum + one.running, 0), "sequence")} running` : "no sidecar answers"} />
        <${Tile} name="Keys in use" value=${number(last.active)} hint="within five minutes" />
      </div>
      ${this.charts(shown)}
      <p class="hint">A sample each five seconds, of the last hour at most, kept in memory. Tokens count when their request ends.
        Percentiles are those of the minute before. For longer, see the dashboards of Prometheus and Grafana.</p>`;
  }
}

function Sidecars({ upstreams, engines }) {
  return html`<section class="chart">
    <h3>Sidecars</h3>
    <div class="flow"><table class="bands"><thead><tr><th>Name</th><th>State</th><th class="num">Running</th><th class="num">Waiting</th></tr></thead>
      <tbody>${upstreams.map(({ name, ready, reason, models }) => html`<tr key=${name}>
        <td><b>${name}</b><span class="more">${models.join(", ")}</span></td>
        <td><span class=${`chip ${ready ? "good" : "bad"}`}>${ready ? "ready" : reason}</span></td>
        <td class="num">${number(engines[name]?.running)}</td><td class="num">${number(engines[name]?.waiting)}</td></tr>`)}</tbody></table></div>
  </section>`;
}

function Bands({ bands }) {
  const total = Object.values(bands).reduce((sum, count) => sum + count, 0);
  return html`<section class="chart">
    <h3>Keys by monthly quota used</h3>
    ${total === 0
      ? html`<p class="chart-empty">No key has a monthly quota. See <a href="#/keys">Keys and accounts</a>.</p>`
      : html`<table class="bands quota"><tbody>${BANDS.map(([id, name]) => html`<tr key=${id}>
          <th scope="row">${name}</th>
          <td class="wide"><${Bar} plain share=${(bands[id] || 0) / total} label=${`${bands[id] || 0} of ${total}`} /></td>
          <td class="num">${number(bands[id] || 0)}</td></tr>`)}</tbody></table>`}
  </section>`;
}
