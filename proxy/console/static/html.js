// Preact and htm together, and the words and numbers that every page writes.
import { Component, createRef, h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);
export { Component, createRef, render };

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const none = "–";

export function number(value) {
  return value === null || value === undefined ? none : whole.format(value);
}

export function compact(value) {
  if (value === null || value === undefined) return none;
  return Math.abs(value) < 10000 ? rounded(value) : short.format(value);
}

export function rounded(value) {
  if (value === 0) return "0";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return whole.format(value) === "0" || digits ? String(Number(value.toFixed(digits))) : whole.format(value);
}

export function seconds(value) {
  if (value === null || value === undefined) return none;
  if (value === 0) return "0 s";
  if (value < 1) return `${rounded(value * 1000)} ms`;
  const full = Math.round(value);
  if (full < 60) return `${rounded(value)} s`;
  return full < 3600 ? `${Math.floor(full / 60)} min ${full % 60} s` : `${rounded(value / 3600)} h`;
}

// The same in few letters, for the side of a chart.
export function shortly(value) {
  return value < 60 ? seconds(value) : `${rounded(value / 60)} min`;
}

export function percent(value) {
  return value === null || value === undefined ? none : `${rounded(value * 100)} %`;
}

// Times are those of the browser's zone, which is told with them. The CLI's, and a quota's month, are UTC.
const DATE = { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short" };

export function date(text, more = {}) {
  if (!text) return none;
  return new Date(text).toLocaleString("en-GB", { ...DATE, ...more });
}

export function zone(at) {
  const parts = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(at * 1000);
  return parts.find((part) => part.type === "timeZoneName").value;
}

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString("en-GB");
}

export function ago(text) {
  if (!text) return "never";
  const past = (Date.now() - new Date(text)) / 1000;
  if (past < 90) return "just now";
  if (past < 5400) return `${Math.round(past / 60)} min ago`;
  return past < 129600 ? `${Math.round(past / 3600)} h ago` : `${Math.round(past / 86400)} days ago`;
}

export function counted(count, noun) {
  return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}

export const inOrder = new Intl.Collator("en").compare;

// A field with its label. `hint` stands below it.
export function Field({ label, hint, children }) {
  return html`<label class="field"><span class="label">${label}</span>${children}${hint && html`<span class="hint">${hint}</span>`}</label>`;
}

// `place`: a ref, for who brings it into sight.
export function Problem({ error, place }) {
  if (!error) return null;
  return html`<div class="problem" role="alert" ref=${place}>
    <strong>${error.title || "That did not work."}</strong> ${error.message || String(error)}
    ${error.code && html` <code>${error.code}</code>`}
  </div>`;
}

// Whose is the focus, where what had it is gone or can be used no more.
export function keepFocus(element) {
  const { activeElement } = document;
  if (activeElement === document.body || activeElement.disabled) element?.focus({ preventScroll: true });
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p><p>${children}</p></div>`;
}

// Where there are more than a page takes.
export function Cut({ most, command }) {
  return html`<p class="notice">There are more keys or accounts than the ${number(most)} that this page takes. Those that are left out are
    neither found nor counted here: on the server there is <code>${command}</code>.</p>`;
}

export function Bar({ share, label, plain }) {
  const width = `${Math.min(100, Math.max(share > 0 ? 1.5 : 0, share * 100))}%`;
  const kind = plain ? "" : share >= 0.95 ? "bad" : share >= 0.8 ? "warn" : "";
  return html`<span class="bar" role="img" aria-label=${label}><span class=${`bar-fill ${kind}`} style=${{ width }}></span></span>`;
}

// A modal window. The browser keeps the focus in it, and gives it back. Escape closes it, unless it is `held`: what runs
// in it is not done, or what it shows is shown this once. Then its page stays, too.
export class Dialog extends Component {
  dialog = createRef();

  componentDidMount() {
    this.dialog.current.showModal();
  }

  componentWillUnmount() {
    this.dialog.current.close();
  }

  cancel = (event) => this.props.held && event.preventDefault();

  closed = () => {
    // One that was taken away hears of it late.
    if (this.dialog.current === null) return;
    // Chromium asks once: a second Escape closes all the same.
    if (this.props.held) this.dialog.current.showModal();
    else this.props.onClose();
  };

  render({ title, held, children }) {
    return html`<dialog ref=${this.dialog} data-held=${held ? "" : null} aria-labelledby="dialog-title" onCancel=${this.cancel} onClose=${this.closed}>
      <h2 id="dialog-title">${title}</h2>
      ${children}
    </dialog>`;
  }
}

export const isHeld = () => document.querySelector("dialog[data-held]") !== null;

// Something that is shown once: it can be copied, and is never shown again.
export class Secret extends Component {
  state = { copied: false };
  field = createRef();

  copy = async () => {
    this.field.current.select();
    try {
      await navigator.clipboard.writeText(this.props.value);
      this.setState({ copied: true });
    } catch {
      this.setState({ copied: null });
    }
  };

  render({ value, label }, { copied }) {
    const said = copied === null ? "The browser does not allow it: press Ctrl+C" : copied ? "Copied" : "Copy";
    return html`<div class="secret">
      <input ref=${this.field} class="mono" readonly value=${value} aria-label=${label} onFocus=${(e) => e.target.select()} />
      <button type="button" class="primary" onClick=${this.copy}>${said}</button>
    </div>`;
  }
}
