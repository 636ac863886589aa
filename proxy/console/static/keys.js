// Keys and accounts: who may ask, and how much each has used. Every change goes through the admin API.
import { all, get, idOf, MOST, post, session } from "./api.js";
import { Sure } from "./form.js";
import { ChangeAccount, ChangeKey, CreateAccount, CreateKey, LIMITS, path, RotateKey, SCOPES } from "./forms.js";
import { ago, Bar, compact, Component, counted, createRef, Cut, date, Empty, html, inOrder, keepFocus, none, number, Problem } from "./html.js";

const STATES = { active: "good", expired: "warn", revoked: "bad", disabled: "warn" };
const NOTHING = { good: 0, tiers: [], requests: 0, total_tokens: 0 };
const ENDED = ["revoked", "expired"];
const ROWS = 200;
const LOOK_EVERY_MS = 60000;

// What is searched for of a key, in its `words`, and what the keys of each account come to; the order is that of the page.
function indexed(keys, usage) {
  const accounts = new Map();
  for (const key of keys) {
    key.words = [key.key_id, key.name, key.account, key.tier, key.state].join(" ").toLowerCase();
    const sum = accounts.get(key.account) ?? NOTHING;
    const used = usage.get(key.key_id);
    const good = !ENDED.includes(key.state);
    accounts.set(key.account, {
      good: sum.good + good,
      tiers: good && !sum.tiers.includes(key.tier) ? [...sum.tiers, key.tier] : sum.tiers,
      requests: sum.requests + (used?.requests ?? 0),
      total_tokens: sum.total_tokens + (used?.total_tokens ?? 0),
    });
  }
  keys.sort((a, b) => inOrder(a.account, b.account) || inOrder(a.name, b.name));
  return accounts;
}

// Those that the admin key in use can give: it gives no more than it has. Who comes over the admin socket has none, and may all.
async function givable() {
  const id = idOf(session.key);
  const own = id === undefined ? null : (await get(`/admin/v1/keys/${id}`)).scopes;
  return own === null ? SCOPES : SCOPES.filter((scope) => own.includes(scope));
}

export class Keys extends Component {
  state = {
    keys: null, accounts: [], sums: new Map(), usage: new Map(), tiers: [], scopes: [], cut: false,
    error: null, dialog: null, sought: "", past: false,
  };
  looks = 0;
  search = createRef();

  componentDidMount() {
    this.look();
    this.timer = setInterval(() => document.hidden || this.state.dialog || this.look(), LOOK_EVERY_MS);
  }

  componentWillUnmount() {
    clearInterval(this.timer);
  }

  look = async (shown) => {
    const turn = ++this.looks;
    const found = await this.found();
    // What was asked later is what holds.
    if (turn === this.looks) this.setState(found, shown);
  };

  async found() {
    try {
      const [keys, accounts, used, policy, scopes] = await Promise.all([
        all("/admin/v1/keys"), all("/admin/v1/accounts"), all("/admin/v1/usage", "rows"), get("/console/data/policy"), givable(),
      ]);
      const usage = new Map(used.rows.map((row) => [row.key_id, row]));
      const sums = indexed(keys.rows, usage);
      return {
        keys: keys.rows, accounts: accounts.rows, sums, usage, tiers: policy.tiers, scopes,
        cut: keys.cut || accounts.cut, error: null,
      };
    } catch (error) {
      return { error };
    }
  }

  open = (kind, subject = null) => this.setState({ dialog: { kind, subject } });
  close = () => this.setState({ dialog: null });
  done = async () => {
    this.close();
    // Where a row is gone, it had the focus.
    await this.look(() => keepFocus(this.search.current));
  };

  // Those that fit what is sought, and those of the keys that are left out because they have ended.
  fits() {
    const words = this.state.sought.toLowerCase().split(/\s+/).filter(Boolean);
    const fitting = (told) => words.every((word) => told.includes(word));
    const fit = this.state.keys.filter((key) => fitting(key.words));
    const shown = this.state.past ? fit : fit.filter((key) => !ENDED.includes(key.state));
    const owners = new Set(fit.map((key) => key.account));
    const accounts = this.state.accounts.filter((one) => owners.has(one.name) || fitting(`${one.name} ${one.id}`.toLowerCase()));
    return { shown, hidden: fit.length - shown.length, accounts };
  }

