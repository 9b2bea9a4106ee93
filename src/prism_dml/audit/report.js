"use strict";
// The review page. All text from the data is put in by textContent; only what is on screen is in the document.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const { suspects, overview, classes, sheets } = data;
const total = suspects.index.length;
const byId = (id) => document.getElementById(id);
const whole = (number) => number.toLocaleString("en");
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Decisions: row of a suspect -> [action, label]. They and their history are kept by the browser, by sample, for all
// audits of these paths and labels: another one may suspect others, whose decisions go along.
const storageKey = `prism-review:${data.fingerprint}`;
const rowOf = new Map(suspects.index.map((index, row) => [index, row]));
let decisions = new Map();
let elsewhere = []; // corrections of samples that this page does not show
let history = []; // [row, decision before or null]
let storageWorks = true;
let unsaved = false;
const HISTORY = 1000;

function load() {
  try {
    const text = localStorage.getItem(storageKey);
    if (text === null) return;
    const saved = JSON.parse(text);
    elsewhere = saved.corrections.filter(({ index }) => !rowOf.has(index));
    const here = saved.corrections.filter(({ index }) => rowOf.has(index));
    decisions = new Map(here.map(({ index, action, label }) => [rowOf.get(index), [action, label]]));
    history = saved.history.filter(([index]) => rowOf.has(index)).map(([index, before]) => [rowOf.get(index), before]);
  } catch {
    storageFails();
  }
}

function save() {
  unsaved = true;
  try {
    const steps = history.map(([row, before]) => [suspects.index[row], before]);
    localStorage.setItem(storageKey, JSON.stringify({ corrections: made(), history: steps }));
  } catch {
    storageFails();
  }
}

function storageFails() {
  storageWorks = false;
  byId("storage-notice").hidden = false;
}

function decide(row, action, label) {
  const before = decisions.get(row) ?? null;
  history.push([row, before]);
  history = history.slice(-HISTORY);
  decisions.set(row, [action, label]);
  save();
  const next = nextOpen(row);
  const words = { relabel: `Relabelled: ${label}`, keep: "Kept", drop: "Dropped" }[action];
  refilter();
  if (next !== null && shown.includes(next)) current = next;
  else if (!shown.includes(current)) current = shown.find((other) => other > row) ?? shown.at(-1) ?? null;
  changed(`${words}. ${whole(decisions.size)} of ${whole(total)} decided.`);
}

function undo() {
  const last = history.pop();
  if (!last) return say("Nothing to undo.");
  const [row, before] = last;
  if (before === null) decisions.delete(row);
  else decisions.set(row, before);
  save();
  refilter();
  if (shown.includes(row)) current = row;
  changed(`Undone. ${whole(decisions.size)} of ${whole(total)} decided.`);
}

const accept = (row) => {
  const label = classes[suspects.suggested[row]];
  if (suspects.suggested[row] === suspects.given[row]) return say("There is no other suggestion for this one.");
  decide(row, "relabel", label);
};
const keep = (row) => decide(row, "keep", classes[suspects.given[row]]);
const drop = (row) => decide(row, "drop", null);
const relabel = (row, label) =>
  label === classes[suspects.given[row]] ? keep(row) : decide(row, "relabel", label);

function made() {
  const here = [...decisions].map(([row, [action, label]]) => ({
    index: suspects.index[row], path: suspects.path[row], given_label: classes[suspects.given[row]], action, label,
  }));
  return [...here, ...elsewhere].sort((a, b) => a.index - b.index);
}

function corrections() {
  const undecided = overview.issues - decisions.size;
  return { version: data.version, fingerprint: data.fingerprint, undecided, corrections: made() };
}

