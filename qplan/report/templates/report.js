// The page is whole without this script: it adds tooltips, sorting and filters, and the slider over the frontier.
"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words;
  const MISSING = "\u2013";
  const byId = (id) => document.getElementById(id);
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  // numbers as qplan/report/notation.py writes them
  const significant = (value, digits = 3) => {
    if (!Number.isFinite(value)) return value > 0 ? "∞" : MISSING;
    if (value === 0) return "0";
    const rounded = value.toExponential(digits - 1);
    const decimals = Math.max(digits - 1 - Number(rounded.split("e")[1]), 0);
    return Number(rounded).toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  };
  const loss = (nats) => (nats === 0 || Math.abs(nats) >= 0.995 ? significant(nats, 2) : nats.toExponential(1));
  const size = (bytes) => {
    const prefixes = ["B", "kB", "MB", "GB", "TB"];
    let place = 0;
    while (bytes >= 999.5 && place < prefixes.length - 1) [bytes, place] = [bytes / 1000, place + 1];
    return `${significant(bytes)} ${prefixes[place]}`;
  };
  const ratio = (value) => {
    if (value === null || !Number.isFinite(value)) return MISSING;
    if (Math.abs(value) < 0.01) return `${loss(value)}×`;
    if (Math.abs(value) >= 9.995) return `${significant(value)}×`;
    let decimals = 2;
    while (Math.abs(value - 1) > 1e-6 && decimals < 6 && Number(value.toFixed(decimals)) === 1) decimals += 1;
    return `${value.toFixed(decimals)}×`;
  };
  // as a sentence of the language has it
  const times = (value) => ratio(value).replace(/(.*)×$/, (_, number) => fill(words.times, { number }));

  for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;

  // colors: the system's until the button is pressed
  const theme = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => (theme.textContent = isDark() ? words.light : words.dark);
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  system.addEventListener("change", nameTheme);
  nameTheme();

  // tooltips: one element for all cells; titles give way to it, so that no cell has two
  const tip = byId("tip");
  const titles = new Map();
  let shown = null;

  const cellOf = (tensor, format) => data.cells[tensor].find((cell) => cell && cell[5] === format);
  const describe = (tensor, cell, column) => {
    const [name, , , , planned] = data.tensors[tensor];
    const [nats, error, sqnr, estimated, bytes, stored] = cell;
    const lines = [make("b", name)];
    const format = data.formats[stored][0];
    const asked = column === null ? format : data.formats[column][0];
    const as = asked === format ? asked : `${asked}, ${fill(words.stored, { format })}`;
    lines.push(make("span", `${as} · ${fill(words.bytes, { size: size(bytes) })}`));
    lines.push(make("span", fill(words.loss, { loss: loss(nats), error: loss(error) })));
    if (error > 0) {
      const [low, high] = [Math.max(nats - 1.96 * error, 0), nats + 1.96 * error];
      lines.push(make("span", fill(words.interval, { low: loss(low), high: loss(high) })));
    }
    const source = estimated ? words.gradient : words.measured;
    lines.push(make("span", `SQNR ${sqnr === null ? "∞" : sqnr.toFixed(1)} dB · ${source}`));
    if (stored !== planned) lines.push(make("span", fill(words.in_plan, { format: data.formats[planned][0] })));
    else lines.push(make("span", words.planned, "chosen"));
    return lines;
  };

  const linesOf = (cell) => {
    const map = cell.closest("svg");
    const tensors = cell.dataset.t.split(" ").map(Number);
    if (!data.tensors.length) return (titles.get(cell) ?? "").split("\n").map((line) => make("span", line));
    const lines = tensors.slice(0, 4).flatMap((tensor) => {
      if (map.dataset.map === "loss") {
        const column = Number(map.dataset.f);
        return describe(tensor, data.cells[tensor][column], column);
      }
      const format = map.dataset.map === "plan" ? data.tensors[tensor][4] : data.stops[chosen].formats[tensor];
      const found = cellOf(tensor, format);
      return found ? describe(tensor, found, null) : [make("b", data.tensors[tensor][0]), make("span", data.formats[format][0])];
    });
    if (tensors.length > 4) lines.push(make("span", fill(words.more, { count: tensors.length - 4 })));
    return lines;
  };

  const hide = () => {
    shown?.classList.remove("shown");
    shown = null;
    tip.hidden = true;
  };
  const show = (cell) => {
    if (cell === shown) return;
    hide();
    shown = cell;
    cell.classList.add("shown");
    tip.replaceChildren(...linesOf(cell));
    tip.hidden = false;
    const box = cell.getBoundingClientRect();
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), document.documentElement.clientWidth - width - 8);
    const above = box.top - height - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above >= 8 ? above : box.bottom + 8}px`;
  };

  const listen = (map) => {
    for (const cell of map.querySelectorAll("[data-t]")) {
      const title = cell.querySelector("title");
      if (!title) continue;
      titles.set(cell, title.textContent);
      title.remove();
    }
    map.tabIndex = 0;
    map.setAttribute("role", "group");
    map.setAttribute("aria-description", words.keys);
    map.addEventListener("pointerover", (event) => {
      const cell = event.target.closest("[data-t]");
      if (cell) show(cell);
      else hide();
    });
    map.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    map.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-t]");
      if (cell) show(cell);
    });
    map.addEventListener("focus", () => {
      if (map.matches(":focus-visible") && !map.contains(shown)) show(map.querySelector("[data-t]"));
    });
    map.addEventListener("blur", hide);
    map.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = neighbor(map, step);
      if (!next) return;
      next.scrollIntoView({ block: "nearest", inline: "nearest" });
      show(next);
    });
  };

  const corner = (cell) => ["x", "y"].map((name) => Number(cell.querySelector("rect").getAttribute(name)));
  const neighbor = (map, [right, down]) => {
    const cells = [...map.querySelectorAll("[data-t]")];
    if (!map.contains(shown)) return cells[0];
    const [x, y] = corner(shown);
    let [best, least] = [null, Infinity];
    for (const cell of cells) {
      const [dx, dy] = [corner(cell)[0] - x, corner(cell)[1] - y];
      const [along, across] = right ? [dx * right, Math.abs(dy)] : [dy * down, Math.abs(dx)];
      if (along > 0.5 && along + 50 * across < least) [best, least] = [cell, along + 50 * across];
    }
    return best;
  };

  for (const map of document.querySelectorAll("svg.map")) listen(map);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("pointerdown", (event) => !event.target.closest?.("svg.map") && hide());
  addEventListener("resize", hide);
  addEventListener("scroll", (event) => event.target === document && !shown?.closest("svg").matches(":focus") && hide(), true);

  // the table of tensors: sorted by the column that is pressed, filtered by what is typed and chosen
  const table = byId("tensor-table");
  const body = table.tBodies[0];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };
  for (const head of table.querySelectorAll("th[data-column]")) {
    const button = make("button");
    button.type = "button";
    button.title = words.sort;
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const column = Number(head.dataset.column);
      const isText = typeof valueOf(body.rows[0], column) === "string";
      const now = head.getAttribute("aria-sort");
      const down = now === null ? !isText : now === "ascending";
      const order = (a, b) => {
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        return (isText ? x.localeCompare(y, "en", { numeric: true }) : x - y) * (down ? -1 : 1);
      };
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort(order));
    });
  }
  const [typed, kind, planned] = [byId("filter-name"), byId("filter-kind"), byId("filter-format")];
  const filter = () => {
    const parts = typed.value.toLowerCase().split(/[\s*]+/).filter(Boolean);
    let count = 0;
    for (const row of body.rows) {
      const name = row.cells[0].textContent.toLowerCase();
      row.hidden = !(
        parts.every((part) => name.includes(part)) &&
        (!kind.value || name.split(".").at(-1) === kind.value.toLowerCase()) &&
        (!planned.value || row.cells[1].textContent === planned.value)
      );
      count += !row.hidden;
    }
    byId("shown").textContent = fill(words.shown, { shown: count, count: body.rows.length });
  };
  for (const control of [typed, kind, planned]) control.addEventListener("input", filter);
  typed.form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  // the slider over the frontier
  let chosen = data.plan.stop;
  if (data.stops.length) {
    const slider = byId("budget");
    const plot = document.querySelector("svg.tradeoff");
    const rows = [...byId("stops").tBodies[0].rows].filter((row) => "stop" in row.dataset);
    const reading = (name, text) => (document.querySelector(`[data-read="${name}"]`).textContent = text);
    let map = null;
    if (data.tensors.length) {
      map = document.querySelector('svg.map[data-map="plan"]').cloneNode(true);
      map.dataset.map = "stop";
      byId("stop-map").append(map);
      listen(map);
    } else document.querySelector("#stop .detailed").hidden = true;

    const meanBits = (tensors, formats) => {
      const weights = tensors.reduce((sum, t) => sum + data.tensors[t][3], 0);
      return tensors.reduce((sum, t) => sum + data.formats[formats[t]][1] * data.tensors[t][3], 0) / weights;
    };
    // marks as in the plan's own map: the format with the most tensors of a width goes unprimed
    const marksOf = (formats) => {
      const counts = new Map();
      for (const format of formats) counts.set(format, (counts.get(format) ?? 0) + 1);
      const order = [...counts].sort(([f, m], [g, n]) => data.formats[g][1] - data.formats[f][1] || n - m || f - g);
      const [marks, primes] = [new Map(), new Map()];
      for (const [format] of order) {
        const bits = data.formats[format][1];
        marks.set(format, bits + "′".repeat(primes.get(bits) ?? 0));
        primes.set(bits, (primes.get(bits) ?? 0) + 1);
      }
      return marks;
    };
    const widths = data.widths;
    const redraw = (stop) => {
      const formats = stop.formats;
      const marks = marksOf(formats);
      const every = data.tensors.map((_, t) => t);
      for (const cell of map.querySelectorAll("g.bits")) {
        const tensors = cell.dataset.t.split(" ").map(Number);
        const own = new Set(tensors.map((t) => formats[t]));
        const bits = meanBits(tensors, formats);
        const near = widths.reduce((best, width) => (Math.abs(width - bits) < Math.abs(best - bits) ? width : best));
        const mark = own.size === 1 ? marks.get(formats[tensors[0]]) : bits.toFixed(1);
        const changed = tensors.some((t) => formats[t] !== data.tensors[t][4]);
        const narrow = Number(cell.querySelector("rect").getAttribute("width")) + 1.5 < 7 * mark.length + 6;
        cell.setAttribute("class", `bits b${near}${narrow ? " small" : ""}${changed ? " changed" : ""}`);
        cell.querySelector("text").textContent = mark;
      }
      for (const text of map.querySelectorAll("[data-kind]")) {
        const own = every.filter((t) => data.tensors[t][1] === text.dataset.kind && data.tensors[t][2] !== null);
        text.textContent = meanBits(own, formats).toFixed(1);
      }
      for (const text of map.querySelectorAll("[data-layer]")) {
        const own = every.filter((t) => data.tensors[t][2] === Number(text.dataset.layer));
        text.textContent = meanBits(own, formats).toFixed(1);
      }
      for (const text of map.querySelectorAll("[data-about]")) {
        const tensor = Number(text.dataset.about);
        const found = cellOf(tensor, formats[tensor]);
        text.textContent = data.formats[formats[tensor]][0] + (found ? ` · ${size(found[4])}` : "");
      }
      map.setAttribute("aria-label", fill(words.map, { size: size(stop.bytes) }));
      const changes = every.filter((t) => formats[t] !== data.tensors[t][4]);
      const by = (sign) =>
        changes.filter((t) => Math.sign(data.formats[formats[t]][1] - data.formats[data.tensors[t][4]][1]) === sign);
      const counts = { wider: by(1).length, narrower: by(-1).length, other: by(0).length };
      byId("changes-said").textContent = changes.length ? fill(words.changes, counts) : words.same;
      const chip = (format) => make("span", data.formats[format][0], `chip b${data.formats[format][1]}`);
      byId("changes").hidden = !changes.length;
      byId("changes").replaceChildren(
        ...[...by(1), ...by(-1), ...by(0)].map((t) => {
          const item = make("li");
          item.append(make("code", data.tensors[t][0]), " ", chip(data.tensors[t][4]), " → ", chip(formats[t]));
          return item;
        }),
      );
    };

    const select = (place) => {
      hide();
      chosen = place;
      const stop = data.stops[place];
      slider.value = place;
      const said = { size: size(stop.bytes), bpw: stop.bpw.toFixed(2), loss: loss(stop.nats) };
      slider.setAttribute("aria-valuetext", fill(words.stop, said));
      reading("size", said.size);
      reading("size-beside", fill(words.times_plan, { share: times(stop.bytes / data.plan.bytes) }));
      reading("bpw", said.bpw);
      reading("marks", [stop.knee && words.knee, place === data.plan.stop && words.own].filter(Boolean).join(", "));
      reading("loss", said.loss);
      reading("loss-beside", data.plan.nats ? fill(words.times_plan, { share: times(stop.nats / data.plan.nats) }) : "");
      reading("against", times(stop.against));
      reading("against-beside", stop.against === null ? words.no_uniform : words.best_uniform);
      for (const row of rows) row.toggleAttribute("aria-current", Number(row.dataset.stop) === place);
      const dot = plot.querySelector(`[data-stop="${place}"] .mark`);
      const ring = plot.querySelector(".chosen");
      for (const name of ["cx", "cy"]) ring.setAttribute(name, dot.getAttribute(name));
      ring.setAttribute("visibility", "visible");
      if (map) redraw(stop);
    };

    slider.addEventListener("input", () => select(Number(slider.value)));
    for (const dot of plot.querySelectorAll("[data-stop]")) dot.addEventListener("click", () => select(Number(dot.dataset.stop)));
    for (const row of rows) {
      const button = make("button", row.cells[0].textContent);
      button.type = "button";
      row.cells[0].replaceChildren(button);
      row.addEventListener("click", () => select(Number(row.dataset.stop)));
    }
    // uniform formats between the stops, by the logarithm of their bytes
    const last = data.stops.length - 1;
    const ends = [-1, -1, -1]; // of the names in each of three lines, px of a track of 300
    for (const [name, bytes] of data.uniform) {
      const above = data.stops.findIndex((stop) => stop.bytes >= bytes);
      let place = above === -1 ? last : 0;
      if (above > 0) {
        const [low, high] = [data.stops[above - 1].bytes, data.stops[above].bytes];
        place = above - 1 + Math.log(bytes / low) / Math.log(high / low);
      }
      const tick = make("span", name);
      const at = last ? place / last : 0;
      tick.style.left = `${100 * at}%`;
      const half = 3.5 * name.length;
      const free = ends.findIndex((end) => 300 * at - half > end);
      const line = free === -1 ? ends.indexOf(Math.min(...ends)) : free;
      ends[line] = 300 * at + half;
      tick.dataset.line = line;
      byId("ticks").append(tick);
    }
    select(chosen);
  }
}
