"use strict";
(() => {
  const report = JSON.parse(document.getElementById("data").textContent);
  const runs = report.runs.map((run, number) => ({ ...run, shown: true, color: number % 8, dashed: number >= 8 }));
  const state = { axis: "step", logX: false, logY: false, smooth: 0, view: null };
  const drawn = new Map(); // chart -> its uPlot
  const AXES = { step: "steps", tokens: "tokens", images: "images", hours: "hours", flops: "FLOPs" };

  // ---- numbers ----------------------------------------------------------------------------------------------------
  function bytes(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  }
  const steps = (text) => Array.from(new Uint32Array(bytes(text)));
  const floats = (text) => Array.from(new Float32Array(bytes(text)));
  const doubles = (text) => Array.from(new Float64Array(bytes(text)));

  function short(value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    for (const [unit, name] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
      if (size >= unit) return trim(value / (name === "k" ? 1e3 : unit), digits) + name;
    }
    return size < 0.01 ? value.toExponential(digits - 2) : trim(value, Math.max(4, digits));
  }
  // As many digits as tell neighbors apart.
  function labels(ticks) {
    const shown = ticks.filter((tick) => tick !== null);
    const digits = [3, 4, 5, 6, 7].find((n) => new Set(shown.map((t) => short(t, n))).size === shown.length) ?? 7;
    return ticks.map((tick) => (tick === null ? "" : short(tick, digits)));
  }
  const trim = (value, digits) => String(+value.toPrecision(digits));
  const precise = (value) => (Math.abs(value) >= 0.01 && Math.abs(value) < 1e4 ? value.toFixed(4) : short(value));
  const whole = (value) => value.toLocaleString("en-US");
  function clock(seconds) {
    if (seconds === null) return "–";
    if (seconds < 90) return `${Math.round(seconds)} s`;
    return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
  }

  // ---- elements: names come from strangers, and go in as text alone -----------------------------------------------------
  function make(tag, parent, text = "", className = "") {
    const element = document.createElement(tag);
    if (text !== "") element.textContent = text;
    if (className) element.className = className;
    if (parent) parent.append(element);
    return element;
  }
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function swatch(parent, run) {
    const mark = make("span", parent, "", "swatch");
    mark.style.background = `var(--c${run.color})`;
    return mark;
  }

  // ---- head and table ---------------------------------------------------------------------------------------------------
  function writeLead() {
    const lead = document.getElementById("lead");
    const counts = ["running", "done", "stopped", "failed", "died"]
      .map((s) => [runs.filter((run) => run.status === s).length, s])
      .filter(([n]) => n);
    lead.append(`${runs.length} run${runs.length > 1 ? "s" : ""}: ${counts.map(([n, s]) => `${n} ${s}`).join(", ")}`);
    const groups = new Set(runs.map((run) => run.objective));
    for (const run of runs.filter((run) => run.is_best)) {
      lead.append(groups.size > 1 ? `; best ${run.objective} by ${report.metric}: ` : `; best by ${report.metric}: `);
      make("b", lead, run.name);
      lead.append(` ${precise(run.best[0])}`);
    }
    lead.append(`; written ${report.written}`);
  }

  const COLUMNS = [
    ["status", (cell, run) => (make("span", cell, run.status, "chip").style.background = `var(--${run.status})`)],
    ["step", (cell, run) => {
      const bar = make("span", cell, "", "bar");
      make("i", bar).style.width = `${run.total ? Math.min(100, (100 * run.step) / run.total) : 0}%`;
      cell.append(`${whole(run.step)}/${run.total ? whole(run.total) : "?"}`);
    }],
    [`${report.metric}, best`, (cell, run) => {
      make("b", cell, run.best ? precise(run.best[0]) : "–");
      if (run.best) make("span", cell, ` @${whole(run.best[1])}`, "small");
    }],
    ["last", (cell, run) => cell.append(run.last === null ? "–" : precise(run.last))],
    ["train loss, last 5%", (cell, run) => cell.append(run.train === null ? "–" : precise(run.train))],
    ["speed", (cell, run) => {
      cell.append(short(run.speed));
      make("span", cell, run.unit === "images" ? " img/s" : " tok/s", "small");
    }],
    ["TFLOP/s", (cell, run) => {
      cell.append(run.tflops === null ? "–" : run.tflops.toPrecision(3));
      if (run.mfu !== null) make("span", cell, ` ${(100 * run.mfu).toFixed(0)}% MFU`, "small");
    }],
    ["seen", (cell, run) => {
      cell.append(short(run.seen));
      make("span", cell, run.unit === "images" ? " img" : " tok", "small");
    }],
    ["clock", (cell, run) => cell.append(clock(run.seconds))],
    ["goodput", (cell, run) => cell.append(run.goodput === null ? "–" : `${(100 * run.goodput).toFixed(0)}%`)],
    ["restarts", (cell, run) => {
      cell.append(run.restarts === null ? "–" : String(run.restarts));
      const more = [[run.lost, "lost"], [run.skipped, "skipped"], [run.spikes, "spikes"]].filter(([n]) => n);
      if (more.length) make("span", cell, ` ${more.map(([n, what]) => `${whole(n)} ${what}`).join(", ")}`, "small");
    }],
  ];

  const ONLY_WIDE = new Set(["last", "TFLOP/s", "seen", "goodput"]); // a phone shows three cells in two rows

  function writeTable() {
    const table = document.getElementById("runs");
    const head = make("tr", make("thead", table));
    ["run", ...COLUMNS.map(([title]) => title)].forEach((title) => make("th", head, title));
    const body = make("tbody", table);
    for (const run of runs) {
      const row = make("tr", body);
      const label = make("label", make("td", row));
      const box = make("input", label);
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        run.shown = box.checked;
        row.classList.toggle("off", !run.shown);
        redraw();
      });
      swatch(label, run);
      make("span", label, run.name, "name");
      if (run.is_best) make("span", label, "best", "best");
      for (const [title, fill] of COLUMNS) {
        const cell = make("td", row);
        cell.className = ONLY_WIDE.has(title) ? "only-wide" : "";
        if (title !== "status") cell.dataset.label = title;
        fill(cell, run);
      }
    }
  }

  // ---- curves -------------------------------------------------------------------------------------------------------------
  for (const run of runs) {
    run.axes = Object.fromEntries(Object.entries(run.axes).map(([name, t]) => [name, [steps(t.x), doubles(t.y)]]));
  }
  const curve = (c) => (c && !c.x.length ? null : c && { x: steps(c.x), y: floats(c.y) });
  const charts = report.charts.map((chart) => ({
    ...chart,
    curves: chart.curves.map((c) => c && { raw: curve(c.raw), mean: curve(c.mean ?? c.raw) }),
  }));
  const longest = Math.max(1, ...runs.map((run) => run.step));

  function onAxis(run, xs) {
    if (state.axis === "step") return xs;
    const table = run.axes[state.axis];
    if (!table) return null;
    const [from, to] = table;
    let at = 0;
    return xs.map((x) => {
      while (at < from.length - 2 && from[at + 1] < x) at++;
      const end = Math.min(at + 1, from.length - 1);
      const part = from[end] > from[at] ? (x - from[at]) / (from[end] - from[at]) : 0;
      return to[at] + Math.max(0, Math.min(1, part)) * (to[end] - to[at]);
    });
  }

  // A mean over both neighborhoods that fades exponentially: it does not lag behind as one of the past alone would. Over
  // steps, not lines, so that runs of another log_every are smoothed alike.
  function smoothed({ x, y }) {
    const length = state.smooth * longest;
    const sums = y.slice(), weights = y.map(() => 1);
    for (const direction of [1, -1]) {
      let sum = 0, weight = 0;
      for (let n = 1, i = direction > 0 ? 1 : y.length - 2; n < y.length; n++, i += direction) {
        const keep = Math.exp(-Math.abs(x[i] - x[i - direction]) / length);
        sum = keep * (sum + y[i - direction]);
        weight = keep * (weight + 1);
        sums[i] += sum;
        weights[i] += weight;
      }
    }
    return sums.map((sum, i) => sum / weights[i]);
  }

  function positive(xs, ys) {
    const kept = xs.map((x, i) => i).filter((i) => (!state.logX || xs[i] > 0) && (!state.logY || ys[i] > 0));
    return [kept.map((i) => xs[i]), kept.map((i) => ys[i])];
  }

  // -> [{run, table: [xs, ys], faint}], raw curves first so that strong ones lie on them
  function tables(chart) {
    const faint = [], strong = [];
    runs.forEach((run, number) => {
      const found = chart.curves[number];
      if (!run.shown || !found || !found.raw) return;
      const xs = onAxis(run, found.raw.x);
      if (!xs) return;
      const smooths = chart.smooth && state.smooth > 0;
      const raw = { run, table: positive(xs, found.raw.y), faint: smooths };
      (smooths ? faint : strong).push(raw);
      if (smooths) strong.push({ run, table: positive(onAxis(run, found.mean.x), smoothed(found.mean)), faint: false });
    });
    return [...faint, ...strong].filter(({ table }) => table[0].length);
  }

  function extent() {
    let low = Infinity, high = -Infinity;
    for (const chart of charts) {
      runs.forEach((run, number) => {
        const found = chart.curves[number];
        if (!run.shown || !found || !found.raw) return;
        const xs = onAxis(run, [found.raw.x[0], found.raw.x[found.raw.x.length - 1]]);
        const begin = xs && (state.logX && xs[0] <= 0 ? onAxis(run, [1])[0] : xs[0]);
        if (xs && (!state.logX || begin > 0)) [low, high] = [Math.min(low, begin), Math.max(high, xs[1])];
      });
    }
    return high > low ? [low, high] : [state.logX ? 0.1 : 0, Number.isFinite(high) ? high || 1 : 1];
  }

  // One early spike must not flatten the rest: of many points the outermost are left out.
  function yRange(parts) {
    const [low, high] = state.view ?? extent();
    const seen = parts.flatMap(({ table: [xs, ys] }) => ys.filter((_, i) => xs[i] >= low && xs[i] <= high));
    if (!seen.length) return [state.logY ? 0.1 : 0, 1];
    seen.sort((a, b) => a - b);
    const cut = seen.length > 50;
    const bottom = seen[cut ? Math.floor(0.002 * seen.length) : 0];
    const top = seen[cut ? Math.ceil(0.995 * seen.length) - 1 : seen.length - 1];
    if (state.logY) return [bottom / 1.15, top * 1.15];
    const room = (top - bottom) * 0.06 || Math.abs(top) * 0.1 || 1;
    return [bottom - room, top + room];
  }

  // ---- charts -------------------------------------------------------------------------------------------------------------
  function markRestarts(u, parts) {
    const shown = new Set(parts.map(({ run }) => run));
    u.ctx.save();
    u.ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
    u.ctx.lineWidth = devicePixelRatio;
    for (const run of shown) {
      for (const x of onAxis(run, run.restarted) ?? []) {
        if (x < u.scales.x.min || x > u.scales.x.max || (state.logX && x <= 0)) continue;
        const at = Math.round(u.valToPos(x, "x", true));
        u.ctx.strokeStyle = css(`--c${run.color}`);
        u.ctx.beginPath();
        u.ctx.moveTo(at, u.bbox.top);
        u.ctx.lineTo(at, u.bbox.top + u.bbox.height);
        u.ctx.stroke();
      }
    }
    u.ctx.restore();
  }

  function tellValues(u, chart, parts) {
    chart.values.replaceChildren();
    if (u.cursor.left === undefined || u.cursor.left < 0) return;
    const x = u.posToVal(u.cursor.left, "x");
    make("span", chart.values, `${state.axis === "step" ? whole(Math.round(x)) : short(x)} ${AXES[state.axis]}`);
    for (const { run, table: [xs, ys] } of parts.filter((part) => !part.faint)) {
      let low = 0, high = xs.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (xs[middle] < x) low = middle + 1; else high = middle;
      }
      if (low && x - xs[low - 1] < xs[low] - x) low--;
      const entry = make("span", chart.values);
      swatch(entry, run);
      entry.append(x > xs[xs.length - 1] * 1.02 ? "–" : precise(ys[low]));
    }
  }

  function zoom(view) {
    state.view = view;
    for (const u of drawn.values()) {
      const [min, max] = view ?? extent();
      u.setScale("x", { min, max });
    }
  }

  function options(chart, parts) {
    const soft = css("--soft"), grid = { stroke: css("--line"), width: 1 };
    const axis = { stroke: soft, grid, ticks: grid, font: "11px system-ui, sans-serif" };
    const distr = (log) => (log ? 3 : 1);
    return {
      width: chart.plot.clientWidth,
      height: chart.plot.clientHeight,
      padding: [8, 18, 0, 0],
      cursor: { sync: { key: "all", setSeries: false }, points: { show: false }, y: false, drag: { x: true, y: false, setScale: false } },
      legend: { show: false },
      scales: {
        x: { time: false, distr: distr(state.logX), range: () => state.view ?? extent() },
        y: { distr: distr(state.logY), range: () => yRange(parts) },
      },
      axes: [
        { ...axis, size: 26, space: 60, values: (_, ticks) => labels(ticks) },
        { ...axis, size: 54, values: (_, ticks) => labels(ticks) },
      ],
      series: [
        {},
        ...parts.map(({ run, faint }) => ({
          stroke: css(`--c${run.color}`) + (faint ? "55" : ""),
          width: faint ? 1 : 1.8,
          dash: run.dashed ? [6, 3] : undefined,
          spanGaps: true,
          points: { show: chart.dots, size: 5, fill: css("--card") },
        })),
      ],
      hooks: {
        draw: [(u) => markRestarts(u, parts)],
        setCursor: [(u) => tellValues(u, chart, parts)],
        setSelect: [(u) => {
          if (u.select.width > 4) {
            zoom([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
          }
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        }],
      },
    };
  }

  function draw(chart) {
    drawn.get(chart)?.destroy();
    drawn.delete(chart);
    const parts = tables(chart);
    chart.card.hidden = !parts.length;
    chart.values.replaceChildren();
    if (!parts.length || !chart.plot.clientWidth) return;
    const data = uPlot.join(parts.map(({ table }) => table));
    const u = new uPlot(options(chart, parts), data, chart.plot);
    drawn.set(chart, u);
    u.over.addEventListener("dblclick", () => zoom(null));
    pinch(u);
  }

  // Two fingers zoom, one shows values; up and down still scrolls the page.
  function pinch(u) {
    let begin = null;
    const place = (touch) => touch.clientX - u.over.getBoundingClientRect().left;
    const tell = ({ clientX, clientY }) => u.over.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY, bubbles: true }));
    u.over.addEventListener("touchstart", (event) => {
      if (event.touches.length === 1) tell(event.touches[0]);
      if (event.touches.length !== 2) return;
      const [a, b] = [...event.touches].map(place).sort((p, q) => p - q);
      begin = [u.posToVal(a, "x"), u.posToVal(b, "x")];
    }, { passive: true });
    u.over.addEventListener("touchmove", (event) => {
      if (event.touches.length === 1) {
        tell(event.touches[0]);
      } else if (event.touches.length === 2 && begin) {
        event.preventDefault();
        const [a, b] = [...event.touches].map(place).sort((p, q) => p - q);
        const width = u.over.clientWidth, log = state.logX;
        const [from, to] = begin.map((x) => (log ? Math.log(x) : x));
        const scale = (to - from) / Math.max(10, b - a);
        const view = [from - a * scale, from + (width - a) * scale].map((x) => (log ? Math.exp(x) : x));
        const [low, high] = extent();
        zoom([Math.max(low, view[0]), Math.min(high, view[1])]);
      }
    }, { passive: false });
    u.over.addEventListener("touchend", () => (begin = null), { passive: true });
  }

  function redraw() {
    charts.forEach(draw);
  }

  function writeCharts() {
    const rest = document.getElementById("rest");
    rest.hidden = !charts.some((chart) => chart.folded);
    for (const chart of charts) {
      chart.card = make("section", document.getElementById(chart.folded ? "folded" : "charts"), "", chart.full ? "chart full" : "chart");
      const head = make("div", chart.card, "", "head");
      make("h3", head, chart.title);
      chart.values = make("div", head, "", "values");
      chart.plot = make("div", chart.card, "", "plot");
    }
    rest.addEventListener("toggle", redraw);
  }

  function listen() {
    const axis = document.getElementById("axis");
    for (const [name, label] of Object.entries(AXES)) {
      if (name === "step" || runs.some((run) => run.axes[name])) make("option", axis, label).value = name;
    }
    const on = (id, change) => document.getElementById(id).addEventListener("input", (event) => {
      change(event.target);
      redraw();
    });
    on("axis", (element) => ([state.axis, state.view] = [element.value, null]));
    on("log-x", (element) => ([state.logX, state.view] = [element.checked, null]));
    on("log-y", (element) => (state.logY = element.checked));
    const setSmooth = (element) => (state.smooth = (element.value / 100) ** 2 / 5); // a fifth of the longest run at most
    on("smooth", setSmooth);
    setSmooth(document.getElementById("smooth"));
    document.getElementById("reset").addEventListener("click", () => zoom(null));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== width) redraw(); // a phone's address bar changes the height alone
      width = innerWidth;
    });
  }

  // ---- config, starts, samples ---------------------------------------------------------------------------------------------
  function writeGrid(parent, head, rows) {
    const table = make("table", make("div", parent, "", "wide"));
    const top = make("tr", make("thead", table));
    head.forEach((entry) => {
      const cell = make("th", top);
      if (entry.run) swatch(cell, entry.run);
      cell.append(entry.text);
    });
    const body = make("tbody", table);
    for (const cells of rows) {
      const row = make("tr", body);
      cells.forEach((text, i) => (i ? make("td", row, text) : make("code", make("td", row), text)));
    }
  }

  function writeDifferences() {
    const place = document.getElementById("differences");
    for (const group of report.differences) {
      make("h2", place, report.differences.length > 1 ? `Configuration that differs: ${group.objective}` : "Configuration that differs");
      const head = [{ text: "key" }, ...group.runs.map((number) => ({ run: runs[number], text: runs[number].name }))];
      if (group.rows.length) writeGrid(place, head, group.rows);
      else make("p", place, "Nothing but their folders.", "soft");
    }
  }

  function writeStarts() {
    const place = document.getElementById("starts");
    const rows = runs.flatMap((run) => run.starts.map((start) => [run.name, ...start]));
    place.hidden = !rows.length;
    const head = ["run", "start", "from step", "steps lost", "the start before ended", "ranks", "hosts", "job", "code"];
    if (rows.length) writeGrid(place, head.map((text) => ({ text })), rows);
  }

  function writeSamples() {
    const place = document.getElementById("samples");
    if (!runs.some((run) => run.samples.length)) return;
    make("h2", place, "Samples");
    const grid = make("div", place, "", "samples");
    for (const run of runs.filter((run) => run.samples.length)) {
      const card = make("div", grid, "", "sample");
      const title = make("b", card);
      swatch(title, run);
      title.append(run.name);
      const choices = make("div", card, "", "choices"), box = make("div", card);
      run.samples.forEach((sample, number) => {
        const choice = make("button", choices, number ? whole(sample.step) : `step ${whole(sample.step)}`);
        choice.addEventListener("click", () => {
          for (const other of choices.children) other.classList.toggle("chosen", other === choice);
          showSample(box, sample);
        });
      });
      choices.firstChild.click(); // the newest
    }
  }

  function showSample(box, sample) {
    box.replaceChildren();
    for (const [name, picture] of sample.pictures) {
      const image = make("img", box);
      image.alt = name;
      image.src = picture;
    }
    if (sample.text) make("pre", box, sample.text);
  }

  writeLead();
  writeTable();
  writeCharts();
  listen();
  writeDifferences();
  writeStarts();
  writeSamples();
  redraw();
})();
