// The windows in which keys and accounts are made and changed.
import { idOf, patch, post, session } from "./api.js";
import { Form } from "./form.js";
import { date, Field, html, number } from "./html.js";

// What a key may do that has no scopes of its own.
export const SCOPES = ["chat", "completions", "responses", "messages", "embeddings", "tokenize", "models"];
const EXPIRIES = [["", "never"], ["7", "in 7 days"], ["30", "in 30 days"], ["90", "in 90 days"], ["365", "in a year"]];
const GRACES = [["0", "at once"], ["3600", "after an hour"], ["86400", "after a day"], ["604800", "after a week"]];
// No account is called so.
const NEW = "";
const AS_NOW = "as now";
// What a key may have of its own instead of what its tier says.
export const LIMITS = {
  requests_per_minute: "Requests a minute",
  tokens_per_minute: "Tokens a minute",
  concurrency: "Requests at once",
  monthly_requests: "Requests a month",
  monthly_tokens: "Tokens a month",
  max_output_tokens: "Output tokens, at most",
  default_output_tokens: "Output tokens, if none are asked for",
};
const ACCOUNT_LIMITS = ["monthly_requests", "monthly_tokens"];
const UNLIMITED = "unlimited";

export const path = (noun, id, verb) => `/admin/v1/${noun}/${encodeURIComponent(id)}${verb ? `/${verb}` : ""}`;

const joined = (words) => (words ?? []).join(", ");
const split = (text) => text.split(",").map((one) => one.trim()).filter(Boolean);

// A limit as the admin API takes it; null is none of its own.
function limitOf(name, text = "") {
  const said = text.trim();
  if (said === "" || said === UNLIMITED) return said || null;
  if (!/^[1-9]\d{0,14}$/.test(said)) throw new Error(`"${LIMITS[name]}" is a whole number from 1 on, or ${UNLIMITED}.`);
  return Number(said);
}

// What is asked for under a name; the browser lets one of spaces through.
function nameOf(text) {
  const name = text.trim();
  if (!name) throw new Error("A name has at least one letter.");
  return name;
}

const limitsOf = (names, texts) => Object.fromEntries(names.map((name) => [name, limitOf(name, texts[name])]));
const textsOf = (limits) => Object.fromEntries(Object.entries(limits).map(([name, limit]) => [name, String(limit ?? "")]));

// What is not as it was, of two that have the same fields.
function changes(now, before) {
  return Object.fromEntries(Object.entries(now).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name])));
}

// Changes one, if there is anything to change.
async function change(noun, id, { limits, ...now }, { limits: limitsBefore, ...before }) {
  const own = changes(limits, limitsBefore);
  const told = { ...changes(now, before), ...(Object.keys(own).length > 0 ? { limits: own } : {}) };
  if (Object.keys(told).length > 0) await patch(path(noun, id), told);
}

