// Shared by all parts of the page. Text is inserted through textContent only, never as markup.
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const SIGNS = /(⟨[0-9A-Z+]+⟩|␣)/;
const marked = (text) => text.split(SIGNS).map((part, i) =>
  i % 2 ? make("span", { className: "sign", textContent: part }) : part);

const grouped = (value) => value.toLocaleString("en");
// Three significant digits, as the rest of the report writes them: 0.0123, 1.07e-05.
const digits = (value) => {
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 1e6) return size < 1000 ? value.toPrecision(3) : value.toFixed(0);
  return value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
};
const percent = (value) => `${Math.round(100 * value)}`;

// On a narrow screen the cells of a table stand below each other, each with its column's name; long
// ones take a whole line.
const LONG = 16;
for (const table of document.querySelectorAll(".scroll > table")) {
  const names = [...table.querySelectorAll("thead tr > *")].map((head) => head.textContent);
  if (names.length < 4) continue;
  table.classList.add("stack");
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, c) => {
      cell.dataset.label = names[c];
      if (cell.textContent.length > LONG) cell.classList.add("long");
      cell.append(make("span", { className: "value" }, ...cell.childNodes));
    });
  }
}
