"use strict";
// The token table: renders one page of rows at a time from the JSON block, so that a whole vocabulary
// stays fast. Text is inserted through textContent only, never as markup.
(() => {
  const PAGE = 50;
  const SIGNS = /(⟨[0-9A-Z+]+⟩|␣)/;
  const data = JSON.parse(document.getElementById("token-data").textContent);
  const place = document.getElementById("tokens");
  const { columns, cells, count } = data;

  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  if (!count) {
    place.append(make("p", { textContent: "There are no tokens." }));
    return;
  }

  const all = Array.from({ length: count }, (_, row) => row);
  const texts = columns.map((column, c) => ({ column, c })).filter((x) => x.column.kind === "token");
  const ids = columns.findIndex((column) => column.kind === "id");
  const wanted = all.map((row) => texts.map((x) => cells[x.c][row]).join("\n").toLowerCase());
  let shown = all;
  let first = 0;
  let sorted = { column: -1, descending: false };

  const number = (value) => {
    if (value === null) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size < 1e-3 || size >= 1e6 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const percent = (value) => `${Math.round(100 * value)}`;
  const marked = (text) =>
    text.split(SIGNS).map((part, i) =>
      i % 2 ? make("span", { className: "sign", textContent: part }) : part);

  const KINDS = {
    token: (value) =>
      make("td", { className: "token" }, value === null ? "–" : make("bdi", {}, ...marked(value))),
    id: (value) => make("td", { className: "number", textContent: value === null ? "–" : String(value) }),
    integer: (value) =>
      make("td", { className: "number", textContent: value === null ? "–" : value.toLocaleString("en") }),
    number: (value) => make("td", { className: "number", textContent: number(value) }),
    choice: (value, column) => {
      const text = value === null ? "–" : column.choices[value];
      return make("td", { className: column.label === "Verdict" ? `verdict-${text}` : "", textContent: text });
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
    const options = column.choices.map((text, i) => make("option", { value: i, textContent: text }));
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

  const draw = () => {
    body.replaceChildren(...shown.slice(first, first + PAGE).map((row) =>
      make("tr", {}, ...columns.map((column, c) => KINDS[column.kind](cells[c][row], column)))));
    const end = Math.min(first + PAGE, shown.length);
    const range = shown.length ? `${(first + 1).toLocaleString("en")}–${end.toLocaleString("en")} of ` : "";
    const rest = shown.length < count ? ` (${count.toLocaleString("en")} in total)` : "";
    status.textContent = `${range}${shown.length.toLocaleString("en")} tokens${rest}`;
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

  const heads = columns.map((column, c) => {
    const button = make("button", { type: "button", title: column.title, textContent: column.label });
    const head = make("th", { scope: "col" }, button);
    if (["id", "integer", "number", "rate"].includes(column.kind)) head.className = "number";
    button.addEventListener("click", () => {
      const again = sorted.column === c;
      sorted = { column: c, descending: again ? !sorted.descending : column.kind === "rate" };
      heads.forEach((other, i) => {
        const mine = i === c;
        if (mine) other.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending");
        else other.removeAttribute("aria-sort");
        other.firstChild.textContent = columns[i].label + (mine ? (sorted.descending ? " ↓" : " ↑") : "");
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
  place.append(tools, make("div", { className: "scroll" }, table), pages);
  refresh();
})();
