// The windows in which keys and accounts are made and changed.
import { idOf, post, session } from "./api.js";
import { Component, date, Dialog, Field, html, Problem, Secret } from "./html.js";

// What a key may do that has no scopes of its own.
export const SCOPES = ["chat", "completions", "responses", "messages", "embeddings", "tokenize", "models"];
const EXPIRIES = [["", "never"], ["7", "in 7 days"], ["30", "in 30 days"], ["90", "in 90 days"], ["365", "in a year"]];
const GRACES = [["0", "at once"], ["3600", "after an hour"], ["86400", "after a day"], ["604800", "after a week"]];
// No account is called so.
const NEW = "";

export const path = (noun, id, verb) => `/admin/v1/${noun}/${encodeURIComponent(id)}/${verb}`;

// Asks once more before something that cuts people off.
export class Sure extends Component {
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
    return html`<${Dialog} title=${title} held=${busy} onClose=${onClose}>
      <form onSubmit=${this.go}>
        ${children}
        <${Problem} error=${error} />
        <div class="buttons">
          <button type="button" class="quiet" disabled=${busy} onClick=${onClose} autofocus>Cancel</button>
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
      return html`<${Dialog} key="made" title="The key's secret" held onClose=${onClose}>
        <p>This is the only time it is shown. Copy it now, and keep it where your program reads it.</p>
        <${Secret} value=${made.secret} label="Secret" />
        <p class="hint">Key <code>${made.key_id}</code>, ${made.account}, tier ${made.tier}.
          ${made.old_until && ` The secret before it is good until ${date(made.old_until)}.`}</p>
        <div class="buttons"><button type="button" class="quiet" onClick=${onClose}>I have copied it</button></div>
      <//>`;
    }
    return html`<${Dialog} key="form" title=${this.title} held=${busy} onClose=${onClose}>
      <form onSubmit=${this.submit}>
        ${this.fields()}
        <${Problem} error=${error} />
        <div class="buttons">
          <button type="button" class="quiet" disabled=${busy} onClick=${onClose}>Cancel</button>
          <button class="primary" disabled=${busy}>${busy ? "Working…" : this.verb}</button>
        </div>
      </form>
    <//>`;
  }
}

export class CreateKey extends Making {
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
    scopes: new Set(this.props.scopes),
    tokens: "",
  };

  async make() {
    const { account, account_name, tier, name, days, models, scopes, tokens } = this.state;
    const wanted = { account: account === NEW ? await this.makeAccount(account_name.trim()) : account, tier, name: name.trim() };
    if (days) wanted.expires = new Date(Date.now() + days * 86400000).toISOString();
    const served = models.split(",").map((one) => one.trim()).filter(Boolean);
    if (served.length) wanted.models = served;
    if (scopes.size < SCOPES.length) wanted.scopes = [...scopes];
    if (tokens) wanted.limits = { monthly_tokens: Number(tokens) };
    return post("/admin/v1/keys", wanted);
  }

  // It is there from now on, whatever becomes of the key.
  async makeAccount(name) {
    await post("/admin/v1/accounts", { name });
    this.setState({ account: name });
    await this.props.onMade();
    return name;
  }

  set = (field) => (event) => this.setState({ [field]: event.target.value });

  toggle = (scope) => (event) => {
    const scopes = new Set(this.state.scopes);
    if (event.target.checked) scopes.add(scope);
    else scopes.delete(scope);
    this.setState({ scopes });
  };

  fields() {
    const { accounts, tiers, scopes: own } = this.props;
    const { account, account_name, tier, name, days, models, scopes, tokens } = this.state;
    const names = [...new Set([...accounts.map((one) => one.name), account])].filter((one) => one !== NEW);
    return html`
      ${own.length === 0 && html`<p class="notice">A key gives others no more scopes than it has, and the admin key in use has none of these. Sign in with another to make a key.</p>`}
      <${Field} label="Name" hint="What it is for: web, ci, laptop.">
        <input id="key-name" required maxlength="100" autofocus value=${name} onInput=${this.set("name")} /><//>
      <${Field} label="Account"><select id="key-account" value=${account} onChange=${this.set("account")}>
        ${names.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}
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
          <input type="checkbox" checked=${scopes.has(scope)} disabled=${!own.includes(scope)} onChange=${this.toggle(scope)} /> ${scope}</label>`)}</fieldset>
      </details>`;
  }
}

export class RotateKey extends Making {
  title = "Rotate this key?";
  verb = "Rotate";
  state = { ...this.state, grace: "86400" };

  async make() {
    const made = await post(path("keys", this.props.subject.key_id, "rotate"), { grace_s: Number(this.state.grace) });
    // Who rotates the key in use goes on with its new secret.
    if (idOf(session.key) === made.key_id) session.key = made.secret;
    return made;
  }

  fields() {
    return html`
      <p><b>${this.props.subject.name}</b> (<code>${this.props.subject.key_id}</code>) gets a new secret.</p>
      <${Field} label="The secret so far ends"><select value=${this.state.grace} onChange=${(e) => this.setState({ grace: e.target.value })}>
        ${GRACES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>`;
  }
}

export class CreateAccount extends Component {
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
    return html`<${Dialog} title="New account" held=${busy} onClose=${onClose}>
      <form onSubmit=${this.submit}>
        <${Field} label="Name"><input id="account-name" required maxlength="100" autofocus value=${name} onInput=${(e) => this.setState({ name: e.target.value })} /><//>
        <${Field} label="Tokens a month, all its keys together" hint="Empty: what their tiers say.">
          <input type="number" min="0" step="1" value=${tokens} onInput=${(e) => this.setState({ tokens: e.target.value })} /><//>
        <${Problem} error=${error} />
        <div class="buttons">
          <button type="button" class="quiet" disabled=${busy} onClick=${onClose}>Cancel</button>
          <button class="primary" disabled=${busy}>Make the account</button>
        </div>
      </form>
    <//>`;
  }
}
