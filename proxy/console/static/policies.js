// The policy in force, what it says of a key, and what another one would have said of recorded requests.
import { all, get, MOST, post } from "./api.js";
import { Component, counted, Cut, date, Empty, Field, html, inOrder, none, number, Problem } from "./html.js";

// The server ends it after two minutes.
const SIMULATION_S = 150;
const DAYS = [["1", "the last day"], ["7", "the last 7 days"], ["30", "the last 30 days"]];
// Why a key that is not active is refused before any rule.
const REFUSED = { expired: "the key is expired", revoked: "the key is revoked", "account disabled": "the key's account is disabled" };
const VERDICTS = { allowed: "good", waits: "warn", shadow: "warn", refused: "bad" };
// Rules that no tier has set are left out, but for these.
const ALWAYS = ["requests_per_minute", "tokens_per_minute", "concurrency", "monthly_requests", "monthly_tokens", "max_output_tokens", "default_output_tokens", "models", "priority"];
const LIMITS = /requests|tokens|concurrency|addresses|prompts/;
const PLAIN = { weight: 1, cache_scope: "account", response_retention_days: 0, max_wait_s: 0, max_waiting: 0, replay: "off", idempotency_bodies: false };

function words(rule, value) {
  if (value === null || value === undefined) return LIMITS.test(rule) ? "unlimited" : none;
  if (Array.isArray(value)) return value.length ? [...value].sort().join(", ") : none;
  if (typeof value === "object") return Object.keys(value).length ? JSON.stringify(value) : none;
  return typeof value === "number" ? number(value) : String(value);
}

function isSet(rule, value) {
  if (ALWAYS.includes(rule)) return true;
  if (rule in PLAIN) return value !== PLAIN[rule];
  return words(rule, value) !== none && words(rule, value) !== "unlimited";
}

const called = (key) => `${key.account} / ${key.name}`;

