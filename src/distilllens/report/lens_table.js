// The lens table: depth x token for one text, the teacher and one student side by side.
(() => {
  const lens = pageData.lens;
  const root = document.querySelector("#lens [data-widget]");
  const state = { text: 0, student: lens.models.length > 1 ? 1 : 0, colour: "probability" };
  let rows, tables, at, hovered, mostEntropy;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const word = (place) => (place === null ? "–" : lens.words[place]);
  const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : `${(100 * p).toPrecision(2)} %`);
  const text = () => lens.documents[state.text];
  // A cell's top tokens, their probabilities and its entropy.
  const cell = (model, depth, token) => {
    const [top, p, entropy] = text().cells[model][depth];
    return { top: top[token], p: p[token], entropy: entropy[token] };
  };
  const jsd = (row, token) => text().jsd[state.student - 1][rows[row].student][token];

  const models = () => (state.student ? [0, state.student] : [0]);
  const depthOf = (model, row) => (model ? rows[row].student : rows[row].teacher);

  function shade(model, row, token) {
    const { p, entropy } = cell(model, depthOf(model, row), token);
    if (state.colour === "probability") return p[0];
    if (state.colour === "entropy") return entropy / mostEntropy;
    return jsd(row, token) / Math.LN2;
  }

  function buildTable(model) {
    const { read, next } = text();
    const name = lens.models[model].name;
    const head = (label, places, of) =>
      make("tr", {}, make("th", { scope: "col" }, label), ...places.map((place) =>
        make("th", { scope: "col", title: `${of}: ${word(place)}` }, word(place))));
    const table = make("table", { role: "grid", "aria-label": `${name}: depth by token` },
      make("thead", {}, head("read", read, "read"), head(lens.own ? "here" : "next", next, lens.own ? "to predict" : "next in the text")));
    const body = make("tbody");
    rows.forEach((_, row) => {
      const depth = depthOf(model, row);
      const mark = rows[row].trained ? "◆" : "";
      const line = make("tr", { role: "row" },
        make("th", { scope: "row", title: mark ? "paired by lens_layers" : null }, `${depth}${mark}`));
      read.forEach((place, token) => {
        const found = cell(model, depth, token);
        const best = word(found.top[0]);
        line.append(make("td", {
          role: "gridcell", tabindex: "-1", "data-row": row, "data-token": token,
          class: found.top[0] === next[token] ? "right" : null,
          "aria-label": `${name}, depth ${depth}, ${lens.own ? "at" : "after"} ${word(place)}: ${best}, ${percent(found.p[0])}`,
        }, best));
      });
      body.append(line);
    });
    table.append(body);
    return table;
  }

  function paint() {
    tables.forEach(({ model, cells }) => cells.forEach((line, row) => line.forEach((td, token) =>
      td.style.setProperty("--v", shade(model, row, token).toFixed(3)))));
    const ends = {
      probability: ["0", "probability of the top token", "1"],
      entropy: ["0", "entropy (nats)", mostEntropy.toFixed(1)],
      jsd: ["0", "JSD of the pair (nats)", "0.693"],
    }[state.colour];
    root.querySelector(".scale").replaceChildren(ends[0], make("i"), `${ends[2]}  ${ends[1]}`);
  }

  function topTen(model, { row, token }) {
    const depth = depthOf(model, row);
    const { top, p, entropy } = cell(model, depth, token);
    const next = text().next[token];
    return make("div", {},
      make("h4", {}, lens.models[model].name,
        make("small", {}, `depth ${depth}, entropy ${entropy.toFixed(2)} nats`)),
      make("ol", {}, ...top.map((place, rank) => {
        const bar = make("li", { class: place === next ? "right" : null },
          make("span", {}, word(place)), make("b", {}, percent(p[rank])));
        bar.style.setProperty("--p", p[rank]);
        return bar;
      })));
  }

  function show(place) {
    const { row, token } = place;
    const { read, next } = text();
    const distance = state.student ? `, JSD ${jsd(row, token).toFixed(3)} nats` : "";
    const follows = lens.own ? ", predicted in its own place" : next[token] === null ? " ends the text" :
      [" is followed by ", make("q", {}, word(next[token]))];
    const title = make("p", { class: "where" }, `Token ${token + 1}, `,
      make("q", {}, word(read[token])), ...[follows].flat(), distance);
    root.querySelector(".ten").replaceChildren(title,
      make("div", { class: "lists" }, ...models().map((model) => topTen(model, place))));
    for (const td of root.querySelectorAll(".partner")) td.classList.remove("partner");
    for (const { cells } of tables) cells[row][token].classList.add("partner");
  }

  function select(side, row, token, focus) {
    for (const td of root.querySelectorAll(".at")) td.classList.remove("at");
    // One cell per table can be reached with Tab: the selected one, or its partner.
    for (const { cells } of tables) cells[at.row][at.token].tabIndex = -1;
    for (const { cells } of tables) cells[row][token].tabIndex = 0;
    at = { side, row, token };
    const td = tables[side].cells[row][token];
    td.classList.add("at");
    if (focus) {
      td.focus({ preventScroll: true });
      reveal(tables[side].scroller, td);
    }
    show(at);
  }

  // Scroll only the table, and only until the sticky header and depths no longer cover the cell.
  function reveal(scroller, td) {
    const box = scroller.getBoundingClientRect(), own = td.getBoundingClientRect();
    const head = scroller.querySelector("thead").getBoundingClientRect().bottom;
    const side = scroller.querySelector("tbody th").getBoundingClientRect().right;
    if (own.left < side) scroller.scrollLeft -= side - own.left;
    else if (own.right > box.right) scroller.scrollLeft += own.right - box.right;
    if (own.top < head) scroller.scrollTop -= head - own.top;
    else if (own.bottom > box.bottom) scroller.scrollTop += own.bottom - box.bottom;
    td.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  const MOVES = {
    ArrowUp: (r, t) => [r - 1, t], ArrowDown: (r, t) => [r + 1, t],
    ArrowLeft: (r, t) => [r, t - 1], ArrowRight: (r, t) => [r, t + 1],
    Home: (r) => [r, 0], End: (r) => [r, Infinity],
    PageUp: (r, t) => [0, t], PageDown: (r, t) => [Infinity, t],
    Enter: (r, t) => [r, t], " ": (r, t) => [r, t],
  };
  const clamp = (value, count) => Math.max(0, Math.min(value, count - 1));

  function listen(side, scroller) {
    const place = (event) => {
      const td = event.target.closest("td");
      return td && { side, row: Number(td.dataset.row), token: Number(td.dataset.token) };
    };
    scroller.addEventListener("click", (event) => {
      const found = place(event);
      if (found) { open(true); select(side, found.row, found.token, true); }
    });
    scroller.addEventListener("keydown", (event) => {
      if (event.key === "Escape") open(false);
      const move = MOVES[event.key];
      if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      if (event.key === "Enter" || event.key === " ") open(true);
      const [row, token] = move(at.row, at.token);
      select(side, clamp(row, rows.length), clamp(token, text().read.length), true);
    });
    scroller.addEventListener("focusin", (event) => {
      const found = place(event);
      if (found && (found.row !== at.row || found.token !== at.token || side !== at.side))
        select(side, found.row, found.token, false);
    });
    scroller.addEventListener("pointerover", (event) => {
      const found = event.pointerType === "mouse" && place(event);
      if (found && (!hovered || found.row !== hovered.row || found.token !== hovered.token))
        show((hovered = found));
    });
    scroller.addEventListener("pointerleave", () => { if (hovered) show(at); hovered = null; });
    scroller.addEventListener("scroll", () => {
      for (const other of tables)
        if (other.scroller !== scroller) {
          if (other.scroller.scrollLeft !== scroller.scrollLeft) other.scroller.scrollLeft = scroller.scrollLeft;
          if (other.scroller.scrollTop !== scroller.scrollTop) other.scroller.scrollTop = scroller.scrollTop;
        }
    }, { passive: true });
  }

  function open(wide) {
    root.querySelector(".panel").classList.toggle("closed", !wide);
    close.setAttribute("aria-expanded", wide);
    close.textContent = wide ? "Hide" : "Top ten";
  }

  function build() {
    const depths = lens.models[0].depths;
    const pairs = state.student ? lens.pairs[state.student - 1] : [...Array(depths).keys()].map((d) => [d, d]);
    const trained = new Set(state.student ? lens.trained[state.student - 1] : []);
    rows = pairs.map(([student, teacher]) => ({ student, teacher, trained: trained.has(student) })).reverse();
    mostEntropy = Math.max(1e-9, ...models().flatMap((model) =>
      rows.flatMap((_, row) => text().cells[model][depthOf(model, row)][2])));
    tables = models().map((model) => {
      const table = buildTable(model);
      const scroller = make("div", { class: "scroller" }, table);
      const cells = [...table.tBodies[0].rows].map((line) => [...line.cells].slice(1));
      return { model, scroller, cells };
    });
    root.querySelector(".sides").replaceChildren(...tables.map(({ model, scroller }) =>
      make("div", {}, make("h4", {}, lens.models[model].name), scroller)));
    tables.forEach(({ scroller }, side) => listen(side, scroller));
    at = { side: 0, row: 0, token: Math.min(at ? at.token : 0, text().read.length - 1) };
    hovered = null;
    paint();
    select(0, at.row, at.token, false);
  }

  function chooser(label, key, options) {
    const select = make("select", { name: `lens-${key}` }, ...options.map(([value, name]) =>
      make("option", { value, selected: String(state[key]) === String(value) }, name)));
    select.addEventListener("change", () => {
      state[key] = key === "colour" ? select.value : Number(select.value);
      if (key === "colour") paint(); else build();
    });
    return make("label", { class: "choice" }, `${label} `, select);
  }

  function csv() {
    const ranks = text().cells[0].find(Boolean)[0][0].map((_, rank) => rank + 1);
    const columns = ["model", "depth", "token", "read", "next", "entropy",
      ...ranks.flatMap((rank) => [`top_${rank}`, `p_${rank}`])];
    const lines = models().flatMap((model) => text().cells[model].flatMap((found, depth) =>
      found === null ? [] : found[0].map((top, token) => [
        lens.models[model].name, depth, token + 1, word(text().read[token]), word(text().next[token]),
        found[2][token], ...top.flatMap((place, rank) => [word(place), found[1][token][rank]])])));
    downloadCsv("lens", columns, lines);
  }

  const excerpt = (found) => found.read.slice(0, 8).map(word).join("").replaceAll("␣", " ");
  const close = make("button", { type: "button", class: "quiet close", "aria-expanded": "true" }, "Hide");
  close.addEventListener("click", () => open(close.getAttribute("aria-expanded") !== "true"));
  const save = make("button", { type: "button", class: "quiet" }, "Download as CSV");
  save.addEventListener("click", csv);
  const colours = [["probability", "probability"], ["entropy", "entropy"]];
  if (lens.pairs.length) colours.push(["jsd", "JSD of the pair"]);
  root.append(
    make("div", { class: "switches" },
      lens.documents.length > 1
        ? chooser("Text", "text", lens.documents.map((d, i) => [i, `${i + 1}: ${excerpt(d)}`])) : null,
      lens.pairs.length > 1
        ? chooser("Student", "student", lens.models.slice(1).map((m, i) => [i + 1, m.name])) : null,
      chooser("Colour", "colour", colours), make("span", { class: "scale" })),
    make("div", { class: "sides" }),
    make("div", { class: "panel", role: "region", "aria-label": "Most likely tokens" }, close, make("div", { class: "ten" })),
    make("p", { class: "files" }, save));
  build();
})();