  dialog() {
    const { dialog, accounts, tiers, scopes } = this.state;
    if (dialog === null) return null;
    const common = { onClose: this.close, onDone: this.done, subject: dialog.subject };
    switch (dialog.kind) {
      case "create": return html`<${CreateKey} ...${common} accounts=${accounts} tiers=${tiers} scopes=${scopes} onMade=${this.look} />`;
      case "change": return html`<${ChangeKey} ...${common} tiers=${tiers} scopes=${scopes} />`;
      case "rotate": return html`<${RotateKey} ...${common} onMade=${this.look} />`;
      case "revoke": return html`<${Sure} ...${common} title="Revoke this key?" verb="Revoke" go=${() => post(path("keys", dialog.subject.key_id, "revoke"))}>
        <p><b>${dialog.subject.name}</b> (<code>${dialog.subject.key_id}</code>) ends for good, and what runs on it is cut off. This cannot be undone.</p><//>`;
      case "account": return html`<${CreateAccount} ...${common} />`;
      case "change-account": return html`<${ChangeAccount} ...${common} />`;
      case "disable": return html`<${Sure} ...${common} title="Disable this account?" verb="Disable" go=${() => post(path("accounts", dialog.subject.id, "disable"))}>
        <p>All keys of <b>${dialog.subject.name}</b> are refused from now on, and what runs on them is cut off. You can enable it again.</p><//>`;
      case "enable": return html`<${Sure} ...${common} title="Enable this account?" verb="Enable" harms=${false} go=${() => post(path("accounts", dialog.subject.id, "enable"))}>
        <p>The keys of <b>${dialog.subject.name}</b> that are still good are let in again.</p><//>`;
      default: return null;
    }
  }

  render(_, { keys, accounts: known, sums, usage, tiers, cut, error, sought, past }) {
    if (keys === null) return html`<h1>Keys and accounts</h1>${error ? html`<${Problem} error=${error} />` : html`<p class="loading" role="status">Loading…</p>`}`;
    const { shown, hidden, accounts } = this.fits();
    const ended = keys.some((key) => ENDED.includes(key.state));
    return html`
      <div class="page-head">
        <h1>Keys and accounts</h1>
        <input type="search" placeholder="Search: name, id, account, tier…" aria-label="Search keys and accounts" value=${sought} ref=${this.search}
          onInput=${(e) => this.setState({ sought: e.target.value })} />
        ${ended && html`<label class="check"><input type="checkbox" checked=${past} onChange=${(e) => this.setState({ past: e.target.checked })} /> show ended</label>`}
        <button class="primary" id="create-key" onClick=${() => this.open("create")}>New key</button>
      </div>
      <${Problem} error=${error} />
      ${cut && html`<${Cut} most=${MOST} command="tollhouse keys list --account NAME" />`}
      ${shown.length === 0
        ? html`<${NoKeys} sought=${sought} hidden=${hidden} />`
        : html`<div class="scroll"><table class="list" id="keys">
            <caption class="sr">Keys</caption>
            <thead><tr><th>Name</th><th>Key</th><th>Account</th><th>Tier</th><th>State</th><th>Last used</th>
              <th>Requests this month</th><th>Tokens this month</th><th><span class="sr">Actions</span></th></tr></thead>
            <${Rows} all=${shown} columns="9" row=${(key) => html`<${KeyRow} key=${key.key_id} one=${key} usage=${usage.get(key.key_id)} open=${this.open} />`} />
          </table></div>`}
      <div class="page-head second">
        <h2>Accounts</h2>
        <button class="quiet" id="create-account" onClick=${() => this.open("account")}>New account</button>
      </div>
      ${accounts.length === 0
        ? known.length > 0
          ? html`<${Empty} title="No account fits.">Look for less.<//>`
          : html`<${Empty} title="No accounts yet.">An account is who keys belong to. New key makes one, too.<//>`
        : html`<div class="scroll"><table class="list" id="accounts">
            <caption class="sr">Accounts</caption>
            <thead><tr><th>Name</th><th>State</th><th class="num">Keys</th><th>Requests this month</th><th>Tokens this month</th><th>Since</th><th><span class="sr">Actions</span></th></tr></thead>
            <${Rows} all=${accounts} columns="7" row=${(one) => html`<${AccountRow} key=${one.id} one=${one} sum=${sums.get(one.name)} tiers=${tiers} open=${this.open} />`} />
          </table></div>`}
      ${this.dialog()}`;
  }
}

function NoKeys({ sought, hidden }) {
  if (hidden > 0) return html`<${Empty} title=${sought ? "No key fits that is still good." : "No key is good any more."}>${counted(hidden, "key")} that ended: choose "show ended".<//>`;
  if (sought) return html`<${Empty} title="No key fits.">Look for less.<//>`;
  return html`<${Empty} title="No keys yet.">A key lets a program in. Make the first one with New key.<//>`;
}

// The rows of a table: as many as can be read, and the others when they are asked for.
class Rows extends Component {
  state = { most: ROWS };

