// Keys and accounts: who may ask, and how much each has used. Every change goes through the admin API.
import { all, get, post } from "./api.js";
import { ago, Bar, compact, Component, counted, date, Dialog, Empty, Field, html, none, number, Problem, Secret } from "./html.js";

const SCOPES = ["chat", "completions", "responses", "messages", "embeddings", "tokenize", "models"];
const EXPIRIES = [["", "never"], ["7", "in 7 days"], ["30", "in 30 days"], ["90", "in 90 days"], ["365", "in a year"]];
const STATES = { active: "good", expired: "warn", revoked: "bad", disabled: "warn" };
const GRACES = [["0", "at once"], ["3600", "after an hour"], ["86400", "after a day"], ["604800", "after a week"]];
const NEW = "+";

const path = (noun, id, verb) => `/admin/v1/${noun}/${encodeURIComponent(id)}/${verb}`;

export class Keys extends Component {
  state = { keys: null, accounts: [], usage: new Map(), tiers: [], error: null, dialog: null, sought: "", past: false };

  componentDidMount() {
    this.look();
  }

  look = async () => {
    try {
      const [keys, accounts, rows, policy] = await Promise.all([
        all("/admin/v1/keys"), all("/admin/v1/accounts"), all("/admin/v1/usage", "rows"), get("/console/data/policy"),
      ]);
      const usage = new Map(rows.map((row) => [row.key_id, row]));
      this.setState({ keys, accounts, usage, tiers: policy.tiers, error: null });
    } catch (error) {
      this.setState({ error });
    }
  };

  open = (kind, subject = null) => this.setState({ dialog: { kind, subject } });
  close = () => this.setState({ dialog: null });
  done = async () => {
    this.close();
    await this.look();
  };

  shown() {
    const words = this.state.sought.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (key) => words.every((word) => [key.key_id, key.name, key.account, key.tier, key.state].join(" ").toLowerCase().includes(word));
    return this.state.keys
      .filter((key) => (this.state.past || key.state !== "revoked") && has(key))
      .sort((a, b) => a.account.localeCompare(b.account) || a.name.localeCompare(b.name));
  }

  dialog() {
    const { dialog, accounts, tiers } = this.state;
    if (dialog === null) return null;
    const common = { onClose: this.close, onDone: this.done, subject: dialog.subject };
    switch (dialog.kind) {
      case "create": return html`<${CreateKey} ...${common} accounts=${accounts} tiers=${tiers} onMade=${this.look} />`;
      case "rotate": return html`<${RotateKey} ...${common} onMade=${this.look} />`;
      case "revoke": return html`<${Sure} ...${common} title="Revoke this key?" verb="Revoke" go=${() => post(path("keys", dialog.subject.key_id, "revoke"))}>
        <p><b>${dialog.subject.name}</b> (<code>${dialog.subject.key_id}</code>) ends for good, and what runs on it is cut off. This cannot be undone.</p><//>`;
      case "account": return html`<${CreateAccount} ...${common} />`;
      case "disable": return html`<${Sure} ...${common} title="Disable this account?" verb="Disable" go=${() => post(path("accounts", dialog.subject.id, "disable"))}>
        <p>All keys of <b>${dialog.subject.name}</b> are refused from now on, and what runs on them is cut off. You can enable it again.</p><//>`;
      default: return null;
    }
  }

  enable = async (account) => {
    try {
      await post(path("accounts", account.id, "enable"));
      await this.look();
    } catch (error) {
      this.setState({ error });
    }
  };

