// The console: who is signed in, and which page is shown.
import { get, session, signedOut } from "./api.js";
import { Component, createRef, Field, html, isHeld, Problem, render } from "./html.js";
import { History } from "./history.js";
import { Keys } from "./keys.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { Playground } from "./playground.js";
import { Policies } from "./policies.js";

const PAGES = [
  ["overview", "Overview", Overview],
  ["live", "Live", Live],
  ["keys", "Keys and accounts", Keys],
  ["history", "History", History],
  ["policies", "Policies", Policies],
  ["playground", "Playground", Playground],
];
// What is written into these is kept, out of sight, while another page is shown. They ask for nothing meanwhile.
const STAY = ["policies", "playground"];
const STATE_EVERY_MS = 5000;
const GIVEN_KEY = "#key=";
const ENDED = { title: "Your key has ended.", message: "Sign in to go on where you were: what was written is still here." };

// It did not answer, or not to what it was asked.
const isAway = (error) => error?.status === 0 || error?.status >= 500;

class SignIn extends Component {
  state = { key: "", busy: false };

  enter = async (event) => {
    event.preventDefault();
    this.setState({ busy: true });
    await this.props.onEnter(this.state.key.trim());
    this.setState({ busy: false });
  };

  render({ error, onForget }, { key, busy }) {
    return html`<main class="sign-in">
      <form class="card" onSubmit=${this.enter}>
        <h1><img src="icon.svg" alt="" width="28" height="28" /> Tollhouse</h1>
        <${Problem} error=${error} />
        <${Field} label="Admin key" hint="It is kept until this tab is closed, and nowhere else.">
          <input id="admin-key" type="password" autocomplete="off" spellcheck="false" required autofocus
            value=${key} onInput=${(e) => this.setState({ key: e.target.value })} />
        <//>
        <button class="primary" disabled=${busy || !key.trim()}>${busy ? "Signing in…" : "Sign in"}</button>
        ${onForget && html`<button type="button" class="quiet" disabled=${busy} onClick=${onForget}>Forget what was written</button>`}
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
  // `server`: what it last said, null before anybody signs in. `locked`: the key is not good any more. `part`: what of its
  // page is asked for.
  state = { server: undefined, locked: false, ...this.place(), visited: new Set([this.place().page]), error: null, trouble: null };
  main = createRef();
  looking = false;

  // What stands in the address: #/page/part.
  place() {
    const [name, part = ""] = location.hash.replace(/^#\/?/, "").split("/");
    return PAGES.some(([id]) => id === name) ? { page: name, part } : { page: "overview", part: "" };
  }

  async componentDidMount() {
    addEventListener("hashchange", this.moved);
    addEventListener("beforeunload", (event) => isHeld() && event.preventDefault());
    signedOut.addEventListener("signed-out", this.lock);
    await this.begin(this.takeKey(location.pathname) ?? session.key);
    setInterval(() => this.look(), STATE_EVERY_MS);
  }

  // Over the admin socket, forwarded to here, no key is asked for; a strange Host or network is told of.
  async begin(key) {
    try {
      if (key !== null || (await this.needsNoKey())) await this.enter(key);
      else this.setState({ server: null, error: null });
    } catch (error) {
      this.setState({ server: null, error });
    }
  }

  componentDidUpdate(_, before) {
    const { server, locked, page } = this.state;
    const shows = ({ server: one, locked: shut }) => Boolean(one) && !shut;
    if (before.page === page && shows(before) === shows({ server, locked })) return;
    // Where the names of the pages do not all fit, this one's is to be seen.
    const link = document.querySelector("nav a[aria-current]");
    if (link) link.parentElement.scrollLeft = link.offsetLeft - link.parentElement.offsetLeft;
  }

  moved = ({ oldURL }) => {
    const key = this.takeKey(oldURL);
    if (isHeld()) {
      if (key === null) history.pushState(null, "", oldURL);
      return;
    }
    if (key !== null) {
      this.enter(key);
      return;
    }
    const place = this.place();
    this.setState(({ visited }) => ({ ...place, visited: new Set([...visited, place.page]) }), () => {
      this.main.current?.focus({ preventScroll: true });
      scrollTo(0, 0);
    });
  };

  lock = () => {
    // When the window is closed, the next look finds it out again.
    if (isHeld()) return;
    session.key = null;
    this.setState(({ server, locked }) => (server && !locked ? { locked: true, error: ENDED } : null));
  };

  // What stands behind the # was never sent anywhere; it is not to stay in the address either.
  takeKey(back) {
    if (!location.hash.startsWith(GIVEN_KEY)) return null;
    const key = location.hash.slice(GIVEN_KEY.length);
    history.replaceState(null, "", back);
    return key;
  }

  async needsNoKey() {
    // The question is asked without an answer that the browser would report as failed.
    const answer = await get("/console/data/access");
    return !answer.key_needed;
  }

  async look() {
    if (this.looking || document.hidden || isHeld()) return;
    this.looking = true;
    if (this.state.server && !this.state.locked) await this.refresh();
    else if (isAway(this.state.error)) await this.begin(session.key);
    this.looking = false;
  }

  async refresh() {
    const { key } = session;
    let found;
    try {
      found = { server: await get("/admin/v1/state"), trouble: null };
    } catch (error) {
      found = error.status === 401 ? null : { trouble: error };
    }
    if (session.key === key) this.setState(found);
  }

  // Until the server says that the key is good, nothing is shown; what was written is kept. While it does not answer it says
  // nothing of the key: then that is kept, too, and shown to it again.
  enter = async (key) => {
    session.key = key;
    this.setState(({ server }) => ({ locked: Boolean(server) }));
    try {
      const server = await get("/admin/v1/state");
      if (session.key === key) this.setState({ server, locked: false, error: null, trouble: null });
    } catch (error) {
      // Another may have come meanwhile.
      if (session.key !== key && session.key !== null) return;
      if (!isAway(error)) session.key = null;
      this.setState(({ server }) => ({ server: server ?? null, error }));
    }
  };

  leave = () => {
    session.key = null;
    this.setState(({ page }) => ({ server: null, locked: false, visited: new Set([page]), error: null }));
  };

  condition() {
    const { server, trouble } = this.state;
    if (trouble !== null) return ["bad", trouble.status === 0 ? "server away" : `no answer: ${trouble.code ?? trouble.status}`];
    return server.ready ? ["good", "ready"] : ["bad", `not ready: ${server.reason}`];
  }

  header() {
    const { page, trouble } = this.state;
    const [kind, said] = this.condition();
    return html`
      <a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); this.main.current.focus(); }}>Skip to the page</a>
      <header>
        <span class="brand"><img src="icon.svg" alt="" width="22" height="22" /> Tollhouse</span>
        <nav aria-label="Pages">
          ${PAGES.map(([id, name]) => html`<a key=${id} href=${`#/${id}`} aria-current=${id === page ? "page" : null}>${name}</a>`)}
        </nav>
        <span class=${`state ${kind}`} role="status" title=${trouble?.message}><span class="dot"></span>${said}</span>
        ${session.key !== null && html`<button class="quiet" onClick=${this.leave}>Sign out</button>`}
      </header>`;
  }

  render(_, { server, locked, page, part, visited, error }) {
    if (server === undefined) return html`<p class="loading" role="status">Loading…</p>`;
    const shown = server !== null && !locked;
    const there = PAGES.filter(([id]) => server !== null && ((shown && id === page) || (STAY.includes(id) && visited.has(id))));
    document.title = shown ? `${PAGES.find(([id]) => id === page)[1]} · Tollhouse` : "Tollhouse";
    return html`
      ${shown ? this.header() : html`<${SignIn} error=${error} onEnter=${this.enter} onForget=${locked && this.leave} />`}
      <main id="main" ref=${this.main} tabindex="-1" hidden=${!shown}>
        ${there.map(([id, , Page]) => html`<div key=${id} hidden=${id !== page}><${Page} server=${server} part=${part} shown=${shown && id === page} /></div>`)}
      </main>
      ${shown && html`<footer>Version ${server.version} · policy ${server.policy_revision} · ${server.upstreams.map((one) => one.name).join(", ")}</footer>`}
    `;
  }
}

render(html`<${App} />`, document.getElementById("app"));
