// Windows with a form in them, and the one that asks once more.
import { Component, createRef, date, Dialog, html, Problem, Secret } from "./html.js";

// What it is for stands in `title`, `verb`, `fields()`, and `go()`, which does it. A secret that comes of it is shown until
// the window is closed. `harms`: it cuts people off, and the way out is what the Enter key takes.
export class Form extends Component {
  state = { busy: false, error: null, made: null };
  problem = createRef();

  submit = async (event) => {
    event.preventDefault();
    this.setState({ busy: true, error: null });
    try {
      const made = await this.go();
      if (made?.secret === undefined) {
        await this.props.onDone();
        return;
      }
      this.setState({ made, busy: false });
      this.props.onMade();
    } catch (error) {
      // Its end may be out of sight.
      this.setState({ busy: false, error }, () => this.problem.current.scrollIntoView({ block: "nearest" }));
    }
  };

  set = (field) => (event) => this.setState({ [field]: event.target.value });

  render({ onClose }, { busy, error, made }) {
    if (made !== null) return html`<${Made} made=${made} onClose=${onClose} />`;
    return html`<${Dialog} title=${this.title} held=${busy} onClose=${onClose}>
      <form onSubmit=${this.submit}>
        ${this.fields()}
        <${Problem} error=${error} place=${this.problem} />
        <div class="buttons">
          <button type="button" class="quiet" disabled=${busy} onClick=${onClose} autofocus=${this.harms}>Cancel</button>
          <button class=${`primary ${this.harms ? "danger" : ""}`} disabled=${busy}>${busy ? "Working…" : this.verb}</button>
        </div>
      </form>
    <//>`;
  }
}

function Made({ made, onClose }) {
  return html`<${Dialog} title="The key's secret" held onClose=${onClose}>
    <p>This is the only time it is shown. Copy it now, and keep it where your program reads it.</p>
    <${Secret} value=${made.secret} label="Secret" />
    <p class="hint">Key <code>${made.key_id}</code>, ${made.account}, tier ${made.tier}.
      ${made.old_until && ` The secret before it is good until ${date(made.old_until)}.`}</p>
    <div class="buttons"><button type="button" class="quiet" onClick=${onClose}>I have copied it</button></div>
  <//>`;
}

// Asks once more, before something that cuts people off if it `harms`.
export class Sure extends Form {
  title = this.props.title;
  verb = this.props.verb;
  go = this.props.go;
  harms = this.props.harms ?? true;

  fields() {
    return this.props.children;
  }
}
