// Chat twice: by the model alone and with a method that guesses ahead. Every token says where it came from.
import { catalogue } from "./catalogue.js";

const $ = (id) => document.getElementById(id);
const PLAIN = "the model alone";
let known = { server: {}, methods: [] };
let history = [];
let leave = null; // ends what is under way

async function start() {
  known = await (await fetch("catalogue.json")).json();
  const { model, context, lithe } = known.server;
  $("model").textContent = `${model} · context ${context} · lithe ${lithe}`;
  offer($("method"), drafts().map((m) => [m.measured?.spec ?? m.name, label(m)]));
  const constraints = known.methods.filter((m) => m.shelf === "constrain" && !known.server.fills);
  offer($("constraint"), constraints.map((m) => [m.name, m.name.replace("_", " ")]));
  catalogue(known.methods, use, fits);
  turnTo();
}

// Whether a method may stand alone in a request of this model.
const fits = (m) => known.server.fills ? m.room === "diffuse" && m.shelf === "unmask" : m.room === "decode" && m.shelf === "draft";

// Methods that need nothing beside the model, those measured fastest first.
function drafts() {
  const free = (m) => !m.trains && !m.needs.some((need) => ["second_model", "corpus"].includes(need));
  return known.methods.filter((m) => fits(m) && (m.lossless || known.server.fills) && free(m))
    .sort((a, b) => (b.measured?.speed ?? 0) - (a.measured?.speed ?? 0) || a.name.localeCompare(b.name));
}

const label = (m) => m.name.replaceAll("_", " ") + (m.measured ? ` (${m.measured.speed.toFixed(2)}×)` : "");

function offer(select, options) {
  for (const [value, text] of options) select.append(new Option(text, value));
}

function use(spec) {
  if (![...$("method").options].some((option) => option.value === spec)) offer($("method"), [[spec, spec]]);
  $("method").value = spec;
  location.hash = "/watch";
  $("prompt").focus();
}

// ---- the two parts of the page

function turnTo() {
  const methods = location.hash === "#/methods";
  $("watch").hidden = methods;
  $("catalogue").hidden = !methods;
  for (const [id, on] of [["to-watch", !methods], ["to-catalogue", methods]])
    on ? $(id).setAttribute("aria-current", "page") : $(id).removeAttribute("aria-current");
}

addEventListener("hashchange", turnTo);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && leave) leave.abort();
  if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) {
    event.preventDefault();
    location.hash = "/methods";
    $("catalogue").hidden = false;
    $("search").focus();
  }
});

// ---- asking

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => leave?.abort());
$("anew").addEventListener("click", () => {
  history = [];
  $("talk").replaceChildren();
  $("say").textContent = "";
  $("prompt").focus();
});
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || leave) return;
  leave = new AbortController();
  $("say").textContent = "";
  $("send").hidden = true;
  $("stop").hidden = false;
  try {
    await turn(text);
    $("prompt").value = "";
  } catch (problem) {
    if (problem.name !== "AbortError") $("say").textContent = problem.message;
  } finally {
    leave = null;
    $("send").hidden = false;
    $("stop").hidden = true;
    $("prompt").focus();
  }
});

async function turn(text) {
  const section = $("turn").content.cloneNode(true).firstElementChild;
  section.querySelector(".said").textContent = text;
  const messages = [...history, { role: "user", content: text }];
  const spec = $("method").value;
  const sides = [[PLAIN, null], [spec, spec]].map(([title, method]) => new Side(title, method, messages));
  section.querySelector(".pair").append(...sides.map((side) => side.box));
  $("talk").append(section);
  section.scrollIntoView({ block: "nearest" });
  try {
    if ($("together").checked) await Promise.all(sides.map((side) => side.run()));
    else for (const side of sides) await side.run();
  } finally {
    for (const side of sides) side.box.removeAttribute("aria-busy");
  }
  section.querySelector(".same").textContent = compared(...sides);
  history = [...messages, { role: "assistant", content: sides[1].text }];
}

function compared(plain, fast) {
  const same = plain.text === fast.text;
  const fewer = plain.passes && fast.passes ? `, in ${fast.passes} passes instead of ${plain.passes}` : "";
  if (same) return `The same text${fewer}.`;
  return Number($("warmth").value) > 0 ? `Another draw from the same law${fewer}.` : `The texts differ${fewer}.`;
}