function exportCorrections() {
  const file = new Blob([JSON.stringify(corrections(), null, 1) + "\n"], { type: "application/json" });
  const url = URL.createObjectURL(file);
  make("a", { href: url, download: "corrections.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  unsaved = false;
  say(`Exported ${whole(decisions.size + elsewhere.length)} corrections.`);
}

// Pictures: cut from sheets, which are beside the page or in it.
const sheetUrls = new Map();
function sheetUrl(number) {
  if (!sheetUrls.has(number)) {
    let url = `${sheets.folder}/${String(number).padStart(4, "0")}.webp`;
    if (sheets.inside) {
      const bytes = Uint8Array.from(atob(byId(`sheet-${number}`).textContent.trim()), (c) => c.charCodeAt(0));
      url = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
    }
    sheetUrls.set(number, url);
  }
  return sheetUrls.get(number);
}

const missing = new Set(sheets?.missing);
function picture(className, place, description) {
  if (missing.has(place)) {
    const path = data.near.path[place], words = `no picture: ${path}`;
    const shownPath = make("span", { class: "path", text: path });
    return make("span", { class: `${className} missing`, role: "img", "aria-label": words, title: words }, "no picture", shownPath);
  }
  const element = make("span", { class: className, role: "img", "aria-label": description, title: description });
  const perSheet = sheets.columns ** 2;
  const number = Math.floor(place / perSheet);
  const inside = place % perSheet;
  const rows = Math.ceil(Math.min(perSheet, sheets.count - number * perSheet) / sheets.columns);
  const column = inside % sheets.columns, row = Math.floor(inside / sheets.columns);
  element.style.backgroundImage = `url("${sheetUrl(number)}")`;
  element.style.backgroundSize = `${100 * sheets.columns}% ${100 * rows}%`;
  element.style.backgroundPosition =
    `${(100 * column) / (sheets.columns - 1)}% ${rows > 1 ? (100 * row) / (rows - 1) : 0}%`;
  return element;
}

// A long list of which only the rows on screen are in the document.
class Windowed {
  constructor(box, scroller, pitch, make) {
    Object.assign(this, { box, scroller, pitch, make, count: 0, rows: new Map(), waiting: false });
    const later = () => this.later();
    (scroller ?? window).addEventListener("scroll", later, { passive: true });
    window.addEventListener("resize", later);
  }
  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.render(); });
  }
  reset(count) {
    this.count = count;
    for (const element of this.rows.values()) element.remove();
    this.rows.clear();
    this.render();
  }
  render() {
    const pitch = this.pitch();
    this.box.style.height = `${this.count * pitch}px`;
    if (!this.box.offsetParent) return; // its view is hidden
    const top = this.scroller ? -this.scroller.scrollTop : this.box.getBoundingClientRect().top;
    const height = this.scroller ? this.scroller.clientHeight : window.innerHeight;
    const first = Math.max(0, Math.floor(-top / pitch) - 2);
    const last = Math.min(this.count - 1, Math.ceil((height - top) / pitch) + 1);
    for (const [row, element] of this.rows) {
      if (row >= first && row <= last) continue;
      element.remove();
      this.rows.delete(row);
    }
    let before = null; // elements stay in the order of their rows: it is the order of the Tab key
    for (let row = last; row >= first; row--) {
      let element = this.rows.get(row);
      if (!element) {
        element = this.make(row);
        this.rows.set(row, element);
        this.box.insertBefore(element, before);
      }
      element.style.top = `${row * pitch}px`;
      before = element;
    }
  }
}

// Review.
const filters = { given: "", suggested: "", kind: "", state: "all" };
let shown = []; // rows that pass the filters, worst first
let current = null;
const pitchOfCards = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--pitch"));
const cards = new Windowed(byId("cards"), null, pitchOfCards, (place) => card(shown[place], place));

const passes = (row) =>
  (filters.given === "" || suspects.given[row] === Number(filters.given)) &&
  (filters.suggested === "" || suspects.suggested[row] === Number(filters.suggested)) &&
  (filters.kind === "" || suspects.issue[row] === Number(filters.kind)) &&
  (filters.state === "all" || decisions.has(row) === (filters.state === "decided"));