// `given`: what holds where a limit is not its own.
function Limits({ names, texts, given, onInput }) {
  const set = (name) => (event) => onInput({ ...texts, [name]: event.target.value });
  return html`<fieldset><legend>Limits of its own</legend>
    <p class="hint">A number, or ${UNLIMITED}. Empty: what stands there in grey.</p>
    <div class="limits">${names.map((name) => html`<${Field} key=${name} label=${LIMITS[name]}>
      <input inputmode="numeric" autocomplete="off" data-limit=${name} placeholder=${given(name)} value=${texts[name] ?? ""} onInput=${set(name)} /><//>`)}</div>
  </fieldset>`;
}

// --- keys ---

// What a key's fields say, and the same as the admin API takes it. Null is what every key has that has none of its own.
const written = (key) => ({
  name: key.name,
  tier: key.tier,
  models: joined(key.models),
  allow_from: joined(key.allow_from),
  deny_from: joined(key.deny_from),
  scopes: new Set(key.scopes ?? SCOPES),
  limits: textsOf(key.limits),
});

function asked({ name, tier, models, allow_from, deny_from, scopes, limits }) {
  const served = split(models);
  if (scopes.size === 0) throw new Error("A key has at least one scope.");
  const usual = scopes.size === SCOPES.length && SCOPES.every((scope) => scopes.has(scope));
  return {
    name: nameOf(name),
    tier,
    models: served.length > 0 ? served : null,
    allow_from: split(allow_from),
    deny_from: split(deny_from),
    scopes: usual ? null : [...scopes].sort(),
    limits: limitsOf(Object.keys(LIMITS), limits),
  };
}

class KeyForm extends Form {
  expiries = EXPIRIES;

  // Nothing, if it ends when it did so far.
  end() {
    const { days } = this.state;
    if (days === AS_NOW) return {};
    return { expires: days ? new Date(Date.now() + days * 86400000).toISOString() : null };
  }

  toggle = (scope) => (event) => {
    const scopes = new Set(this.state.scopes);
    if (event.target.checked) scopes.add(scope);
    else scopes.delete(scope);
    this.setState({ scopes });
  };

  given = (name) => {
    const tier = this.props.tiers.find((one) => one.name === this.state.tier);
    return tier === undefined ? "" : tier[name] === null ? UNLIMITED : number(tier[name]);
  };

  fields() {
    const { tiers, scopes: own } = this.props;
    const { name, tier, days, models, allow_from, deny_from, scopes, limits } = this.state;
    const names = tiers.map((one) => one.name);
    return html`
      <${Field} label="Name" hint="What it is for: web, ci, laptop.">
        <input id="key-name" required maxlength="100" autofocus value=${name} onInput=${this.set("name")} /><//>
      ${this.owner()}
      <${Field} label="Tier" hint="How much it may use: see Policies."><select id="key-tier" value=${tier} onChange=${this.set("tier")}>
        ${(names.includes(tier) ? names : [tier, ...names]).map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select><//>
      <${Field} label="Ends"><select id="key-ends" value=${days} onChange=${this.set("days")}>
        ${this.expiries.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>
      <details><summary>More</summary>
        <${Field} label="Models" hint="Served names, with commas between them. Empty: all of its tier.">
          <input id="key-models" value=${models} onInput=${this.set("models")} /><//>
        <${Limits} names=${Object.keys(LIMITS)} texts=${limits} given=${this.given} onInput=${(texts) => this.setState({ limits: texts })} />
        <${Field} label="Allowed from" hint="Networks, with commas between them: 192.0.2.0/24. Empty: everywhere.">
          <input id="key-allow" value=${allow_from} onInput=${this.set("allow_from")} /><//>
        <${Field} label="Denied from" hint="Networks it may not come from, also where it is allowed from.">
          <input id="key-deny" value=${deny_from} onInput=${this.set("deny_from")} /><//>
        <fieldset><legend>Scopes</legend>${SCOPES.map((scope) => html`<label class="check" key=${scope}>
          <input type="checkbox" checked=${scopes.has(scope)} disabled=${!own.includes(scope)} onChange=${this.toggle(scope)} /> ${scope}</label>`)}</fieldset>
      </details>`;
  }
}

export class CreateKey extends KeyForm {
  title = "New key";
  verb = "Make the key";
  state = {
    ...this.state,
    ...written({ name: "", tier: this.props.tiers[0]?.name ?? "", scopes: this.props.scopes, limits: {} }),
    account: this.props.accounts[0]?.name ?? NEW,
    account_name: "",
    days: "90",
  };

  go = async () => {
    const wanted = asked(this.state);
    const { account, account_name } = this.state;
    const owner = account === NEW ? await this.makeAccount(nameOf(account_name)) : account;
    return post("/admin/v1/keys", { account: owner, ...wanted, ...this.end() });
  };

  // It is there from now on, whatever becomes of the key.
  async makeAccount(name) {
    await post("/admin/v1/accounts", { name });
    this.setState({ account: name });
    await this.props.onMade();
    return name;
  }

  owner() {
    const { account, account_name } = this.state;
    const names = [...new Set([...this.props.accounts.map((one) => one.name), account])].filter((one) => one !== NEW);
    return html`
      <${Field} label="Account"><select id="key-account" value=${account} onChange=${this.set("account")}>
        ${names.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}
        <option value=${NEW}>a new account…</option></select><//>
      ${account === NEW && html`<${Field} label="Name of the new account">
        <input id="key-account-name" required maxlength="100" value=${account_name} onInput=${this.set("account_name")} /><//>`}`;
  }

  fields() {
    return html`
      ${this.props.scopes.length === 0 && html`<p class="notice">A key gives others no more scopes than it has, and the admin key in use has none of these. Sign in with another to make a key.</p>`}
      ${super.fields()}`;
  }
}

export class ChangeKey extends KeyForm {
  title = "Change this key";
  verb = "Save";
  expiries = [[AS_NOW, `as now: ${this.props.subject.expires ? date(this.props.subject.expires) : "never"}`], ...EXPIRIES];
  before = written(this.props.subject);
  state = { ...this.state, ...this.before, days: AS_NOW };

  go = () => change("keys", this.props.subject.key_id, { ...asked(this.state), ...this.end() }, asked(this.before));

  owner() {
    const { key_id, account } = this.props.subject;
    return html`<p class="hint">Key <code>${key_id}</code> of ${account}. What is changed holds from its next request on.</p>`;
  }
}

export class RotateKey extends Form {
  title = "Rotate this key?";
  verb = "Rotate";
  state = { ...this.state, grace: "86400" };

  go = async () => {
    const made = await post(path("keys", this.props.subject.key_id, "rotate"), { grace_s: Number(this.state.grace) });
    // Who rotates the key in use goes on with its new secret.
    if (idOf(session.key) === made.key_id) session.key = made.secret;
    return made;
  };

  fields() {
    return html`
      <p><b>${this.props.subject.name}</b> (<code>${this.props.subject.key_id}</code>) gets a new secret.</p>
      <${Field} label="The secret so far ends"><select value=${this.state.grace} onChange=${this.set("grace")}>
        ${GRACES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select><//>`;
  }
}

// --- accounts ---

class AccountForm extends Form {
  asked({ name, limits }) {
    return { name: nameOf(name), limits: limitsOf(ACCOUNT_LIMITS, limits) };
  }

  fields() {
    const { name, limits } = this.state;
    return html`
      <${Field} label="Name"><input id="account-name" required maxlength="100" autofocus value=${name} onInput=${this.set("name")} /><//>
      <${Limits} names=${ACCOUNT_LIMITS} texts=${limits} given=${() => "as its tiers say"} onInput=${(texts) => this.setState({ limits: texts })} />
      <p class="hint">All its keys together, in a month.</p>`;
  }
}

export class CreateAccount extends AccountForm {
  title = "New account";
  verb = "Make the account";
  state = { ...this.state, name: "", limits: {} };

  go = () => post("/admin/v1/accounts", this.asked(this.state));
}

export class ChangeAccount extends AccountForm {
  title = "Change this account";
  verb = "Save";
  before = { name: this.props.subject.name, limits: textsOf(this.props.subject.limits) };
  state = { ...this.state, ...this.before };

  go = () => change("accounts", this.props.subject.id, this.asked(this.state), this.asked(this.before));
}
