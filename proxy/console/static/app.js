// The console: who is signed in, and which page is shown.
import { get, session, signedOut } from "./api.js";
import { Component, createRef, Field, html, Problem, render } from "./html.js";
import { Keys } from "./keys.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { Playground } from "./playground.js";
import { Policies } from "./policies.js";

const PAGES = [
  ["overview", "Overview", Overview],
  ["live", "Live", Live],
  ["keys", "Keys and accounts", Keys],
  ["policies", "Policies", Policies],
  ["playground", "Playground", Playground],
];
const STATE_EVERY_MS = 5000;

class SignIn extends Component {
  state = { key: "", busy: false, error: this.props.error };

  enter = async (event) => {
    event.preventDefault();
    session.key = this.state.key.trim();
    this.setState({ busy: true, error: null });
    try {
      this.props.onEnter(await get("/admin/v1/state"));
    } catch (error) {
      session.key = null;
      this.setState({ busy: false, error });
    }
  };

  render(_, { key, busy, error }) {
    return html`<main class="sign-in">
      <form class="card" onSubmit=${this.enter}>
        <h1><img src="icon.svg" alt="" width="28" height="28" /> Tollhouse</h1>
        <${Problem} error=${error} />
        <${Field} label="Admin key" hint="It is kept until this tab is closed, and nowhere else.">
          <input id="admin-key" type="password" autocomplete="off" spellcheck="false" required autofocus
            value=${key} onInput=${(e) => this.setState({ key: e.target.value })} />
        <//>
        <button class="primary" disabled=${busy || !key.trim()}>${busy ? "Signing in…" : "Sign in"}</button>
        <details>
          <summary>How to make one</summary>
          <p>On the server:</p>
          <pre>tollhouse console</pre>
          <p>It makes a key that is good for twelve hours and shows this address with the key in it.
            With <code>--read-only</code> the key may look and change nothing.</p>
        </details>
      </form>
    </main>`;
  }
}

class App extends Component {
  state = { server: undefined, page: this.page(), error: null, trouble: null };
  main = createRef();

  page() {
    const name = location.hash.replace(/^#\/?/, "").split("/")[0];
    return PAGES.some(([id]) => id === name) ? name : "overview";
  }

  async componentDidMount() {
    this.takeKey();
    addEventListener("hashchange", () => {
      if (location.hash.startsWith("#key=")) location.reload();
      this.setState({ page: this.page() }, () => {
        this.main.current?.focus({ preventScroll: true });
        scrollTo(0, 0);
      });
    });
    signedOut.addEventListener("signed-out", () => {
      if (this.state.server) this.leave({ title: "You are signed out.", message: "The key is not good any more." });
    });
    // Over the admin socket, forwarded to here, no key is asked for; a strange Host or network is told of.
    try {
      if (session.key !== null || (await this.needsNoKey())) this.setState({ server: await get("/admin/v1/state") });
      else this.setState({ server: null });
    } catch (error) {
      session.key = null;
      this.setState({ server: null, error: error.status === 401 ? null : error });
    }
    setInterval(() => this.look(), STATE_EVERY_MS);
  }

  // What stands behind the # was never sent anywhere; it is not to stay in the address either.
  takeKey() {
    const given = /^#key=([\w-]+)$/.exec(location.hash);
    if (given === null) return;
    session.key = given[1];
    history.replaceState(null, "", location.pathname);
  }

  async needsNoKey() {
    // The question is asked without an answer that the browser would report as failed.
    const answer = await get("/console/data/access");
    return !answer.key_needed;
  }

  async look() {
    if (!this.state.server || document.hidden) return;
    const { key } = session;
    let found;
    try {
      found = { server: await get("/admin/v1/state"), trouble: null };
    } catch (error) {
      found = error.status === 401 ? null : { trouble: error };
    }
    if (session.key === key) this.setState(found);
  }

  leave = (error = null) => {
    session.key = null;
    this.setState({ server: null, error, trouble: null });
  };

  condition() {
    const { server, trouble } = this.state;
    if (trouble !== null) return ["bad", trouble.status === 0 ? "server away" : `no answer: ${trouble.code ?? trouble.status}`];
    return server.ready ? ["good", "ready"] : ["bad", `not ready: ${server.reason}`];
  }

  render(_, { server, page, error, trouble }) {
    if (server === undefined) return html`<p class="loading" role="status">Loading…</p>`;
    if (server === null) return html`<${SignIn} error=${error} onEnter=${(found) => this.setState({ server: found, error: null })} />`;
    const [, title, Page] = PAGES.find(([id]) => id === page);
    document.title = `${title} · Tollhouse`;
    const [kind, said] = this.condition();
    return html`
      <a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); this.main.current.focus(); }}>Skip to the page</a>
      <header>
        <span class="brand"><img src="icon.svg" alt="" width="22" height="22" /> Tollhouse</span>
        <nav aria-label="Pages">
          ${PAGES.map(([id, name]) => html`<a key=${id} href=${`#/${id}`} aria-current=${id === page ? "page" : null}>${name}</a>`)}
        </nav>
        <span class=${`state ${kind}`} role="status" title=${trouble?.message}><span class="dot"></span>${said}</span>
        ${session.key !== null && html`<button class="quiet" onClick=${() => this.leave()}>Sign out</button>`}
      </header>
      <main id="main" ref=${this.main} tabindex="-1">
        <${Page} server=${server} />
      </main>
      <footer>Version ${server.version} · policy ${server.policy_revision} · ${server.upstreams.map((one) => one.name).join(", ")}</footer>
    `;
  }
}

render(html`<${App} />`, document.getElementById("app"));