function refilter() {
  shown = [];
  for (let row = 0; row < total; row++) if (passes(row)) shown.push(row);
}

function nextOpen(from) {
  const open = (row) => row !== from && !decisions.has(row) && passes(row);
  for (let row = from + 1; row < total; row++) if (open(row)) return row;
  for (let row = 0; row < from; row++) if (open(row)) return row;
  return null;
}

function changed(words) {
  const inside = byId("cards").contains(document.activeElement) || document.activeElement === document.body;
  cards.reset(shown.length);
  progress();
  if (current !== null && !byId("review").hidden) toCurrent(inside);
  if (words) say(words);
}

function progress() {
  const bar = byId("progress");
  bar.setAttribute("aria-valuemax", total);
  bar.setAttribute("aria-valuenow", decisions.size);
  byId("progress-fill").style.transform = `scaleX(${total ? decisions.size / total : 0})`;
  byId("open-count").textContent = `${whole(decisions.size)} / ${whole(total)}`;
  byId("shown").textContent = `${whole(shown.length)} of ${whole(total)} suspects`;
  byId("nothing").hidden = shown.length > 0;
  byId("export").disabled = decisions.size + elsewhere.length === 0;
}

function toCurrent(takeFocus = true) {
  const place = shown.indexOf(current);
  if (place < 0) return;
  const pitch = pitchOfCards(), box = byId("cards").getBoundingClientRect();
  const header = document.querySelector(".top").offsetHeight + 12;
  const top = box.top + place * pitch, bottom = top + pitch;
  if (top < header) window.scrollBy(0, top - header);
  else if (bottom > window.innerHeight) window.scrollBy(0, Math.min(bottom - window.innerHeight, top - header));
  cards.render();
  mark();
  if (takeFocus) cards.rows.get(place)?.focus({ preventScroll: true });
}

function mark() {
  for (const [place, element] of cards.rows) {
    const is = shown[place] === current;
    element.tabIndex = is ? 0 : -1;
    if (is) element.setAttribute("aria-current", "true");
    else element.removeAttribute("aria-current");
  }
}

function move(step) {
  const place = shown.indexOf(current);
  if (!shown.length) return;
  current = shown[clamp(place + step, 0, shown.length - 1)];
  toCurrent();
}

const KIND_HELP = {
  "wrong label": "another class fits better", outlier: "fits no class", "conflicting duplicate": "the same image has another label",
  "ambiguous classes": "the two classes overlap",
};

function card(row, place) {
  const given = classes[suspects.given[row]], suggested = classes[suspects.suggested[row]];
  const other = suspects.suggested[row] !== suspects.given[row];
  const decision = decisions.get(row);
  const kind = data.kinds[suspects.issue[row]];
  const element = make("article", {
    class: `card${sheets ? "" : " plain"}${sheets && sheets.side < 64 ? " pixels" : ""}${decision ? " decided" : ""}`,
    "aria-posinset": place + 1, "aria-setsize": shown.length, tabindex: row === current ? 0 : -1, "data-row": row,
    "aria-label": `Given ${given}${other ? `, suggested ${suggested}` : ""}${decision ? `, ${verdict(decision)}` : ""}`,
  });
  if (row === current) element.setAttribute("aria-current", "true");
  const act = (name, key, pressed, run) => {
    const button = make("button", { type: "button", "aria-pressed": String(pressed), "aria-keyshortcuts": key }, `${name} `);
    button.append(make("kbd", { text: key, "aria-hidden": "true" }));
    button.addEventListener("click", (event) => {
      event.stopPropagation(); // the card would make itself the current one again
      current = row;
      run(row);
    });
    return button;
  };
  const [action, label] = decision ?? [];
  const acceptButton = act("Accept", "A", action === "relabel" && label === suggested, accept);
  acceptButton.disabled = !other;
  const fact = (name, value, className, score) => [
    make("dt", { text: name }), make("dd", { class: "score", text: `${score} likely` }),
    make("dd", { class: `class ${className}`, text: value, title: value }),
  ];
  const facts = make("div", { class: "facts" },
    make("p", { class: "meta" },
      make("span", { class: "badge", text: kind || "suspect", title: KIND_HELP[kind] ?? "" }),
      make("span", { class: "path", text: suspects.path[row], title: suspects.path[row] })),
    make("dl", { class: "labels" },
      ...fact("given", given, "", percent(suspects.score[row])),
      ...(other ? fact("suggested", suggested, "new", percent(suspects.suggestedScore[row])) : [])),
    make("p", { class: `verdict ${action ?? ""}`, text: decision ? verdict(decision) : "" }));
  const near = make("div", { class: "near" },
    neighbours(`trusted “${given}”`, suspects.givenNear[row]),
    ...(other ? [neighbours(`trusted “${suggested}”`, suspects.suggestedNear[row])] : []));
  const body = make("div", { class: "body" }, facts,
    make("div", { class: "actions", role: "group", "aria-label": "Decision" }, acceptButton,
      act("Keep", "K", action === "keep", keep),
      act("Other …", "L", action === "relabel" && label !== suggested, choose),
      act("Drop", "D", action === "drop", drop)));
  if (sheets) element.append(picture("picture", suspects.picture[row], `the suspect, labelled ${given}`));
  element.append(body, near);
  element.addEventListener("click", () => { current = row; mark(); });
  element.addEventListener("focusin", () => { if (current !== row) { current = row; mark(); } });
  return element;
}

