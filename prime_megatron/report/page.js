"use strict";
// Two things: values under the pointer in the pictures, and the heat-map. All text of runs goes in by textContent.

// As many decimals as a reward of full colour needs.
const decimals = (full) => (full > 0 ? Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(full)))) : 3);
const fixed = (value, full) => {
  const text = Math.abs(value).toFixed(decimals(full));
  return +text === 0 ? "0" : (value < 0 ? "−" : "+") + text;
};
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toPrecision(3).replace(/\.?0+$/, "");
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

// Pictures: the last values, and those of the step under the pointer in all pictures at once.
const pictures = [...document.querySelectorAll("figure.picture")].flatMap((figure) => {
  const script = figure.querySelector("script");
  if (!script) return [];
  return [{
    ...JSON.parse(script.textContent),
    plot: figure.querySelector(".plot"),
    cross: figure.querySelector(".cross"),
    at: figure.querySelector(".at"),
    outputs: [...figure.querySelectorAll("output")],
  }];
});

// Nearest to a step; null: the last one.
function valueAt(key, step) {
  let best = null;
  key.s.forEach((own, index) => {
    if (own === null || key.v[index] === null) return;
    if (best === null || step === null || Math.abs(own - step) <= Math.abs(key.s[best] - step)) best = index;
  });
  return best === null ? null : { step: key.s[best], value: key.v[best] };
}

function readOff(step) {
  for (const picture of pictures) {
    const [left, right] = picture.span;
    const shown = step !== null && step >= left && step <= right;
    picture.cross.hidden = !shown;
    picture.at.textContent = shown ? `step ${Math.round(step)}` : "";
    if (shown) {
      const share = picture.box[0] + ((step - left) / (right - left)) * (picture.box[2] - picture.box[0]);
      picture.cross.style.left = `${100 * share}%`;
    }
    for (const output of picture.outputs) {
      const found = valueAt(picture.keys[output.dataset.key], shown ? step : null);
      output.textContent = found === null ? "" : String(+found.value.toPrecision(3));
    }
  }
}

for (const picture of pictures) {
  picture.plot.addEventListener("mousemove", (event) => {
    const box = picture.plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const [left, , right] = picture.box;
    const place = Math.min(1, Math.max(0, (share - left) / (right - left)));
    readOff(picture.span[0] + place * (picture.span[1] - picture.span[0]));
  });
  picture.plot.addEventListener("mouseleave", () => readOff(null));
}
readOff(null);

// The heat-map.
const data = JSON.parse(document.getElementById("data").textContent);
const viewer = document.getElementById("viewer");
const form = viewer.querySelector("form");
const place = { list: [], index: 0 };
const byId = (id) => document.getElementById(id);

