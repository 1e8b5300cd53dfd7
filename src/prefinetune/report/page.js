"use strict";
// Filters, colours and draws. What is drawn is decided in charts.py; this file adds what depends on the reader: which tasks, which
// label count and control, how wide, light or dark.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const chosen = {words: [], view: "", expanded: new Set()};
  const DASHES = ["solid", "dash", "dot"];

  const searched = data.tasks.map(task => `${task.name} ${task.family}`.toLowerCase());
  const matches = number => chosen.words.every(word => searched[number].includes(word));
  const plain = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");  // Plotly reads tags
  const short = (text, most) => { const letters = [...text]; return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text; };
  const named = (number, most) => short(data.tasks[number].name.replace(/\s+/g, " "), most);
  const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `bold 12.5px ${FONT}`;

  // A copy in which colours named after variables of page.css are what these are now.
  const probe = document.body.appendChild(document.createElement("span"));
  function coloured(value, key = "") {
    if (Array.isArray(value)) return value.map(part => coloured(part, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, coloured(part, name)]));
    if (!key.toLowerCase().endsWith("color") || !String(value).startsWith("--")) return value;
    probe.style.color = `var(${value})`;
    return getComputedStyle(probe).color;
  }

  // A copy of a trace with only some of its points.
  function picked(value, keep) {
    if (Array.isArray(value) && value.length === keep.length) return value.filter((_, index) => keep[index]);
    if (value && typeof value === "object" && !Array.isArray(value))
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, picked(part, keep)]));
    return value;
  }

  // Above a chart: what of it is shown, and the button that shows all.
  const said = (note, text, more) => {
    note.querySelector("span").textContent = text;
    note.querySelector("button").hidden = !more;
  };

  const noteOf = id => document.getElementById(id).closest("figure").querySelector(".shown");

  // A row per task: the ones that match the filter and, of many, the first (and last).
  function rows(id, chart, width) {
    const view = chart.views[chosen.view] || Object.values(chart.views)[0];
    if (!view) return null;
    const found = view.order.filter(matches);
    const most = chosen.expanded.has(id) ? found.length : chart.most;
    let kept = found.slice(0, most);
    if (chart.ends && found.length > most) kept = [...found.slice(0, most / 2), ...found.slice(-most / 2)];
    const how = chart.ends ? `the ${most / 2} with the lowest gain and the ${most / 2} with the highest, of ${found.length}` : `the first ${most} of ${found.length}`;
    const left = found.length - kept.length;
    said(noteOf(id), `${view.words} ${!found.length ? "No task matches." : left ? `Shown: ${how}.` : ""}`.trim(), left > 0);
    if (chart.ends && left) kept.splice(most / 2, 0, "gap");
    const order = [...(view.mean ? ["mean"] : []), ...kept];
    const place = new Map(order.map((row, index) => [row, order.length - 1 - index]));
    const traces = view.traces.map(trace => {
      const own = picked(trace, trace.y.map(row => place.has(row)));
      return {...own, y: own.y.map(row => place.get(row))};
    });
    const letters = width < 500 ? 20 : 40;
    const texts = order.map(row => row === "mean" ? view.mean : row === "gap" ? `${left} others` : named(row, letters));
    const yaxis = {
      tickvals: order.map(row => place.get(row)), range: [-0.7, order.length - 0.3], zeroline: false,
      ticktext: texts.map((text, index) => order[index] === "mean" ? `<b>${plain(text)}</b>` : order[index] === "gap" ? `<i>${text}</i>` : plain(text)),
    };
    // Plotly's own margins can go back and forth between two widths without end.
    const l = 12 + Math.max(...texts.map(text => pen.measureText(text).width), 0);
    return [traces, {...view.layout, yaxis, height: 50 + 22 * Math.max(order.length, 2), margin: {l, r: 14, t: 8, b: 32}}];
  }

  // A line per task: some in colour, named above the chart, the others grey and named where the mouse is.
  function lines(id, chart) {
    const found = chart.series.filter(series => matches(series.task));
    const bright = found.slice(0, chart.most), grey = found.slice(chart.most);
    const hovertemplate = "%{text}<br>update %{x}: %{y:.3f}<extra></extra>";
    const traces = bright.map((series, index) => ({
      type: "scatter", mode: series.x.length > 1 ? "lines" : "markers", x: series.x, y: series.y, hovertemplate,
      text: plain(named(series.task, 80)), line: {color: `--line-${index + 1}`, width: 2, dash: DASHES[index % 3]}, marker: {color: `--line-${index + 1}`},
    }));
    if (grey.length) {  // one trace with gaps: a hundred traces would take seconds
      const gap = list => list.flatMap(values => [...values, null]);
      traces.unshift({
        type: "scatter", mode: "lines", x: gap(grey.map(series => series.x)), y: gap(grey.map(series => series.y)), hovertemplate,
        text: grey.flatMap(series => Array(series.x.length + 1).fill(plain(named(series.task, 80)))), line: {color: "--grey", width: 1},
      });
    }
    const legend = document.getElementById(id).closest("figure").querySelector(".legend");
    legend.replaceChildren(...bright.map((series, index) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.borderTopColor = `var(--line-${index + 1})`;
      swatch.style.borderTopStyle = ["solid", "dashed", "dotted"][index % 3];
      item.append(swatch, short(data.tasks[series.task].name, 60));
      return item;
    }));
    said(noteOf(id), !found.length ? "No task matches." : grey.length ? `In colour: ${bright.length} of ${found.length}.` : "", false);
    return [traces, {...chart.layout, height: chart.height, margin: {l: 56, r: 14, t: 14, b: 48}}];
  }

  function draw(id) {
    const div = document.getElementById(id), chart = data.charts[id], width = div.clientWidth;
    if (!width) return;  // in a panel that is not shown
    const figure = {rows, lines}[chart.kind]?.(id, chart, width) || [chart.traces, {...chart.layout, height: chart.height}];
    if (!figure[0]) return;
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, width, ...figure[1],
      font: {family: FONT, size: 12.5, color: "--ink"},
      hoverlabel: {bgcolor: "--raised", bordercolor: "--rule", font: {color: "--ink"}, align: "left", namelength: -1},
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",  // a finger on a chart scrolls the page
    };
    for (const axis of ["xaxis", "yaxis"])
      layout[axis] = {gridcolor: "--grid", zerolinecolor: "--ink", automargin: false, ...layout[axis]};
    div.style.minHeight = "";  // it only kept the place
    Plotly.react(div, coloured(figure[0]), coloured(layout), {displayModeBar: false, responsive: false});
  }

  const drawAll = () => Object.keys(data.charts).forEach(draw);

  // Tables and panels: what does not match, or belongs to another view, is hidden.
  function sift() {
    const [labels, control] = ["labels", "control"].map(name => document.getElementById(name)?.value ?? "");
    chosen.view = `${labels}/${control}`;
    chosen.words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const table of all("table")) {
      const bodies = all("tbody[data-view]", table);
      const shown = bodies.find(body => body.dataset.view === chosen.view) || bodies[0];
      for (const body of bodies) body.hidden = body !== shown;
    }
    for (const row of all("tr[data-task]")) row.hidden = !matches(Number(row.dataset.task));
    for (const panels of all(".panels[data-most]")) {
      const found = all("figure[data-task]", panels).filter(figure => {
        figure.hidden = !matches(Number(figure.dataset.task));
        return !figure.hidden;
      });
      const most = chosen.expanded.has(panels) ? found.length : Number(panels.dataset.most);
      const first = Math.ceil(most / 2), last = most - first;
      const rest = found.length > most ? found.slice(first, -last) : [];
      rest.forEach(figure => { figure.hidden = true; });
      const text = `Shown: the ${first} with the largest losses and the ${last} with the largest gains, of ${found.length}.`;
      said(panels.previousElementSibling, !found.length ? "No task matches." : rest.length ? text : "", rest.length > 0);
    }
  }

  const drawn = new Set();
  function update() {
    sift();
    for (const [id, chart] of Object.entries(data.charts)) {
      const shown = document.getElementById(id).clientWidth > 0;
      if (chart.kind !== "plain" || (shown && !drawn.has(id))) draw(id);
      if (shown) drawn.add(id);
    }
  }

  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = document.getElementById("theme");
  const repaint = () => { theme.textContent = isDark() ? "Light" : "Dark"; drawAll(); };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; repaint(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  const soon = (action, wait) => { let timer; return () => { clearTimeout(timer); timer = setTimeout(action, wait); }; };
  document.getElementById("filter").addEventListener("input", soon(update, 120));
  for (const name of ["labels", "control"]) document.getElementById(name)?.addEventListener("change", update);
  let width = innerWidth;  // phones change the height while scrolling
  addEventListener("resize", soon(() => { if (innerWidth !== width) { width = innerWidth; drawAll(); } }, 150));
  for (const button of all(".shown button")) button.addEventListener("click", () => {
    const chart = button.closest("figure")?.querySelector(".chart");
    chosen.expanded.add(chart ? chart.id : button.closest("p").nextElementSibling);
    update();
  });

  // On paper: light, as wide as a page, nothing folded away.
  const printing = on => {
    root.classList.toggle("printing", on);
    for (const details of all("details")) details.open = on;
    drawAll();
  };
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));

  theme.textContent = isDark() ? "Light" : "Dark";
  update();
})();