function verdict([action, label]) {
  return { relabel: `✓ relabelled: ${label}`, keep: "✓ kept: the label is right", drop: "✗ dropped" }[action];
}

function neighbours(title, samples) {
  const strip = make("div", { class: "strip" });
  if (!samples.length) strip.append(make("span", { class: "soft none", text: "none" }));
  for (const number of samples) {
    const path = data.near.path[number];
    strip.append(sheets ? picture("thumb", data.near.picture[number], path) : make("span", { text: path, title: path }));
  }
  return make("div", {}, make("p", { text: title, title }), strip);
}

// Another label.
let chosenFor = null;
let matches = [];
let chosen = 0;
const SHOWN_MATCHES = 60;

function choose(row) {
  chosenFor = row;
  byId("chooser-text").value = "";
  search();
  byId("chooser").showModal();
  byId("chooser-text").focus();
}

function search() {
  const text = byId("chooser-text").value.trim();
  const wanted = text.toLowerCase();
  const rank = (name) => (name.toLowerCase() === wanted ? 0 : name.toLowerCase().startsWith(wanted) ? 1 : 2);
  matches = classes.filter((name) => name.toLowerCase().includes(wanted));
  matches.sort((a, b) => rank(a) - rank(b)); // stable: else in the order of the classes
  matches = matches.slice(0, SHOWN_MATCHES);
  const isNew = text !== "" && text.toLowerCase() !== "nan" && !classes.includes(text);
  if (isNew) matches.push(text);
  chosen = 0;
  byId("chooser-list").replaceChildren(...matches.map((name, i) => {
    const words = isNew && i === matches.length - 1 ? `New label: ${name}` : name;
    return make("li", { role: "option", id: `option-${i}`, text: words, title: name, onclick: () => take(i) });
  }));
  markChosen();
}

function markChosen() {
  [...byId("chooser-list").children].forEach((item, i) => {
    item.setAttribute("aria-selected", String(i === chosen));
    if (i === chosen) item.scrollIntoView({ block: "nearest" });
  });
  byId("chooser-text").setAttribute("aria-activedescendant", matches.length ? `option-${chosen}` : "");
}

function take(i) {
  if (!matches[i]) return;
  byId("chooser").close();
  relabel(chosenFor, matches[i]);
}

