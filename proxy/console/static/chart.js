// A line chart over time, drawn by uPlot in the page's own colours, with a legend that can be read aloud.
import uPlot from "./vendor/uplot.js";
import { Component, createRef, html, none, zone } from "./html.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const HEIGHT = 150;
const COLOURS = 5;

// The first on the axis tells the zone of all.
function hour(at, index) {
  const told = new Date(at * 1000).toTimeString().slice(0, 5);
  return index === 0 ? `${told} ${zone(at)}` : told;
}

export class Chart extends Component {
  place = createRef();
  state = { at: null };

  componentDidMount() {
    this.plot = new uPlot(this.options(), this.data(), this.place.current);
    this.watch = new ResizeObserver(() => this.plot.setSize({ width: this.width(), height: HEIGHT }));
    this.watch.observe(this.place.current);
    this.redraw = () => this.plot.redraw();
    dark.addEventListener("change", this.redraw);
  }

  // New data moves the cursor, which sets the state: without new data nothing is drawn.
  componentDidUpdate(before) {
    if (before.times !== this.props.times || before.lines !== this.props.lines) this.plot.setData(this.data());
  }

  componentWillUnmount() {
    dark.removeEventListener("change", this.redraw);
    this.watch.disconnect();
    this.plot.destroy();
  }

  width() {
    return Math.max(200, this.place.current.clientWidth);
  }

  data() {
    return [this.props.times, ...this.props.lines.map((line) => line.values)];
  }

  point = (plot) => {
    const at = plot.cursor.idx ?? null;
    this.setState((state) => (state.at === at ? null : { at }));
  };

  options() {
    const { format, lines, most } = this.props;
    const axis = {
      stroke: () => colour("muted"),
      grid: { stroke: () => colour("grid"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const series = lines.map((line, index) => ({
      label: line.name,
      stroke: () => colour(`line-${(index % COLOURS) + 1}`),
      width: 1.6,
      points: { show: false },
      spanGaps: false,
      ...(index === 0 && lines.length === 1 ? { fill: () => colour("line-fill") } : {}),
    }));
    return {
      width: this.width(),
      height: HEIGHT,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { y: { range: (_, low, high) => [0, most || Math.max((high || 0) * 1.1, this.props.least || 1)] } },
      axes: [
        { ...axis, space: 60, size: 26, values: (_, ticks) => ticks.map(hour), incrs: [60, 120, 300, 600, 900, 1800, 3600] },
        { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => (this.props.axis || format)(tick)) },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [this.point] },
    };
  }

  render({ title, lines, format, empty }, { at }) {
    const values = lines.map((line) => line.values[at === null ? line.values.length - 1 : at]);
    const told = lines.map((line, i) => `${line.name} ${values[i] == null ? none : format(values[i])}`).join(", ");
    return html`<figure class="chart">
      <figcaption>
        <h3>${title}</h3>
        <ul class="legend">
          ${lines.map((line, i) => html`<li key=${line.name} title=${line.hint}>
            <span class=${`swatch line-${(i % COLOURS) + 1}`}></span>${line.name}
            <b>${values[i] == null ? none : format(values[i])}</b>
          </li>`)}
        </ul>
      </figcaption>
      <div class="plot" ref=${this.place} role="img" aria-label=${`${title}: ${told}`}></div>
      ${empty && html`<p class="chart-empty">${empty}</p>`}
    </figure>`;
  }
}