  render(_, { keys, accounts, usage, error, sought, past }) {
    if (keys === null) return html`<h1>Keys and accounts</h1>${error ? html`<${Problem} error=${error} />` : html`<p class="loading" role="status">Loading…</p>`}`;
    const shown = this.shown();
    const revoked = keys.filter((key) => key.state === "revoked").length;
    return html`
      <div class="page-head">
        <h1>Keys and accounts</h1>
        <input type="search" placeholder="Search: name, id, account, tier…" aria-label="Search keys" value=${sought}
          onInput=${(e) => this.setState({ sought: e.target.value })} />
        ${revoked > 0 && html`<label class="check"><input type="checkbox" checked=${past} onChange=${(e) => this.setState({ past: e.target.checked })} /> show revoked</label>`}
        <button class="primary" id="create-key" onClick=${() => this.open("create")}>New key</button>
      </div>
      <${Problem} error=${error} />
      ${shown.length === 0
        ? html`<${Empty} title=${sought ? "No key fits." : "No keys yet."}>${sought ? "Look for less." : "A key lets a program in. Make the first one with New key."}<//>`
        : html`<div class="scroll"><table class="list" id="keys">
            <caption class="sr">Keys</caption>
            <thead><tr><th>Name</th><th>Key</th><th>Account</th><th>Tier</th><th>State</th><th>Last used</th>
              <th class="num">Requests</th><th>Tokens this month</th><th><span class="sr">Actions</span></th></tr></thead>
            <tbody>${shown.map((key) => html`<${KeyRow} key=${key.key_id} one=${key} usage=${usage.get(key.key_id)} open=${this.open} />`)}</tbody>
          </table></div>`}
      <div class="page-head second">
        <h2>Accounts</h2>
        <button class="quiet" id="create-account" onClick=${() => this.open("account")}>New account</button>
      </div>
      ${accounts.length === 0
        ? html`<${Empty} title="No accounts yet.">An account is who keys belong to. New key makes one, too.<//>`
        : html`<div class="scroll"><table class="list" id="accounts">
            <caption class="sr">Accounts</caption>
            <thead><tr><th>Name</th><th>State</th><th class="num">Keys</th><th class="num">Requests</th><th>Tokens this month</th><th>Since</th><th><span class="sr">Actions</span></th></tr></thead>
            <tbody>${accounts.map((account) => html`<${AccountRow} key=${account.id} one=${account} keys=${keys} usage=${usage} open=${this.open} enable=${this.enable} />`)}</tbody>
          </table></div>`}
      ${this.dialog()}`;
  }
}

function Used({ tokens, limit }) {
  if (limit === null || limit === undefined) return html`<span class="num">${compact(tokens)}</span> <span class="dim">no quota</span>`;
  const share = limit > 0 ? tokens / limit : 1;
  return html`<span class="used"><span class="num">${compact(tokens)} <span class="dim">of ${compact(limit)}</span></span>
    <${Bar} share=${share} label=${`${Math.round(share * 100)} % of the month's tokens`} /></span>`;
}

function KeyRow({ one, usage, open }) {
  const more = [
    one.expires && `expires ${date(one.expires)}`,
    one.models && `models: ${one.models.join(", ")}`,
    one.scopes && `scopes: ${one.scopes.join(", ")}`,
    one.signed && "signs its requests",
    one.old_until && new Date(one.old_until) > new Date() && `old secret until ${date(one.old_until)}`,
  ].filter(Boolean);
  return html`<tr>
    <td><b>${one.name}</b>${more.map((text) => html`<span class="more" key=${text}>${text}</span>`)}</td>
    <td><code>${one.key_id}</code></td>
    <td>${one.account}</td>
    <td>${one.tier}</td>
    <td><span class=${`chip ${STATES[one.state]}`}>${one.state}</span></td>
    <td>${ago(one.last_used)}</td>
    <td class="num">${usage ? number(usage.requests) : none}</td>
    <td>${usage ? html`<${Used} tokens=${usage.total_tokens} limit=${usage.monthly_tokens} />` : none}</td>
    <td class="actions">${one.state !== "revoked" && html`
      ${!one.signed && html`<button class="quiet" aria-label=${`Rotate ${one.name}`} onClick=${() => open("rotate", one)}>Rotate</button>`}
      <button class="quiet danger" aria-label=${`Revoke ${one.name}`} onClick=${() => open("revoke", one)}>Revoke</button>`}</td>
  </tr>`;
}

function AccountRow({ one, keys, usage, open, enable }) {
  const own = keys.filter((key) => key.account === one.name);
  const rows = own.map((key) => usage.get(key.key_id)).filter(Boolean);
  const sum = (field) => rows.reduce((total, row) => total + row[field], 0);
  const limit = one.limits.monthly_tokens;
  return html`<tr>
    <td><b>${one.name}</b> <code class="dim">${one.id}</code></td>
    <td><span class=${`chip ${one.disabled ? "warn" : "good"}`}>${one.disabled ? "disabled" : "active"}</span></td>
    <td class="num">${own.filter((key) => key.state === "active").length}</td>
    <td class="num">${number(sum("requests"))}</td>
    <td><${Used} tokens=${sum("total_tokens")} limit=${typeof limit === "number" ? limit : null} /></td>
    <td>${date(one.created)}</td>
    <td class="actions">${one.disabled
      ? html`<button class="quiet" aria-label=${`Enable ${one.name}`} onClick=${() => enable(one)}>Enable</button>`
      : html`<button class="quiet danger" aria-label=${`Disable ${one.name}`} onClick=${() => open("disable", one)}>Disable</button>`}</td>
  </tr>`;
}

// Asks once more before something that cuts people off.
class Sure extends Component {
  state = { busy: false, error: null };

  go = async (event) => {
    event.preventDefault();
    this.setState({ busy: true, error: null });
    try {
      await this.props.go();
      await this.props.onDone();
    } catch (error) {
      this.setState({ busy: false, error });
    }
  };

  render({ title, verb, children, onClose }, { busy, error }) {
    return html`<${Dialog} title=${title} onClose=${onClose}>
      <form onSubmit=${this.go}>
        ${children}
        <${Problem} error=${error} />
        <div class="buttons">
          <button type="button" class="quiet" onClick=${onClose} autofocus>Cancel</button>
          <button class="primary danger" disabled=${busy}>${verb}</button>
        </div>
      </form>
    <//>`;
  }
}