byId("chooser-text").addEventListener("input", search);
byId("chooser-text").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    chosen = clamp(chosen + step, 0, matches.length - 1);
    markChosen();
  } else if (event.key === "Enter" && !event.isComposing) take(chosen);
  else return;
  event.preventDefault();
});
byId("chooser").addEventListener("close", () => { if (!byId("review").hidden) toCurrent(); });

// Keys.
const onRow = (run) => () => { if (current !== null && shown.includes(current)) run(current); };
const KEYS = {
  a: onRow(accept), k: onRow(keep), l: onRow(choose), d: onRow(drop), u: undo,
  arrowdown: () => move(1), arrowup: () => move(-1), arrowright: () => move(1), arrowleft: () => move(-1),
  n: () => { const next = nextOpen(current ?? -1); if (next !== null) { current = next; toCurrent(); } },
};
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const key = event.key.toLowerCase();
  if (event.repeat && !key.startsWith("arrow")) return; // a key that is held down decides once
  if ((event.ctrlKey || event.metaKey) && key === "z" && !byId("review").hidden) undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (key === "?") byId("help").showModal();
  else if (key === "e") { if (!byId("export").disabled) exportCorrections(); }
  else if (key === "o") view("overview");
  else if (key === "r") view("review");
  else if (!byId("review").hidden && KEYS[key]) KEYS[key]();
  else return;
  event.preventDefault();
});

const say = (words) => { byId("said").textContent = words; };

function view(name) {
  for (const id of ["overview", "review"]) {
    byId(id).hidden = id !== name;
    if (id === name) byId(`show-${id}`).setAttribute("aria-current", "page");
    else byId(`show-${id}`).removeAttribute("aria-current");
  }
  window.scrollTo(0, 0);
  if (name === "review") { cards.render(); toCurrent(); }
  else { classRows.render(); drawMap(); }
}

function option(value, text) { return make("option", { value, text }); }

function fillFilters() {
  const counted = (id, column, names, all) => {
    const counts = new Map();
    for (const number of column) counts.set(number, (counts.get(number) ?? 0) + 1);
    const present = [...counts.keys()].sort((a, b) => a - b);
    byId(id).replaceChildren(option("", all), ...present.map((i) => option(i, `${names[i]} (${whole(counts.get(i))})`)));
  };
  counted("filter-given", suspects.given, classes, "all classes");
  counted("filter-suggested", suspects.suggested, classes, "all classes");
  counted("filter-kind", suspects.issue, data.kinds, "all kinds");
  for (const name of Object.keys(filters)) {
    leaveWhenChosen(byId(`filter-${name}`), (value) => filter({ [name]: value }));
  }
}

// A choice gives the keys back to the cards; but who walks through a closed list by arrows or letters, each of which
// chooses, stays in it until Enter or Escape.
function leaveWhenChosen(list, choose) {
  let key = "", walked = false;
  list.addEventListener("pointerdown", () => { key = ""; });
  list.addEventListener("keydown", (event) => {
    key = event.altKey ? "" : event.key; // Alt with an arrow opens the list
    if (key === "Enter" && walked) {
      event.preventDefault(); // it would open the list
      toCurrent();
    }
    walked = false;
  });
  list.addEventListener("keyup", (event) => { if (/^(Enter|Escape)$/.test(event.key)) toCurrent(); });
  list.addEventListener("change", () => {
    choose(list.value);
    walked = /^(Arrow|Home|End|Page|\S$)/.test(key);
    if (!walked) toCurrent();
  });
}

function filter(changes) {
  Object.assign(filters, changes);
  for (const [name, value] of Object.entries(filters)) byId(`filter-${name}`).value = value;
  refilter();
  if (!shown.includes(current)) current = shown.find((row) => !decisions.has(row)) ?? shown[0] ?? null;
  cards.reset(shown.length);
  progress();
}

function review(changes) {
  filter({ given: "", suggested: "", kind: "", state: "all", ...changes });
  view("review");
}

// Overview.
const PAIRS = 12, MATRIX = 10;