function body(method, messages) {
  const { model, chat } = known.server;
  const made = { model, stream: true, max_tokens: Number($("most").value), temperature: Number($("warmth").value),
    seed: Number($("seed").value), stream_options: { include_usage: true }, lithe: { report: true } };
  if (method) made.lithe.method = method;
  if (chat) made.messages = messages;
  else made.prompt = messages.at(-1).content;
  const constraint = $("constraint").value;
  const words = $("constraint-text").value.trim();
  if (constraint) made.structured_outputs = asked(constraint, words);
  return made;
}

function asked(constraint, words) {
  const key = constraint === "json_schema" ? "json" : constraint;
  if (key === "json_object") return { json_object: true };
  try {
    return { [key]: key === "json" || key === "choice" ? JSON.parse(words) : words };
  } catch {
    throw new Error(`The text of the constraint is no JSON; ${key === "choice" ? "a list of texts" : "a schema"} is wanted.`);
  }
}

// ---- one answer as it comes

class Side {
  constructor(title, method, messages) {
    Object.assign(this, { method, messages, text: "", tokens: 0, passes: 0, first: 0, last: 0, rounds: [], sources: new Map() });
    this.box = $("side").content.cloneNode(true).firstElementChild;
    this.box.querySelector("h2").textContent = title.replaceAll("_", " ");
    this.words = this.box.querySelector(".text");
    this.tell();
  }

  async run() {
    const headers = { "Content-Type": "application/json" };
    if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
    this.begun = performance.now();
    const path = known.server.chat ? "v1/chat/completions" : "v1/completions";
    const answer = await fetch(path, { method: "POST", headers, signal: leave.signal, body: JSON.stringify(body(this.method, this.messages)) });
    if (answer.status === 401) $("key-line").hidden = false;
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const chunk of events(answer.body)) this.take(chunk);
    this.box.removeAttribute("aria-busy");
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    const told = chunk.choices[0]?.lithe;
    this.text += chunk.choices[0]?.delta?.content ?? chunk.choices[0]?.text ?? "";
    if (told?.tokens.length) {
      this.last = performance.now();
      this.first ||= this.last;
      this.tokens += told.tokens.length;
      this.passes += 1;
      this.rounds.push(told.tokens.length);
      told.pieces.forEach((piece, i) => this.show(piece, told.sources[i]));
      this.draw();
    }
    if (chunk.lithe) this.final = chunk.lithe;
    if (chunk.lithe) this.passes = chunk.lithe.passes;
    this.tell();
  }

  show(piece, source) {
    const held = this.sources.get(source) ?? { colour: source ? [...this.sources.keys()].filter(Boolean).length % 7 : null, count: 0 };
    held.count += 1;
    this.sources.set(source, held);
    const span = document.createElement("span");
    if (source) span.className = `s${held.colour}`;
    span.title = source || "the model";
    span.textContent = piece;
    this.words.append(span);
  }

  // A bar a pass: as high as it gave tokens.
  draw() {
    const chart = this.box.querySelector(".rounds");
    const [shown, top] = [this.rounds.slice(-120), Math.max(4, ...this.rounds)];
    chart.setAttribute("viewBox", `0 0 ${Math.max(40, shown.length) * 4} ${top}`);
    chart.setAttribute("aria-label", `tokens of each pass, the last ${shown.length}: ${shown.slice(-8).join(", ")}`);
    chart.replaceChildren(...shown.map((tokens, i) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, value] of [["x", i * 4], ["y", top - tokens], ["width", 3], ["height", tokens]]) bar.setAttribute(name, value);
      return bar;
    }));
  }

  tell() {
    const seconds = (this.last - this.first) / 1000;
    const speed = seconds > 0 ? (this.tokens - this.rounds[0]) / seconds : 0;
    const drafted = this.final?.drafted ?? 0;
    const facts = [["tokens", this.tokens || "–"], ["passes", this.passes || "–"],
      ["tokens a pass", this.passes ? (this.tokens / this.passes).toFixed(2) : "–"], ["tokens a second", speed ? speed.toFixed(0) : "–"],
      ["first after", this.first ? `${(this.first - this.begun).toFixed(0)} ms` : "–"],
      ["guesses accepted", drafted ? `${((100 * this.final.accepted) / drafted).toFixed(0)} %` : "–"]];
    this.box.querySelector(".facts").replaceChildren(...facts.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
      return pair;
    }));
    this.box.querySelector(".legend").replaceChildren(...[...this.sources].map(([source, { colour, count }]) => {
      const item = document.createElement("li");
      const mark = document.createElement("i");
      if (source) mark.className = `s${colour}`;
      item.append(mark, `${(source || "the model").replaceAll("_", " ")} ${count}`);
      return item;
    }));
  }
}

// Server-sent events as objects.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

start().catch((problem) => { $("say").textContent = problem.message; });