// A form whose result is a secret, which is shown until the window is closed.
class Making extends Component {
  state = { busy: false, error: null, made: null };

  submit = async (event) => {
    event.preventDefault();
    this.setState({ busy: true, error: null });
    try {
      const made = await this.make();
      this.setState({ made, busy: false });
      this.props.onMade();
    } catch (error) {
      this.setState({ busy: false, error });
    }
  };

  render({ onClose }, { busy, error, made }) {
    if (made !== null) {
      return html`<${Dialog} key="made" title="The key's secret" onClose=${onClose}>
        <p>This is the only time it is shown. Copy it now, and keep it where your program reads it.</p>
        <${Secret} value=${made.secret} label="Secret" />
        <p class="hint">Key <code>${made.key_id}</code>, ${made.account}, tier ${made.tier}.
          ${made.old_until && ` The secret before it is good until ${date(made.old_until)}.`}</p>
        <div class="buttons"><button type="button" class="quiet" onClick=${onClose}>I have copied it</button></div>
      <//>`;
    }
    return html`<${Dialog} key="form" title=${this.title} onClose=${onClose}>
      <form onSubmit=${this.submit}>
        ${this.fields()}
        <${Problem} error=${error} />
        <div class="buttons">
          <button type="button" class="quiet" onClick=${onClose}>Cancel</button>
          <button class="primary" disabled=${busy}>${busy ? "Working…" : this.verb}</button>
        </div>
      </form>
    <//>`;
  }
}

class CreateKey extends Making {
  title = "New key";
  verb = "Make the key";
  state = {
    ...this.state,
    account: this.props.accounts[0]?.name ?? NEW,
    account_name: "",
    tier: this.props.tiers[0]?.name ?? "",
    name: "",
    days: "90",
    models: "",
    scopes: new Set(SCOPES),
    tokens: "",
  };

  async make() {
    const { account, account_name, tier, name, days, models, scopes, tokens } = this.state;
    if (account === NEW) await post("/admin/v1/accounts", { name: account_name.trim() });
    const wanted = { account: account === NEW ? account_name.trim() : account, tier, name: name.trim() };
    if (days) wanted.expires = new Date(Date.now() + days * 86400000).toISOString();
    const served = models.split(",").map((one) => one.trim()).filter(Boolean);
    if (served.length) wanted.models = served;
    if (scopes.size < SCOPES.length) wanted.scopes = [...scopes];
    if (tokens) wanted.limits = { monthly_tokens: Number(tokens) };
    return post("/admin/v1/keys", wanted);
  }