function headline() {
  byId("name").textContent = data.name;
  byId("rate").textContent = percent(overview.noiseRate, overview.noiseRate < 0.1 ? 1 : 0);
  const [low, high] = overview.noiseInterval;
  const limit = total < overview.issues ? `The ${whole(total)} most suspicious of ${whole(overview.issues)} are shown.` : "";
  byId("lead").textContent =
    `of the ${whole(overview.samples)} labels are wrong, as far as can be told ` +
    `(95 % interval: ${percent(low, 1)} to ${percent(high, 1)}). ${whole(overview.issues)} look wrong one by one. ${limit}`;
  byId("kinds").textContent = Object.entries(overview.kinds).map(([kind, count]) => `${kind}: ${whole(count)}`).join(" · ");
  const mixed = overview.ambiguous.slice(0, PAIRS).map(([one, other]) => `${classes[one]} and ${classes[other]}`);
  if (overview.ambiguous.length > PAIRS) mixed.push(`${whole(overview.ambiguous.length - PAIRS)} more pairs`);
  byId("ambiguous").hidden = !mixed.length;
  byId("ambiguous").textContent = `Classes mixed as if they were one: ${mixed.join("; ")}.`;
  byId("start").disabled = total === 0;
  byId("limit").hidden = !limit;
  byId("limit").textContent = limit;
}

const WIDE = 520, HIGH = 190, LEFT = 34, BOTTOM = 24;