  more = () => this.setState(({ most }) => ({ most: most + ROWS }));

  render({ all: rows, columns, row }, { most }) {
    const left = rows.length - most;
    return html`<tbody>${rows.slice(0, most).map(row)}</tbody>
      ${left > 0 && html`<tfoot><tr><td colspan=${columns}><button class="quiet" onClick=${this.more}>Show ${number(Math.min(ROWS, left))} more of ${number(left)}</button></td></tr></tfoot>`}`;
  }
}

function Used({ used, limit, unit }) {
  if (typeof limit !== "number") return html`<span class="num">${compact(used)}</span> <span class="dim">no quota</span>`;
  const share = limit > 0 ? used / limit : 1;
  return html`<span class="used"><span class="num">${compact(used)} <span class="dim">of ${compact(limit)}</span></span>
    <${Bar} share=${share} label=${`${Math.round(share * 100)} % of the month's ${unit}`} /></span>`;
}

function KeyRow({ one, usage, open }) {
  const more = [
    one.expires && `expires ${date(one.expires)}`,
    one.models && `models: ${one.models.join(", ")}`,
    one.scopes && `scopes: ${one.scopes.join(", ")}`,
    ...Object.entries(one.limits).map(([name, limit]) => `${LIMITS[name].toLowerCase()}: ${typeof limit === "number" ? number(limit) : limit}`),
    one.allow_from.length > 0 && `allowed from: ${one.allow_from.join(", ")}`,
    one.deny_from.length > 0 && `denied from: ${one.deny_from.join(", ")}`,
    one.signed && "signs its requests",
    one.old_until && new Date(one.old_until) > new Date() && `old secret until ${date(one.old_until)}`,
  ].filter(Boolean);
  return html`<tr>
    <td class="name"><b>${one.name}</b>${more.map((text) => html`<span class="more" key=${text}>${text}</span>`)}</td>
    <td><a href=${`#/history/${one.key_id}`} title="What was done to it"><code>${one.key_id}</code></a></td>
    <td class="name">${one.account}</td>
    <td>${one.tier}</td>
    <td><span class=${`chip ${STATES[one.state]}`}>${one.state}</span></td>
    <td>${ago(one.last_used)}</td>
    <td>${usage ? html`<${Used} used=${usage.requests} limit=${usage.monthly_requests} unit="requests" />` : none}</td>
    <td>${usage ? html`<${Used} used=${usage.total_tokens} limit=${usage.monthly_tokens} unit="tokens" />` : none}</td>
    <td class="actions">${one.state !== "revoked" && html`
      <button class="quiet" aria-label=${`Change ${one.name}`} onClick=${() => open("change", one)}>Change</button>
      ${!one.signed && html`<button class="quiet" aria-label=${`Rotate ${one.name}`} onClick=${() => open("rotate", one)}>Rotate</button>`}
      <button class="quiet danger" aria-label=${`Revoke ${one.name}`} onClick=${() => open("revoke", one)}>Revoke</button>`}</td>
  </tr>`;
}

// What all keys of an account may use in a month: the account's own limit, or the least that the tiers of its keys give it.
function quotaOf(account, name, tiers) {
  const own = account.limits[name];
  if (own !== null && own !== undefined) return own;
  const given = tiers.map((tier) => tier[`account_${name}`]).filter((limit) => typeof limit === "number");
  return given.length > 0 ? Math.min(...given) : null;
}

function AccountRow({ one, sum = NOTHING, tiers, open }) {
  const its = tiers.filter((tier) => sum.tiers.includes(tier.name));
  return html`<tr>
    <td class="name"><b>${one.name}</b> <a href=${`#/history/${one.id}`} title="What was done to it"><code>${one.id}</code></a></td>
    <td><span class=${`chip ${one.disabled ? "warn" : "good"}`}>${one.disabled ? "disabled" : "active"}</span></td>
    <td class="num">${number(sum.good)}</td>
    <td><${Used} used=${sum.requests} limit=${quotaOf(one, "monthly_requests", its)} unit="requests" /></td>
    <td><${Used} used=${sum.total_tokens} limit=${quotaOf(one, "monthly_tokens", its)} unit="tokens" /></td>
    <td>${date(one.created)}</td>
    <td class="actions">
      <button class="quiet" aria-label=${`Change ${one.name}`} onClick=${() => open("change-account", one)}>Change</button>
      ${one.disabled
      ? html`<button class="quiet" aria-label=${`Enable ${one.name}`} onClick=${() => open("enable", one)}>Enable</button>`
      : html`<button class="quiet danger" aria-label=${`Disable ${one.name}`} onClick=${() => open("disable", one)}>Disable</button>`}</td>
  </tr>`;
}
