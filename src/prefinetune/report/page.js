"use strict";
// Filters, colours and draws. What is drawn is decided in charts.py; this file adds what depends on the reader: which tasks, which
// label count and control, how wide, light or dark.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const chosen = {words: [], labels: "", control: "", expanded: new Set()};
  const DASHES = ["solid", "dash", "dot"];

  const searched = data.tasks.map(task => `${task.name} ${task.family}`.toLowerCase());
  const matches = number => chosen.words.every(word => searched[number].includes(word));
  const plain = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");  // Plotly reads tags
  const short = (text, most) => { const letters = [...text]; return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text; };
  const named = (number, most) => short(data.tasks[number].name.replace(/\s+/g, " "), most);
  const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `bold 12.5px ${FONT}`;

  // Which of the views by label count and control is the chosen one; some differ by label count alone.
  const chosenOf = keys => [`${chosen.labels}/${chosen.control}`, chosen.labels].find(key => keys.includes(key)) ?? keys[0];
  const viewOf = chart => chart.views ? chart.views[chosenOf(Object.keys(chart.views))] : chart;

  // A copy in which colours named after variables of page.css are what these are now.
  const probe = document.body.appendChild(document.createElement("span"));
  const colourOf = name => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
  function coloured(value, key = "") {
    if (Array.isArray(value)) return value.map(part => coloured(part, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, coloured(part, name)]));
    return key.toLowerCase().endsWith("color") && String(value).startsWith("--") ? colourOf(value) : value;
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

  // A long name in two lines.
  function folded(text, most) {
    if (text.length <= most) return [text];
    const cut = Math.max(text.lastIndexOf(" ", most), 0) || most;
    return [text.slice(0, cut), short(text.slice(cut).trim(), most)];
  }

  // A row per task, or per name of the chart's own: the ones that match the filter and, of many, the first (and last).
  function rows(id, chart, width) {
    const view = viewOf(chart);
    if (!view) return null;
    const found = chart.names ? view.order : view.order.filter(matches);
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
    const lines = order.map(row => row === "mean" ? [view.mean] : row === "gap" ? [`${left} others`]
      : chart.names ? folded(chart.names[row], letters) : [named(row, letters)]);
    const yaxis = {
      tickvals: order.map(row => place.get(row)), range: [-0.7, order.length - 0.3], zeroline: false,
      ticktext: lines.map((parts, index) => {
        const text = parts.map(plain).join("<br>");
        return order[index] === "mean" ? `<b>${text}</b>` : order[index] === "gap" ? `<i>${text}</i>` : text;
      }),
    };
    // Plotly's own margins can go back and forth between two widths without end.
    const l = 12 + Math.max(...lines.flat().map(text => pen.measureText(text).width), 0);
    const tall = lines.some(parts => parts.length > 1) ? 38 : 22;
    return [traces, {...view.layout, yaxis, height: 50 + tall * Math.max(order.length, 2), margin: {l, r: 14, t: 8, b: 32}}];
  }

  // Of two lists of tasks that cross: the rows that match or, where none does, the columns that do.
  function crossing(rowTasks, columnTasks) {
    const inRows = rowTasks.map(matches), inColumns = columnTasks.map(matches), some = inRows.includes(true);
    return some ? [inRows, columnTasks.map(() => true)] : [rowTasks.map(() => inColumns.includes(true)), inColumns];
  }

  // Tasks against tasks: orange below zero, blue above, the paper's colour at zero.
  function map(id, chart, width) {
    const [inRows, inColumns] = crossing(chart.rows, chart.columns);
    const pick = (list, keep) => [...list].filter((_, index) => keep[index]);
    const down = pick(chart.rows, inRows), across = pick(chart.columns, inColumns);
    const part = down.length < chart.rows.length ? `Rows shown: ${down.length} of ${chart.rows.length}.` : "";
    said(noteOf(id), down.length ? part : "No task matches.", false);
    const letters = width < 500 ? 12 : 26, name = number => plain(named(number, letters));
    const l = 14 + Math.max(0, ...down.map(number => pen.measureText(named(number, letters)).width));
    const b = 14 + Math.max(0, ...across.map(number => pen.measureText(named(number, letters)).width));
    const side = Math.max(1, (width - l - 14) / Math.max(across.length, 1)), tall = Math.min(24, Math.max(5, side));
    const every = size => Math.ceil(13 / size);  // names that have room
    const axis = (list, size) => {
      const tickvals = [...list.keys()].filter(index => index % every(size) === 0);
      return {tickvals, ticktext: tickvals.map(index => name(list[index])), tickfont: {size: 11}, showgrid: false, zeroline: false};
    };
    const cells = table => pick(table, inRows).map(row => pick(row, inColumns));
    const z = cells(chart.z), clear = cells(chart.clear);
    const words = (value, i, j) => `${plain(named(down[i], 60))}<br>with ${plain(named(across[j], 60))}<br>` +
      `${value > 0 ? "+" : ""}${value}, ${clear[i][j] === "1" ? "clearly not zero" : "not clear"}`;
    const text = z.map((row, i) => row.map((value, j) => value === null ? "" : words(value, i, j)));
    const whole = down.length === chart.rows.length && across.length === chart.columns.length;
    const shapes = (whole ? chart.groups : []).map(([start, size]) => ({
      type: "rect", x0: start - 0.5, y0: start - 0.5, x1: start + size - 0.5, y1: start + size - 0.5, line: {color: "--ink", width: 1.5},
    }));
    const colorscale = [[0, colourOf("--loss")], [0.5, colourOf("--paper")], [1, colourOf("--gain")]];
    const trace = {
      type: "heatmap", z, text, hoverinfo: "text", colorscale, zmin: -chart.most, zmax: chart.most, showscale: false,
      xgap: side > 8 ? 1 : 0, ygap: tall > 8 ? 1 : 0,
    };
    const xaxis = {...axis(across, side), range: [-0.5, across.length - 0.5], tickangle: -90};
    const yaxis = {...axis(down, tall), range: [down.length - 0.5, -0.5]};  // the first at the top
    return [[trace], {xaxis, yaxis, shapes, height: 20 + b + tall * Math.max(down.length, 1), margin: {l, r: 14, t: 6, b}}];
  }

  // A line per task: some in colour, named above the chart, the others grey and named where the mouse is.
  function lines(id, chart) {
    const found = chart.series.filter(series => matches(series.task));
    const bright = found.slice(0, chart.most), grey = found.slice(chart.most);
    const hovertemplate = "%{text}<br>update %{x}: %{y:.3f}<extra></extra>";
    const traces = bright.map((series, index) => ({
      type: "scatter", mode: series.x.length > 1 ? "lines" : "markers", x: series.x, y: series.y, hovertemplate,
      text: series.x.map(() => plain(named(series.task, 80))), line: {color: `--line-${index + 1}`, width: 2, dash: DASHES[index % 3]}, marker: {color: `--line-${index + 1}`},
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
    if (!width) return false;  // in a panel that is not shown
    const view = viewOf(chart);
    const figure = {rows, lines, map}[chart.kind]?.(id, chart, width) || [view?.traces, {...view?.layout, height: chart.height}];
    if (!figure[0]) return true;
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
    return true;
  }

  // Charts are drawn when they come near the window, and again when what they show has changed since.
  const MARGIN = 800, near = new Set(), drawn = new Set();
  function refresh() {
    for (const id of near) if (!drawn.has(id) && draw(id)) drawn.add(id);
  }
  const drawAll = () => { drawn.clear(); refresh(); };
  const watch = new IntersectionObserver(entries => {
    for (const {target, isIntersecting} of entries) near[isIntersecting ? "add" : "delete"](target.id);
    refresh();
  }, {rootMargin: `${MARGIN}px`});

  // Tables and panels: what does not match, or belongs to another view, is hidden.
  function sift() {
    for (const name of ["labels", "control"]) chosen[name] = document.getElementById(name)?.value ?? "";
    chosen.words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const table of all("table")) {
      const bodies = all("tbody[data-view]", table), shown = chosenOf(bodies.map(body => body.dataset.view));
      for (const body of bodies) body.hidden = body.dataset.view !== shown;
    }
    for (const row of all("tr[data-task]")) row.hidden = !matches(Number(row.dataset.task));
    for (const table of all("table.crossed")) {
      const task = one => Number(one.dataset.task);
      const lines = all("tbody tr[data-task]", table), heads = all("thead th[data-task]", table);
      const [inRows, inColumns] = crossing(lines.map(task), heads.map(task));
      lines.forEach((row, index) => { row.hidden = !inRows[index]; });
      heads.forEach((head, index) => {
        for (const row of table.rows) if (row.cells[head.cellIndex]) row.cells[head.cellIndex].hidden = !inColumns[index];
      });
    }
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

  function update() {
    sift();
    for (const [id, chart] of Object.entries(data.charts)) if (chart.kind !== "plain" || chart.views) drawn.delete(id);
    refresh();
  }

  // Tables: a heading sorts by its column, pressed again the other way around, and the third time as the page was written.
  const collator = new Intl.Collator(undefined, {numeric: true});
  const largest = cell => [...cell.childNodes].filter(node => node.nodeName !== "SMALL").map(node => node.textContent).join("").trim();
  const value = text => parseFloat(text.replace(/,/g, "").match(/[-+]?\d*\.?\d+(e[-+]?\d+)?/)?.[0]);  // of "▼ -0.034", "1,234", "9.1%"
  function arrange(rows, column, asNumbers, way) {
    const heads = rows.filter(row => row.matches(".group, .mean")), rest = rows.filter(row => !heads.includes(row));
    const keys = new Map(rest.map(row => [row, asNumbers ? value(largest(row.cells[column])) : largest(row.cells[column])]));
    const isEmpty = row => keys.get(row) === "" || Number.isNaN(keys.get(row));
    const compare = asNumbers ? (one, other) => one - other : collator.compare;
    const full = rest.filter(row => !isEmpty(row)).sort((one, other) => way * compare(keys.get(one), keys.get(other)));
    return [...heads, ...full, ...rest.filter(isEmpty)];
  }
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table), bodies = [...table.tBodies].map(body => [body, [...body.rows]]);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = {ascending: "descending", descending: ""}[head.ariaSort] ?? "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        if (order) head.ariaSort = order;
        table.classList.toggle("sorted", order !== "");  // hides the rows that head groups: there are none then
        const asNumbers = head.matches(".number"), way = order === "descending" ? -1 : 1;
        for (const [body, rows] of bodies) body.append(...(order ? arrange(rows, column, asNumbers, way) : rows));
      });
    });
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
    for (const details of all("details:not(.screen)")) details.open = on;
    drawn.clear();
    if (on) Object.keys(data.charts).forEach(draw);  // paper has no window
    else refresh();
  };
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));

  theme.textContent = isDark() ? "Light" : "Dark";
  sift();
  for (const chart of all(".chart")) {
    if (chart.getBoundingClientRect().top < innerHeight + MARGIN) near.add(chart.id);  // what is seen first is there at once
    watch.observe(chart);
  }
  refresh();
})();
