// The token table: renders one page of rows at a time from the JSON block, so that a whole vocabulary
// stays fast, and opens rows on demand.
const block = document.getElementById("token-data");
const showTokens = (data) => {
  const PAGE = 50;
  const place = document.getElementById("tokens");
  const { columns, cells, count, folded } = data;
  if (!count) {
    place.append(make("p", { textContent: "There are no tokens." }));
    return;
  }

  const all = Array.from({ length: count }, (_, row) => row);
  const texts = columns.map((column, c) => ({ column, c })).filter((x) => x.column.kind === "token");
  const ids = columns.findIndex((column) => column.label === "Id");
  const heading = columns.map((column, c) => c).filter((c) => !columns[c].inDetails);
  const build = evidence(data);
  const open = new Set();
  const wanted = all.map((row) => texts.map((x) => cells[x.c][row]).join("\n").toLowerCase());
  let shown = all;
  let first = 0;
  let sorted = { column: -1, descending: false };

  const KINDS = {
    token: (value) =>
      make("td", { className: "token" }, value === null ? "–" : make("bdi", {}, ...marked(value))),
    id: (value) => make("td", { className: "number", textContent: value === null ? "–" : String(value) }),
    integer: (value) =>
      make("td", { className: "number", textContent: value === null ? "–" : grouped(value) }),
    number: (value) => make("td", { className: "number", textContent: value === null ? "–" : digits(value) }),
    fixed: (value, column) =>
      make("td", { className: "number", textContent: value === null ? "–" : value.toFixed(column.decimals) }),
    choice: (value, column) => {
      const text = value === null ? "–" : column.choices[value];
      return make("td", { className: column.label === "Verdict" ? `verdict-${text}` : "", textContent: text.replaceAll("_", " ") });
    },
    rate: (value) => {
      if (!value) return make("td", { className: "number", textContent: "–" });
      const [failed, attempts, low, high] = value;
      const text = `${failed}/${attempts}`;
      const interval = ` [${percent(low)}–${percent(high)} %]`;
      return make("td", { className: "number" }, text, make("span", { className: "muted", textContent: interval }));
    },
  };
  const sortable = (value) => (Array.isArray(value) ? value[0] / value[1] + value[2] / 1e6 : value);

  const search = make("input", { type: "search", placeholder: "text, piece or id" });
  const selects = columns.flatMap((column, c) => {
    if (column.kind !== "choice" || column.choices.length < 2) return [];
    const sizes = column.choices.map(() => 0);
    for (const cell of cells[c]) if (cell !== null) sizes[cell] += 1;
    const options = column.choices.map((text, i) =>
      make("option", { value: i, textContent: `${text.replaceAll("_", " ")} (${grouped(sizes[i])})` }));
    const select = make("select", {}, make("option", { value: "", textContent: "all" }), ...options);
    return [{ c, column, select }];
  });
  const labelled = (text, control) => make("label", {}, `${text} `, control);
  const status = make("span", { className: "muted" });
  status.setAttribute("role", "status");
  const step = (text, move) => {
    const button = make("button", { type: "button", textContent: text });
    button.addEventListener("click", () => { first = move(); draw(); });
    return button;
  };
  const last = () => Math.floor(Math.max(0, shown.length - 1) / PAGE) * PAGE;
  const back = step("‹ Previous", () => Math.max(0, first - PAGE));
  const on = step("Next ›", () => Math.min(last(), first + PAGE));
  const body = make("tbody");

  const opened = (row) => {
    const inside = make("td", { className: "inside", colSpan: heading.length }, build(row));
    return make("tr", { className: "opened", id: `evidence-${row}` }, inside);
  };
  const line = (row) => {
    const items = heading.map((c) => KINDS[columns[c].kind](cells[c][row], columns[c]));
    const toggle = make("button", { type: "button", className: "toggle" });
    toggle.setAttribute("aria-label", `Evidence for token ${cells[ids][row]}`);
    items[0].prepend(toggle);
    const element = make("tr", {}, ...items);
    const mark = () => {
      toggle.textContent = open.has(row) ? "▾" : "▸";
      toggle.setAttribute("aria-expanded", String(open.has(row)));
    };
    element.addEventListener("click", (event) => {
      if (event.target.closest("a") || String(getSelection())) return;
      if (open.delete(row)) element.nextSibling.remove();
      else { open.add(row); element.after(opened(row)); }
      mark();
    });
    mark();
    return open.has(row) ? [element, opened(row)] : [element];
  };
  const draw = () => {
    body.replaceChildren(...shown.slice(first, first + PAGE).flatMap(line));
    const end = Math.min(first + PAGE, shown.length);
    const range = shown.length ? `${grouped(first + 1)}–${grouped(end)} of ` : "";
    const rest = shown.length < count ? ` (${grouped(count)} in total)` : "";
    status.textContent = `${range}${grouped(shown.length)} tokens${rest}`;
    back.disabled = first === 0;
    on.disabled = end >= shown.length;
  };
  const order = (a, b) => {
    const column = cells[sorted.column];
    const x = sortable(column[a]);
    const y = sortable(column[b]);
    if (x === y) return a - b;
    if (x === null) return 1; // cells without a value come last in either direction
    if (y === null) return -1;
    return (x < y ? -1 : 1) * (sorted.descending ? -1 : 1);
  };
  const refresh = () => {
    const text = search.value.toLowerCase().replaceAll(" ", "␣");
    const chosen = selects.filter((x) => x.select.value !== "");
    shown = all.filter((row) =>
      (!text || wanted[row].includes(text) || String(cells[ids][row]) === text) &&
      chosen.every((x) => cells[x.c][row] === Number(x.select.value)));
    if (sorted.column >= 0) shown.sort(order);
    first = 0;
    draw();
  };

  const heads = heading.map((c) => {
    const column = columns[c];
    const button = make("button", { type: "button", title: column.title, textContent: column.label });
    // Chromium does not repeat a printed header that contains a button.
    const head = make("th", { scope: "col" }, button, make("span", { className: "printed", textContent: column.label }));
    if (["id", "integer", "number", "fixed", "rate"].includes(column.kind)) head.className = "number";
    button.addEventListener("click", () => {
      const again = sorted.column === c;
      sorted = { column: c, descending: again ? !sorted.descending : column.kind === "rate" };
      heads.forEach((other, i) => {
        const mine = heading[i] === c;
        if (mine) other.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending");
        else other.removeAttribute("aria-sort");
        other.firstChild.textContent = columns[heading[i]].label + (mine ? (sorted.descending ? " ↓" : " ↑") : "");
      });
      refresh();
    });
    return head;
  });

  search.addEventListener("input", refresh);
  selects.forEach((x) => x.select.addEventListener("change", refresh));
  const tools = make("div", { className: "tools" }, labelled("Search", search),
    ...selects.map((x) => labelled(x.column.label, x.select)));
  const pages = make("div", { className: "tools" }, back, on, status);
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
  const same = folded.map(([label, value]) => `${label.toLowerCase()} ${value}`.replaceAll("_", " "));
  const sentence = make("p", { className: "hint", textContent: `The same for all tokens that have it: ${same.join(", ")}.` });

  const reveal = (row) => {
    if (!shown.includes(row)) {
      search.value = "";
      selects.forEach((x) => { x.select.value = ""; });
      refresh();
    }
    const index = shown.indexOf(row);
    first = index - index % PAGE;
    open.add(row);
    draw();
    const target = document.getElementById(`evidence-${row}`).previousSibling;
    target.scrollIntoView({ block: "start" });
    target.querySelector("button").focus({ preventScroll: true });
  };
  const follow = () => {
    const named = /^#token-(\d+)$/.exec(location.hash);
    const row = named ? cells[ids].indexOf(Number(named[1])) : -1;
    if (row >= 0) reveal(row);
  };
  place.append(tools, ...(same.length ? [sentence] : []), make("div", { className: "scroll" }, table), pages);
  scatter(document.getElementById("scatter"), data, reveal);
  refresh();
  addEventListener("hashchange", follow);
  follow();
};
if (block) showTokens(JSON.parse(block.textContent));