// Comments are for those who read the files: what is tried is below them.
const bare = (text) => text.replace(/^\s*#.*\n/gm, "").trimStart();

// Changes when the files are read again, and when they are wrong.
const state = (server) => [server.policy_revision, ...server.policy_problems].join("\n");

export class Policies extends Component {
  // `keys` are offered; `names` are of the revoked ones, too.
  state = { policy: null, keys: [], names: new Map(), cut: false, error: null };

  componentDidMount() {
    if (this.props.shown) this.look();
  }

  componentDidUpdate(before) {
    const { shown, server } = this.props;
    if (shown && (!before.shown || state(before.server) !== state(server))) this.look();
  }

  async look() {
    try {
      const [policy, { rows, cut }] = await Promise.all([get("/console/data/policy"), all("/admin/v1/keys")]);
      const names = new Map(rows.map((key) => [key.key_id, called(key)]));
      const keys = rows.filter((key) => key.state !== "revoked").sort((a, b) => inOrder(called(a), called(b)));
      this.setState({ policy, keys, names, cut, error: null });
    } catch (error) {
      this.setState({ error });
    }
  }

  render({ server }, { policy, keys, names, cut, error }) {
    if (policy === null) return html`<h1>Policies</h1>${error ? html`<${Problem} error=${error} />` : html`<p class="loading" role="status">Loading…</p>`}`;
    const models = [...new Set(server.upstreams.flatMap((one) => one.models))];
    return html`
      <div class="page-head"><h1>Policies</h1><span class="dim">revision <code>${policy.revision}</code> from ${policy.files.map((file) => file.name).join(", ")}</span></div>
      ${server.policy_problems.length > 0 && html`<div class="problem" role="alert">
        <strong>The files as they are now are wrong, so this revision stays in force.</strong>
        <ul>${server.policy_problems.map((text) => html`<li key=${text}><code>${text}</code></li>`)}</ul></div>`}
      <${Problem} error=${error} />
      <${Tiers} tiers=${policy.tiers} />
      ${cut && html`<${Cut} most=${MOST} command="tollhouse policy explain --key ID" />`}
      <div class="two">
        <${Explain} keys=${keys} models=${models} />
        <${Simulate} files=${policy.files} keys=${keys} names=${names} />
      </div>`;
  }
}

function Tiers({ tiers }) {
  const rules = Object.keys(tiers[0]).filter((rule) => rule !== "name" && tiers.some((tier) => isSet(rule, tier[rule])));
  return html`<section class="card"><h2>Tiers</h2><div class="scroll"><table class="list tiers" id="tiers">
    <caption class="sr">Rules of each tier</caption>
    <thead><tr><th>Rule</th>${tiers.map((tier) => html`<th class="num" key=${tier.name}>${tier.name}</th>`)}</tr></thead>
    <tbody>${rules.map((rule) => html`<tr key=${rule}><th scope="row"><code>${rule}</code></th>
      ${tiers.map((tier) => html`<td class="num" key=${tier.name}>
        <span class=${words(rule, tier[rule]) === "unlimited" ? "dim" : ""}>${words(rule, tier[rule])}</span>
        ${tier.shadow.includes(rule) && html` <span class="chip warn">shadow</span>`}</td>`)}</tr>`)}</tbody>
  </table></div></section>`;
}

// Thousands of keys are not gone through again for each letter that is written beside them.
class KeyChoice extends Component {
  shouldComponentUpdate({ keys, value }) {
    return keys !== this.props.keys || value !== this.props.value;
  }

  render({ keys, value, onChange, children }) {
    return html`<select value=${value} onChange=${(e) => onChange(e.target.value)}>
      ${children}${keys.map((one) => html`<option key=${one.key_id} value=${one.key_id}>${called(one)} (${one.key_id})</option>`)}</select>`;
  }
}

class Explain extends Component {
  state = {
    key: "", model: this.props.models[0] ?? "", prompt: "", most: "", found: null, error: null, busy: false,
  };

  // One that was revoked meanwhile is offered no more.
  get key() {
    const { keys } = this.props;
    return (keys.find((one) => one.key_id === this.state.key) ?? keys[0])?.key_id ?? "";
  }

  // Without a model, a prompt has no size.
  wanted() {
    const { key } = this;
    const { model, prompt, most } = this.state;
    if (!model) return { key };
    if (!prompt && !most) return { key, model };
    const request = { model, messages: [{ role: "user", content: prompt }], ...(most ? { max_tokens: Number(most) } : {}) };
    return { key, model, request };
  }

  go = async (event) => {
    event.preventDefault();
    this.setState({ busy: true, error: null });
    try {
      this.setState({ found: await post("/admin/v1/explain", this.wanted()), busy: false });
    } catch (error) {
      this.setState({ found: null, error, busy: false });
    }
  };

  set = (field) => (event) => this.setState({ [field]: event.target.value });
  choose = (key) => this.setState({ key });

  render({ keys, models }, { model, prompt, most, found, error, busy }) {
    return html`<section class="card" id="explain"><h2>Explain</h2>
      <p class="hint">Which rules a key meets on a model, where each comes from, and what it says now. Nothing is taken.</p>
      ${keys.length === 0
        ? html`<${Empty} title="No keys yet.">Make one under <a href="#/keys">Keys and accounts</a>.<//>`
        : html`<form onSubmit=${this.go}>
            <div class="row">
              <${Field} label="Key"><${KeyChoice} keys=${keys} value=${this.key} onChange=${this.choose} /><//>
              <${Field} label="Model"><select value=${model} onChange=${this.set("model")}>
                ${models.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}<option value="">any</option></select><//>
            </div>
            <${Field} label="Prompt" hint="Empty, and without max tokens: as for the least that a request takes.">
              <textarea id="explain-prompt" rows="2" disabled=${!model} value=${prompt} onInput=${this.set("prompt")}></textarea><//>
            <div class="row">
              <${Field} label="Max tokens"><input id="explain-most" type="number" min="1" step="1" disabled=${!model} value=${most} onInput=${this.set("most")} /><//>
              <button class="primary" disabled=${busy}>Explain</button>
            </div>
          </form>`}
      <${Problem} error=${error} />
      ${found && html`<${Explained} found=${found} />`}
    </section>`;
  }
}

function Explained({ found }) {
  const said = found.explained;
  const says = new Map(said.says.map((one) => [one.rule, one]));
  const [verdict, why] = found.state === "active" ? [said.verdict, said.refused_by ? ` by ${said.refused_by}` : ""] : ["refused", `: ${REFUSED[found.state]}`];
  return html`<p role="status">Key ${found.name} is <b>${found.state}</b>, tier <b>${said.tier}</b>. A request now:${" "}
      <span class=${`chip ${VERDICTS[verdict]}`}>${verdict}${why}</span></p>
    ${said.cost && html`<p class="hint"><b>${counted(said.cost.total, "token")}</b> would be set aside: ${number(said.cost.prompt_tokens)} for the
      prompt, ${said.cost.exact ? "as counted" : "at most, by its bytes"}, and ${number(said.cost.output_tokens)} for the answer.</p>`}
    ${said.remarks.map((remark) => html`<p class="hint" key=${remark}>${remark}</p>`)}
    <div class="scroll"><table class="list"><caption class="sr">Rules of this key</caption>
      <thead><tr><th>Rule</th><th class="num">Value</th><th>From</th><th class="num">Used</th><th>Now</th></tr></thead>
      <tbody>${said.rules.map((rule) => {
        const now = says.get(rule.rule);
        return html`<tr key=${rule.rule}><th scope="row"><code>${rule.rule}</code></th>
          <td class="num">${words(rule.rule, rule.value)}</td>
          <td>${rule.source}${rule.place && html`<span class="more" title=${rule.place}>${rule.place.split("/").pop()}</span>`}</td>
          <td class="num">${now ? number(now.used) : none}</td>
          <td>${now ? html`<span class=${`chip ${VERDICTS[now.verdict]}`}>${now.verdict}</span>` : none}
            ${now?.retry_after_s ? html`<span class="more">in ${Math.ceil(now.retry_after_s)} s</span>` : ""}</td></tr>`;
      })}</tbody></table></div>`;
}

class Simulate extends Component {
  state = { written: {}, file: "", days: "1", key: "", outcome: null, error: null, busy: false };

  // The files as they are now, but for those that were written in here.
  texts() {
    const files = this.props.files.length ? this.props.files : [{ name: "policy.yaml", text: "" }];
    return Object.fromEntries(files.map(({ name, text }) => [name, this.state.written[name] ?? bare(text)]));
  }

  get key() {
    return this.props.keys.some((one) => one.key_id === this.state.key) ? this.state.key : "";
  }

  go = async (event) => {
    event.preventDefault();
    this.setState({ busy: true, error: null, outcome: null });
    const { key } = this;
    try {
      const wanted = { files: this.texts(), days: Number(this.state.days), ...(key ? { key_id: key } : {}) };
      this.setState({ outcome: await post("/console/data/simulate", wanted, { limit_s: SIMULATION_S }), busy: false });
    } catch (error) {
      this.setState({ error, busy: false });
    }
  };

  write = (file) => (event) => {
    const text = event.target.value;
    this.setState(({ written }) => ({ written: { ...written, [file]: text } }));
  };
  choose = (key) => this.setState({ key });

  render({ keys, names }, { written, file: chosen, days, outcome, error, busy }) {
    const texts = this.texts();
    const files = Object.keys(texts);
    const file = files.includes(chosen) ? chosen : files[0];
    return html`<section class="card" id="simulate"><h2>Simulate</h2>
      <p class="hint">Change the text and see who would have been refused. The requests of the ledger come again as they came. Nothing is changed or charged.</p>
      <form onSubmit=${this.go}>
        ${files.length > 1 && html`<${Field} label="File" hint="They are tried together, as each is written here.">
          <select id="candidate-file" value=${file} onChange=${(e) => this.setState({ file: e.target.value })}>
            ${files.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select><//>`}
        <${Field} label="Candidate policy"><textarea class="mono" rows="14" spellcheck="false" wrap="off" value=${texts[file]} onInput=${this.write(file)}></textarea><//>
        <div class="row">
          <${Field} label="Requests of"><select value=${days} onChange=${(e) => this.setState({ days: e.target.value })}>
            ${DAYS.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>
          <${Field} label="Key"><${KeyChoice} keys=${keys} value=${this.key} onChange=${this.choose}><option value="">all keys</option><//><//>
          ${Object.keys(written).length > 0 && html`<button type="button" class="quiet" onClick=${() => this.setState({ written: {} })}>Back to the files</button>`}
          <button class="primary" disabled=${busy}>${busy ? "Simulating…" : "Simulate"}</button>
        </div>
      </form>
      <${Problem} error=${error} />
      ${outcome && (outcome.report
        ? html`<${Report} report=${outcome.report} names=${names} />`
        : html`<div class="problem" role="alert"><strong>This policy is wrong.</strong>
            <ul>${outcome.problems.map((text) => html`<li key=${text}><code>${text}</code></li>`)}</ul></div>`)}
    </section>`;
  }
}

function Report({ report, names }) {
  const refused = report.by_key.filter((one) => one.refused || one.shadow);
  return html`<p role="status"><b>${counted(report.requests, "request")}</b>: ${number(report.let_in)} let in,${" "}
      <span class=${`chip ${report.refused ? "bad" : "good"}`}>${number(report.refused)} refused</span></p>
    ${report.remarks.map((remark) => html`<p class="hint" key=${remark}>${remark}</p>`)}
    ${report.requests === 0 && html`<${Empty} title="No requests in this time.">Take more days, or all keys.<//>`}
    ${refused.length > 0 && html`
      <${Totals} title="By key" rows=${refused} name=${(one) => names.get(one.name) || one.name} />
      <${Totals} title="By rule" rows=${report.by_rule} name=${(one) => one.name} />
      <h3>The first refusals</h3>
      <div class="scroll"><table class="list"><thead><tr><th>When</th><th>Key</th><th>Model</th><th>Rule</th></tr></thead>
        <tbody>${report.refusals.slice(0, 20).map((one) => html`<tr key=${one.request_id}><td>${date(one.at)}</td>
          <td class="name">${names.get(one.key_id) || one.key_id}</td><td>${one.model}</td>
          <td><code>${one.rule || `${one.shadow.join(", ")} (shadow)`}</code></td></tr>`)}</tbody></table></div>`}`;
}

function Totals({ title, rows, name }) {
  return html`<h3>${title}</h3><div class="scroll"><table class="list"><thead><tr><th>Name</th><th class="num">Requests</th><th class="num">Refused</th><th class="num">Only in shadow</th></tr></thead>
    <tbody>${rows.map((one) => html`<tr key=${one.name}><td class="name">${name(one)}</td><td class="num">${number(one.requests)}</td>
      <td class="num">${number(one.refused)}</td><td class="num">${number(one.shadow)}</td></tr>`)}</tbody></table></div>`;
}