  set = (field) => (event) => this.setState({ [field]: event.target.value });

  toggle = (scope) => (event) => {
    const scopes = new Set(this.state.scopes);
    if (event.target.checked) scopes.add(scope);
    else scopes.delete(scope);
    this.setState({ scopes });
  };

  fields() {
    const { accounts, tiers } = this.props;
    const { account, account_name, tier, name, days, models, scopes, tokens } = this.state;
    return html`
      <${Field} label="Name" hint="What it is for: web, ci, laptop.">
        <input id="key-name" required maxlength="100" autofocus value=${name} onInput=${this.set("name")} /><//>
      <${Field} label="Account"><select id="key-account" value=${account} onChange=${this.set("account")}>
        ${accounts.map((one) => html`<option key=${one.id} value=${one.name}>${one.name}</option>`)}
        <option value=${NEW}>a new account…</option></select><//>
      ${account === NEW && html`<${Field} label="Name of the new account">
        <input id="key-account-name" required maxlength="100" value=${account_name} onInput=${this.set("account_name")} /><//>`}
      <${Field} label="Tier" hint="How much it may use: see Policies."><select id="key-tier" value=${tier} onChange=${this.set("tier")}>
        ${tiers.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}</option>`)}</select><//>
      <${Field} label="Ends"><select value=${days} onChange=${this.set("days")}>
        ${EXPIRIES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>
      <details><summary>More</summary>
        <${Field} label="Models" hint="Served names, with commas between them. Empty: all of its tier.">
          <input value=${models} onInput=${this.set("models")} /><//>
        <${Field} label="Tokens a month" hint="Empty: what its tier says.">
          <input type="number" min="0" step="1" value=${tokens} onInput=${this.set("tokens")} /><//>
        <fieldset><legend>Scopes</legend>${SCOPES.map((scope) => html`<label class="check" key=${scope}>
          <input type="checkbox" checked=${scopes.has(scope)} onChange=${this.toggle(scope)} /> ${scope}</label>`)}</fieldset>
      </details>`;
  }
}

class RotateKey extends Making {
  title = "Rotate this key?";
  verb = "Rotate";
  state = { ...this.state, grace: "86400" };

  make() {
    return post(path("keys", this.props.subject.key_id, "rotate"), { grace_s: Number(this.state.grace) });
  }

  fields() {
    return html`
      <p><b>${this.props.subject.name}</b> (<code>${this.props.subject.key_id}</code>) gets a new secret.</p>
      <${Field} label="The secret so far ends"><select value=${this.state.grace} onChange=${(e) => this.setState({ grace: e.target.value })}>
        ${GRACES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>`;
  }
}

class CreateAccount extends Component {
  state = { name: "", tokens: "", busy: false, error: null };

  submit = async (event) => {
    event.preventDefault();
    const { name, tokens } = this.state;
    this.setState({ busy: true, error: null });
    try {
      await post("/admin/v1/accounts", { name: name.trim(), ...(tokens ? { limits: { monthly_tokens: Number(tokens) } } : {}) });
      await this.props.onDone();
    } catch (error) {
      this.setState({ busy: false, error });
    }
  };

  render({ onClose }, { name, tokens, busy, error }) {
    return html`<${Dialog} title="New account" onClose=${onClose}>
      <form onSubmit=${this.submit}>
        <${Field} label="Name"><input id="account-name" required maxlength="100" autofocus value=${name} onInput=${(e) => this.setState({ name: e.target.value })} /><//>
        <${Field} label="Tokens a month, all its keys together" hint="Empty: what their tiers say.">
          <input type="number" min="0" step="1" value=${tokens} onInput=${(e) => this.setState({ tokens: e.target.value })} /><//>
        <${Problem} error=${error} />
        <div class="buttons">
          <button type="button" class="quiet" onClick=${onClose}>Cancel</button>
          <button class="primary" disabled=${busy}>Make the account</button>
        </div>
      </form>
    <//>`;
  }
}