function axes(vertical) {
  const x = (value) => LEFT + value * (WIDE - LEFT - 8), y = (share) => (1 - share) * (HIGH - BOTTOM - 8) + 8;
  const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" });
  for (const share of [0, 0.5, 1]) {
    svg.append(
      draw("line", { class: "axis", x1: LEFT, x2: WIDE - 8, y1: y(share), y2: y(share) }),
      draw("text", { x: LEFT - 6, y: y(share) + 4, "text-anchor": "end", text: vertical(share) }),
      draw("text", { x: x(share), y: HIGH - 6, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle", text: share }));
  }
  return { svg, x, y };
}

function histogram() {
  const { trusted, suspect } = overview.histogram;
  // The square root keeps a few suspects visible beside many trusted labels.
  const most = Math.sqrt(Math.max(1, ...trusted, ...suspect));
  const { svg, x, y } = axes((share) => whole(Math.round((share * most) ** 2)));
  svg.setAttribute("aria-label", `Distribution of the scores of ${whole(overview.samples)} labels`);
  const step = 1 / trusted.length;
  const bars = (counts, className, inset) => counts.forEach((count, i) => {
    const top = y(Math.sqrt(count) / most);
    if (count) svg.append(draw("rect", {
      class: className, x: x(i * step) + inset, width: x(step) - x(0) - 2 * inset, y: top, height: y(0) - top, rx: 2,
    }, draw("title", { text: `${(i * step).toFixed(3)} to ${((i + 1) * step).toFixed(3)}: ${whole(count)}` })));
  });
  bars(trusted, "bar-trusted", 1.5);
  bars(suspect, "bar-suspect", 1.5);
  byId("histogram").append(svg);
}

function reliability() {
  const bins = overview.reliability;
  if (!bins) {
    byId("reliability").append(make("p", { class: "unknown", text: "Not measured: which labels are truly right is not known." }));
    byId("reliability-caption").textContent = "A reliability diagram needs true labels.";
    return;
  }
  const { svg, x, y } = axes((share) => share);
  svg.setAttribute("aria-label", "Reliability diagram: share of right labels by score");
  const places = bins.map(([score, share]) => [x(score), y(share)]);
  svg.append(
    draw("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
    draw("polyline", { class: "measured", points: places.map((place) => place.join(",")).join(" ") }),
    ...bins.map(([score, share, count], i) => draw("circle", { class: "point", cx: places[i][0], cy: places[i][1], r: 5 },
      draw("title", { text: `score ${score.toFixed(2)}: ${percent(share, 1)} right of ${whole(count)}` }))));
  byId("reliability").append(svg);
  byId("reliability-caption").textContent = "Share of truly right labels (up) by score (right). On the dashed line a score means what it says.";
}

const COLUMNS = [["name", "Class"], ["samples", "Images"], ["suspects", "Suspects"], ["wrongShare", "Wrong"], ["suggested", "Often suggested"]];
const table = overview.classTable;
let classOrder = [...table.name.keys()];
let sorted = { column: "wrongShare", descending: true };
const classRows = new Windowed(byId("class-rows"), byId("class-body"), () => 38, (place) => {
  const i = classOrder[place], number = table.name[i];
  const cell = (...content) => make("span", { role: "cell" }, ...content);
  const meter = make("b");
  meter.style.transform = `scaleX(${table.wrongShare[i]})`;
  const name = make("button", { type: "button", text: classes[number], title: classes[number], onclick: () => review({ given: String(number) }) });
  name.disabled = !shownClasses.has(number);
  return make("div", { role: "row", "aria-rowindex": place + 2 },
    cell(name), cell(whole(table.samples[i])), cell(whole(table.suspects[i])),
    cell(make("span", { class: "meter" }, make("i", { "aria-hidden": "true" }, meter), percent(table.wrongShare[i], 1))),
    cell(table.suggested[i] < 0 ? "" : classes[table.suggested[i]]));
});
const shownClasses = new Set(suspects.given);

function sortClasses(column, descending) {
  sorted = { column, descending };
  const values = table[column]; // classes are numbered in their order, so numbers sort names too
  classOrder.sort((a, b) => (descending ? values[b] - values[a] : values[a] - values[b]) || a - b);
  for (const head of byId("class-head").children) {
    if (head.dataset.column === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  classRows.reset(classOrder.length);
}

function classTable() {
  byId("class-table").setAttribute("aria-rowcount", classOrder.length + 1);
  byId("class-head").append(...COLUMNS.map(([column, title]) => {
    const byText = column === "name" || column === "suggested";
    const sort = () => sortClasses(column, sorted.column === column ? !sorted.descending : !byText);
    return make("span", { role: "columnheader", "data-column": column }, make("button", { type: "button", text: title, onclick: sort }));
  }));
  byId("class-body").style.height = `min(${Math.max(1, classOrder.length) * 38}px, 24rem)`;
  sortClasses("wrongShare", true);
}

function confusion() {
  const { given, suggested, count, pairs } = overview.confusion;
  const most = Math.max(1, ...count);
  byId("pairs-note").textContent = pairs
    ? `${whole(Math.min(PAIRS, pairs))} most frequent of ${whole(pairs)} pairs among the suspects.` : "No suspect has another class suggested.";
  const shownPairs = new Set(suspects.given.map((a, row) => `${a},${suspects.suggested[row]}`));
  byId("pairs").append(...given.slice(0, PAIRS).map((a, i) => {
    const text = `${classes[a]} → ${classes[suggested[i]]}`;
    const bar = make("i", { "aria-hidden": "true" });
    bar.style.transform = `scaleX(${count[i] / most})`;
    const open = () => review({ given: String(a), suggested: String(suggested[i]) });
    const button = make("button", { type: "button", onclick: open, title: text }, make("span", { text }), bar, make("span", { class: "number", text: whole(count[i]) }));
    button.disabled = !shownPairs.has(`${a},${suggested[i]}`); // of more suspects than are shown, none is of this pair
    return make("li", {}, button);
  }));
  const weight = new Map();
  given.forEach((a, i) => { for (const k of [a, suggested[i]]) weight.set(k, (weight.get(k) ?? 0) + count[i]); });
  const chosenClasses = [...weight.keys()].sort((a, b) => weight.get(b) - weight.get(a)).slice(0, MATRIX).sort((a, b) => a - b);
  byId("matrix-note").textContent = chosenClasses.length
    ? `Given (rows) and suggested (columns), the ${chosenClasses.length} classes confused most.` : "Nothing is confused.";
  if (!chosenClasses.length) return;
  const cells = new Map(given.map((a, i) => [`${a},${suggested[i]}`, count[i]]));
  const head = make("tr", {}, make("td", { class: "same" }), ...chosenClasses.map((b) => make("th", { scope: "col", title: classes[b] }, make("span", { text: classes[b] }))));
  const rows = chosenClasses.map((a) => make("tr", {}, make("th", { scope: "row", text: classes[a], title: classes[a] }), ...chosenClasses.map((b) => {
    const value = cells.get(`${a},${b}`) ?? 0;
    const cell = make("td", a === b ? { class: "same" } : {}, value ? whole(value) : "");
    if (value) cell.style.background = `color-mix(in srgb, var(--suspect) ${Math.round(15 + 65 * (value / most))}%, var(--card))`;
    return cell;
  })));
  byId("matrix").append(make("table", { class: "matrix" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}

// Map.
const canvas = byId("map");
const spots = overview.map;
let places = [];

function drawMap() {
  const width = canvas.clientWidth, height = canvas.clientHeight, scale = window.devicePixelRatio || 1;
  if (!width) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  places = spots.x.map((x, i) => [14 + (x / 1000) * (width - 28), 14 + (1 - spots.y[i] / 1000) * (height - 28)]);
  const dots = (isSuspect, fill, radius, alpha) => {
    context.fillStyle = fill;
    context.globalAlpha = alpha;
    places.forEach(([x, y], i) => {
      if ((spots.row[i] >= 0) !== isSuspect) return;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    });
  };
  dots(false, colour("--trusted"), 2.2, 0.45);
  dots(true, colour("--suspect"), 3, 0.75);
}

function spotAt(event) {
  const box = canvas.getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  let best = -1, nearest = 12 ** 2;
  places.forEach(([px, py], i) => {
    const distance = (px - x) ** 2 + (py - y) ** 2;
    if (spots.row[i] >= 0 && distance < nearest) { nearest = distance; best = i; }
  });
  return best;
}

canvas.addEventListener("pointermove", (event) => {
  const spot = spotAt(event), tip = byId("map-tip");
  canvas.style.cursor = spot < 0 ? "default" : "pointer";
  tip.hidden = spot < 0;
  if (spot < 0) return;
  const row = spots.row[spot];
  tip.textContent = `${classes[suspects.given[row]]} → ${classes[suspects.suggested[row]]}`;
  tip.style.left = `${clamp(places[spot][0] + 12, 0, canvas.clientWidth - 180)}px`;
  tip.style.top = `${places[spot][1] + 12}px`;
});
canvas.addEventListener("pointerleave", () => { byId("map-tip").hidden = true; });
canvas.addEventListener("click", (event) => {
  const spot = spotAt(event);
  if (spot < 0) return;
  filter({ given: "", suggested: "", kind: "", state: "all" });
  current = spots.row[spot];
  view("review");
});

// Start.
load();
try { localStorage.setItem(`${storageKey}:probe`, "1"); localStorage.removeItem(`${storageKey}:probe`); } catch { storageFails(); }
fillFilters();
headline();
histogram();
reliability();
classTable();
confusion();
byId("map-method").textContent = overview.mapMethod;
filter({});
drawMap();
byId("show-overview").addEventListener("click", () => view("overview"));
byId("show-review").addEventListener("click", () => view("review"));
byId("start").addEventListener("click", () => view("review"));
byId("export").addEventListener("click", exportCorrections);
byId("show-help").addEventListener("click", () => byId("help").showModal());
byId("filters").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("resize", drawMap);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
window.addEventListener("storage", (event) => { // the same audit in another window
  if (event.key !== storageKey) return;
  load();
  filter({});
});
window.addEventListener("beforeunload", (event) => { if (!storageWorks && unsaved) event.preventDefault(); });
document.documentElement.dataset.ready = String(performance.now());
})();
