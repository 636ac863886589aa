// What was done to keys and accounts, and by whom: the audit log, the newest first.
import { all, get } from "./api.js";
import { Component, createRef, date, Empty, html, keepFocus, Problem } from "./html.js";

const AT_ONCE = 100;
const ACTIONS = {
  "account.create": "account made",
  "account.update": "account changed",
  "account.disable": "account disabled",
  "account.enable": "account enabled",
  "key.create": "key made",
  "key.update": "key changed",
  "key.rotate": "key rotated",
  "key.revoke": "key revoked",
};

// A field's value in words; `names` are those of keys and accounts, by their ids.
function told(value, names) {
  if (value === null) return "none";
  if (Array.isArray(value)) return value.join(", ") || "none";
  if (typeof value === "object") return Object.entries(value).map(([name, one]) => `${name} ${one}`).join(", ");
  return /^\d{4}-\d\d-\d\dT/.test(value) ? date(value) : (names.get(value) ?? String(value));
}

// What keys and accounts are called now, by their ids.
async function namesNow() {
  const [keys, accounts] = await Promise.all([all("/admin/v1/keys"), all("/admin/v1/accounts")]);
  return new Map([...keys.rows.map((one) => [one.key_id, one.name]), ...accounts.rows.map((one) => [one.id, one.name])]);
}

// `part`: the id of the key or account whose history it is; without it, everybody's.
export class History extends Component {
  state = { events: null, next: null, names: new Map(), error: null };
  looks = 0;
  place = createRef();

  componentDidMount() {
    this.look();
  }

  componentDidUpdate({ part }) {
    if (part === this.props.part) return;
    this.setState({ events: null, next: null });
    this.look();
  }

  // From the newest on, or what follows what is here.
  look = async (after = null) => {
    const turn = ++this.looks;
    const { part } = this.props;
    const query = new URLSearchParams({ limit: AT_ONCE, ...(part && { target: part }), ...(after && { after }) });
    try {
      const [found, names] = await Promise.all([get(`/admin/v1/audit?${query}`), after === null ? namesNow() : this.state.names]);
      if (turn !== this.looks) return;
      this.setState(({ events }) => ({ events: after === null ? found.data : [...events, ...found.data], next: found.next, names, error: null }), () => after !== null && keepFocus(this.place.current));
    } catch (error) {
      if (turn === this.looks) this.setState({ error });
    }
  };

  render({ part }, { events, next, names, error }) {
    return html`
      <div class="page-head">
        <h1>History${part && html` of ${names.get(part) ?? ""} <code>${part}</code>`}</h1>
        ${part && html`<a href="#/history">Show everybody's</a>`}
        <button class="quiet" onClick=${() => this.look()}>Look again</button>
      </div>
      <${Problem} error=${error} />
      ${events === null
        ? !error && html`<p class="loading" role="status">Loading…</p>`
        : events.length === 0
          ? html`<${Empty} title="Nothing was done yet.">What is done to keys and accounts is told here, whoever does it.<//>`
          : html`<div class="scroll"><table class="list" id="history" ref=${this.place} tabindex="-1">
              <caption class="sr">What was done, the newest first</caption>
              <thead><tr><th>When</th><th>What</th><th>To</th><th>By</th><th>Changes</th></tr></thead>
              <tbody>${events.map((one) => html`<${Row} key=${one.id} one=${one} names=${names} />`)}</tbody>
            </table></div>`}
      ${next !== null && html`<p class="buttons"><button class="quiet" onClick=${() => this.look(next)}>Show older</button></p>`}
      <p class="hint">No secret is ever here, and nothing here can be changed. On the server: <code>tollhouse audit list</code>.</p>`;
  }
}

function Row({ one, names }) {
  return html`<tr>
    <td>${date(one.time, { second: "2-digit" })}</td>
    <td>${ACTIONS[one.action] ?? one.action}</td>
    <td class="name"><${Who} id=${one.target} names=${names} link /></td>
    <td class="name"><${Who} id=${one.actor} names=${names} />${one.address && html`<span class="more">from ${one.address}</span>`}</td>
    <td>${Object.entries(one.changes).map(([name, [old, now]]) => html`<span class="more" key=${name}>
      ${name.replace(/_id$/, "").replaceAll("_", " ")}: ${!one.action.endsWith(".create") && `${told(old, names)} → `}<b>${told(now, names)}</b></span>`)}</td>
  </tr>`;
}

// A key or an account by name and id; who has no name is called by what the log has.
function Who({ id, names, link }) {
  const code = html`<code>${id}</code>`;
  return html`${names.has(id) && html`<b>${names.get(id)}</b> `}${link ? html`<a href=${`#/history/${id}`}>${code}</a>` : code}`;
}