async function unpack(group) {
  if (!group.content) {
    const bytes = Uint8Array.from(atob(group.packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    group.content = JSON.parse(await new Response(stream).text());
  }
  return group.content;
}

const chosen = (name) => (form.elements[name] ? form.elements[name].value : "");

function matches(group, index, content) {
  const [right, disagrees] = group.s[index];
  const show = chosen("show");
  if (show === "right" && !right) return false;
  if (show === "wrong" && right) return false;
  if (show === "disagree" && !disagrees) return false;
  const wanted = chosen("search").toLowerCase();
  if (!wanted) return true;
  return content.s[index].t.toLowerCase().includes(wanted) || content.prompt.toLowerCase().includes(wanted);
}

let turn = 0;
async function filter(keep) {
  const mine = ++turn;
  const wanted = data.groups.filter((group) =>
    (chosen("run") === "" || group.run === +chosen("run")) &&
    (chosen("kind") === "" || group.kind === chosen("kind")) &&
    (chosen("step") === "" || group.step === +chosen("step")));
  const list = [];
  let responses = 0, all = 0;
  for (const group of wanted) {
    const content = chosen("search") ? await unpack(group) : null;
    if (mine !== turn) return;
    const found = group.s.filter((_, index) => matches(group, index, content)).length;
    responses += found;
    all += group.s.length;
    if (found) list.push(group);
  }
  place.list = list;
  place.index = Math.max(0, list.indexOf(keep));
  place.said = `${responses} of ${all} responses, in ${list.length} of ${wanted.length} prompts`;
  await render();
}

async function render() {
  const group = place.list[place.index];
  byId("before").disabled = place.index === 0;
  byId("next").disabled = place.index >= place.list.length - 1;
  byId("count").textContent = group ? `prompt ${place.index + 1} of ${place.list.length} (${place.said})` : "nothing matches";
  byId("prompt").replaceChildren();
  byId("siblings").replaceChildren();
  if (!group) return;
  const content = await unpack(group);
  if (group !== place.list[place.index]) return;
  const words = [data.runs[group.run].name, `step ${group.step}`, group.kind.replace("_", " "), group.source, group.uid];
  if (group.filter && group.filter !== "kept") words.push(`filter: ${group.filter.replace("_", " ")}`);
  const details = make("details");
  details.open = content.prompt.length < 600;
  details.append(make("summary", "", words.filter(Boolean).join(" · ") + (content.truth ? ` · truth ${content.truth.slice(0, 80)}` : "")));
  details.append(make("pre", "", content.prompt));
  byId("prompt").append(details);
  const sizes = content.s.flatMap((one) => one.r.filter((r) => r !== null).map((r) => Math.abs(r) * one.u));
  const run = data.runs[group.run];
  const scales = { prompt: Math.max(0, ...sizes), run: run.scale, step: run.steps[group.step] || run.scale };
  const full = scales[chosen("scale")];
  legend(full);
  content.s.forEach((one, index) => byId("siblings").append(response(group, content, one, index, full)));
  cursor = null;
}

function legend(full) {
  byId("legend").replaceChildren();
  for (const part of full > 0 ? [-1, -0.5, -0.1, 0.1, 0.5, 1] : []) {
    const span = make("span", `tok strong ${part > 0 ? "plus" : "minus"}`, ` ${fixed(part * full, full)} `);
    span.style.setProperty("--a", Math.sqrt(Math.abs(part)).toFixed(3));
    byId("legend").append(span);
  }
}

function response(group, content, one, index, full) {
  const [right, disagrees] = group.s[index];
  const article = make("article", `response ${matches(group, index, content) ? "match" : "other"}`);
  const head = make("h4", "", `${right ? "✓ right" : "✗ wrong"}`);
  if (disagrees) head.append(make("span", "tag", "PRM disagrees"));
  article.append(head);
  const total = one.r.reduce((sum, r) => sum + (r || 0) * one.u, 0);
  const facts = [`sample ${one.k}`, `outcome ${one.o}`];
  if (one.p !== null) facts.push(`PRM ${one.p.toFixed(3)}`);
  if (one.r.length) facts.push(`sum ${fixed(total, full)}`);
  facts.push(`${one.e.length || one.i.length || "?"} tokens`, one.f, [one.v, one.w].filter(Boolean).join(": "));
  article.append(make("p", "facts", facts.filter(Boolean).join(" · ")), body(one, full));
  return article;
}

function body(one, full) {
  const text = make("div", "text");
  if (!one.e.length && !one.r.length) {
    text.textContent = one.t;
    return text;
  }
  let start = 0, sum = 0;
  const ends = new Set(one.st);
  const count = one.e.length || one.i.length;
  let line = document.createDocumentFragment();
  for (let index = 0; index < count; index++) {
    const end = start + (one.e.length ? one.e[index] : 0);
    const span = token(one, index, one.t.slice(start, end), full);
    sum += (one.r[index] || 0) * one.u;
    line.append(span);
    start = end;
    if (one.r.length && ends.has(index)) {
      const shown = fixed(sum, full);
      text.append(make("span", `sum ${shown === "0" ? "" : sum > 0 ? "plus" : "minus"}`, shown));
      text.append(line);
      line = document.createDocumentFragment();
      sum = 0;
    }
  }
  text.append(line);
  if (!one.e.length) text.append(make("hr"), make("div", "", one.t));
  return text;
}

function token(one, index, piece, full) {
  const span = make("span", "tok", piece);
  span.dataset.index = index;
  const known = one.e.length > 0;
  if (!known) {
    span.classList.add("id");
    span.dataset.id = `#${one.i[index]}`;
  } else if (piece === "\n") span.classList.add("line");
  else if (piece === "" && index === one.e.length - 1) span.classList.add("none");
  const r = one.r[index];
  if (r === undefined || r === null) {
    span.dataset.tip = r === null ? "reward is not a number" : "no reward";
    return span;
  }
  const reward = r * one.u;
  const share = full > 0 ? Math.min(1, Math.sqrt(Math.abs(reward) / full)) : 0;
  if (reward !== 0) {
    span.classList.add(reward > 0 ? "plus" : "minus");
    span.style.setProperty("--a", share.toFixed(3));
    if (share > 0.25) span.classList.add("strong");
  }
  span.dataset.reward = reward;
  span.dataset.tip = signed(reward);
  return span;
}

// The pointer on a token.
const tip = byId("tip");
byId("siblings").addEventListener("mouseover", (event) => {
  const span = event.target.closest(".tok");
  tip.hidden = !span;
  if (!span) return;
  const piece = span.dataset.id || JSON.stringify(span.textContent);
  tip.textContent = `reward ${span.dataset.tip}\ntoken ${+span.dataset.index + 1}: ${piece}`;
  const box = span.getBoundingClientRect();
  tip.style.left = `${Math.min(box.left, innerWidth - tip.offsetWidth - 12)}px`;
  tip.style.top = `${box.bottom + tip.offsetHeight + 12 > innerHeight ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
});
byId("siblings").addEventListener("mouseleave", () => { tip.hidden = true; });

// From one large reward to the next.
let cursor = null;
function point(span) {
  document.querySelectorAll(".tok.here").forEach((other) => other.classList.remove("here"));
  span.classList.add("here");
  span.scrollIntoView({ block: "center" });
}
function large(sign) {
  const spans = [...byId("siblings").querySelectorAll(".tok[data-reward]")].filter((span) => span.dataset.reward * sign > 0);
  spans.sort((a, b) => sign * (b.dataset.reward - a.dataset.reward));
  if (!spans.length) return;
  cursor = cursor && cursor.sign === sign ? { sign, at: (cursor.at + 1) % spans.length } : { sign, at: 0 };
  point(spans[cursor.at]);
}
byId("most").addEventListener("click", () => large(1));
byId("least").addEventListener("click", () => large(-1));
document.querySelectorAll("a.go").forEach((link) => link.addEventListener("click", async (event) => {
  event.preventDefault();
  form.reset();
  const own = data.groups.filter((group) => group.run === +link.dataset.run);
  await filter(own[+link.dataset.group]);
  point(byId("siblings").children[+link.dataset.response].querySelectorAll(".tok")[+link.dataset.token]);
}));

const move = (by) => {
  const next = place.index + by;
  if (next < 0 || next >= place.list.length) return;
  place.index = next;
  render();
};
byId("before").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "ArrowLeft") move(-1);
  if (event.key === "ArrowRight") move(1);
});
form.addEventListener("submit", (event) => event.preventDefault());
const changed = (event) => (event.target.name === "scale" ? render() : filter(place.list[place.index]));
form.elements.search.addEventListener("input", changed);
form.querySelectorAll("select").forEach((select) => select.addEventListener("change", changed));

if (data.groups.length) {
  const options = (name, values, all) => {
    form.elements[name].append(new Option(all, ""), ...values.map((value) => new Option(String(value).replace("_", " "), value)));
  };
  options("kind", [...new Set(data.groups.map((group) => group.kind))], "all");
  options("step", [...new Set(data.groups.map((group) => group.step))].sort((a, b) => a - b), "all");
  viewer.hidden = false;
  const trained = data.groups.filter((group) => group.kind === "trained");
  filter(trained[trained.length - 1]);
}
