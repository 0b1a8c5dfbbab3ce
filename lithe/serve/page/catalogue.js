// The catalogue: every method's card, found by any word of it.

const $ = (id) => document.getElementById(id);

function made(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

export function catalogue(methods, use, fits) {
  const rooms = ["all", ...new Set(methods.map((m) => m.room))];
  let room = "all";
  const cards = methods.map((m) => ({ method: m, words: words(m), card: card(m, use, fits(m)) }));
  const show = () => {
    const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = cards.filter((c) => (room === "all" || c.method.room === room) && wanted.every((word) => c.words.includes(word)));
    $("methods").replaceChildren(...found.map((c) => c.card));
    $("found").textContent = `${found.length} of ${methods.length} methods`;
  };
  $("filters").replaceChildren(...rooms.map((name) => {
    const chip = made("button", name);
    chip.type = "button";
    chip.setAttribute("aria-pressed", name === room);
    chip.addEventListener("click", () => {
      room = name;
      for (const other of $("filters").children) other.setAttribute("aria-pressed", other === chip);
      show();
    });
    return chip;
  }));
  $("search").addEventListener("input", show);
  show();
}

const words = (m) => [m.name, m.name.replaceAll("_", " "), m.room, m.shelf, m.summary, m.paper, m.status, ...m.promises, ...m.needs,
  m.lossless ? "lossless" : ""].join(" ").toLowerCase();

function card(m, use, fits) {
  const item = made("li");
  const title = made("h3", m.name.replaceAll("_", " "));
  title.append(made("small", `${m.room} / ${m.shelf}`));
  const tags = made("div", "", "tags");
  if (m.lossless) tags.append(made("span", "lossless", "good"));
  else if (m.room === "decode") tags.append(made("span", "may change the text", "warn"));
  tags.append(made("span", m.row !== null ? `${m.status}, row ${m.row}` : m.status));
  if (m.measured) tags.append(made("span", `${m.measured.speed.toFixed(2)}× · ${m.measured.tokens_per_pass.toFixed(2)} tokens a pass`,
    m.measured.speed > 1 ? "good" : "warn"));
  if (m.trains) tags.append(made("span", "has weights to fit"));
  item.append(title, made("p", m.summary), tags);
  const more = made("details");
  more.append(made("summary", "Paper and figures"), made("p", m.paper));
  for (const [name, text] of [["The paper", m.claim], ["Here", m.ours], ["Differs", m.deviations], ["Promises", m.promises.join(", ")],
    ["Needs", m.needs.join(", ")], ["Measured", m.measured && `${m.measured.spec}: ${m.measured.speed.toFixed(2)} × plain decoding where it does not loop, ` +
      `${m.measured.tokens_per_s.toFixed(0)} tokens/s, ${m.measured.prompts} prompts, ${m.measured.model}, ${m.measured.cpu}`]])
    if (text) {
      const line = made("p");
      line.append(made("b", `${name}: `), text);
      more.append(line);
    }
  if (fits) {
    const button = made("button", "Watch it", "plain");
    button.type = "button";
    button.addEventListener("click", () => use(m.name));
    more.append(button);
  }
  item.append(more);
  return item;
}
