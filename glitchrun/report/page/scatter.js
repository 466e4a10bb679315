// A point for each token: a number of the table against the probability.
const SVG = "http://www.w3.org/2000/svg";
const drawnElement = (name, attributes, ...children) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const MOST = 4000;
const MARKS = {
  confirmed: "●", unconfirmed: "○", glitch: "×", "near miss": "•", "false alarm": "+", passed: "•", control: "+",
};
const SHAPES = { // paths around a point; a line of no length is a dot
  "●": "m-3,0h6m-3,-3v6m-2,-5l4,4m0,-4l-4,4", "○": "m-3,0l3,-3l3,3l-3,3z", "×": "m-3,-3l6,6m0,-6l-6,6",
  "•": "h0", "+": "m-3,0h6m-3,-3v6",
};

const scatter = (place, { columns, cells, count, severe }, reveal) => {
  const at = (label) => columns.findIndex((column) => column.label === label);
  const axes = ["Norm", "Entropy", "Rank"].filter((label) => at(label) >= 0);
  if (at("p") < 0 || !axes.length) return;
  const p = cells[at("p")];
  const verdicts = columns[at("Verdict")].choices;
  const verdict = cells[at("Verdict")];
  const measured = Array.from({ length: count }, (_, row) => row).filter((row) => p[row] !== null);
  if (measured.length < 3) return;
  // All severe tokens, all sampled ones and the controls; of the others every nth.
  const plain = ["passed", "near miss", "glitch"];
  const isPlain = (row) => plain.includes(verdicts[verdict[row]]) && !(p[row] < severe);
  const always = measured.filter((row) => !isPlain(row));
  const rest = measured.filter(isPlain);
  const every = Math.max(1, Math.ceil(rest.length / Math.max(500, MOST - always.length)));
  const rows = [...rest.filter((_, i) => i % every === 0), ...always.reverse()];
  const floor = Math.floor(Math.log10(Math.min(...rows.map((row) => p[row] || 1), severe)));
  const height = 300;
  const margin = { left: 56, right: 12, top: 10, bottom: 40 };

  const select = make("select", {}, ...axes.map((label) => make("option", { value: label, textContent: label.toLowerCase() })));
  const info = make("p", { className: "hint", textContent: " " });
  info.setAttribute("role", "status");
  const frame = make("div", { className: "plot" });
  let points = [];
  let ring = null;
  let chosen = -1;

  const show = (i) => {
    chosen = i;
    if (i < 0) { ring.setAttribute("visibility", "hidden"); info.textContent = " "; return; }
    const { row, x, y, value } = points[i];
    ring.setAttribute("visibility", "visible");
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    info.replaceChildren(make("bdi", { className: "token" }, ...marked(cells[0][row])),
      ` id ${cells[at("Id")][row]}, ${verdicts[verdict[row]]}: p ${digits(p[row])}, ${select.value.toLowerCase()} ${digits(value)}`);
  };
  const draw = () => {
    const width = Math.max(300, place.clientWidth);
    const column = cells[at(select.value)];
    const kept = rows.filter((row) => column[row] !== null);
    const scale = select.value === "Rank" ? (value) => Math.log10(value) : (value) => value;
    const values = kept.map((row) => scale(column[row]));
    const low = Math.min(...values);
    const high = Math.max(...values, low + 1e-9);
    const toX = (value) => margin.left + (scale(value) - low) / (high - low) * (width - margin.left - margin.right);
    const toY = (value) => margin.top + Math.log10(value || 10 ** floor) / floor * (height - margin.top - margin.bottom);
    const element = drawnElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0",
      "aria-label": `${select.value} against probability; the table below has the same numbers. Arrow keys go from point to point, Enter opens a token.` });
    const label = (x, y, text, anchor = "middle") =>
      element.append(drawnElement("text", { x, y, "text-anchor": anchor }, text));
    const line = (x1, y1, x2, y2, className) => element.append(drawnElement("line", { x1, y1, x2, y2, class: className }));
    for (let power = 0; power >= floor; power -= 1) {
      const y = toY(10 ** power);
      line(margin.left, y, width - margin.right, y, "grid");
      label(margin.left - 6, y + 4, power > -4 ? String(10 ** power).slice(0, 2 - power) : `1e${power}`, "end");
    }
    line(margin.left, toY(severe), width - margin.right, toY(severe), "limit");
    label(width - margin.right, toY(severe) + 13, "severe below this line", "end");
    for (let i = 0; i <= 4; i += 1) {
      const value = low + (high - low) * i / 4;
      const shown = select.value === "Rank" ? grouped(Math.round(10 ** value)) : value.toPrecision(3);
      label(margin.left + (width - margin.left - margin.right) * i / 4, height - margin.bottom + 16, shown,
        i === 4 ? "end" : "middle");
    }
    label(width / 2, height - 6, columns[at(select.value)].title.replace(/\.$/, ""));
    points = kept.map((row) => ({ row, value: column[row], x: toX(column[row]), y: toY(p[row]) }));
    for (const name of verdicts.toReversed()) {
      const found = points.filter(({ row }) => verdicts[verdict[row]] === name);
      const d = found.map(({ x, y }) => `M${x.toFixed(1)},${y.toFixed(1)}${SHAPES[MARKS[name]]}`).join("");
      element.append(drawnElement("path", { d, class: `points point-${name.replaceAll(" ", "-")}` }));
    }
    ring = drawnElement("circle", { r: 6, class: "ring", visibility: "hidden" });
    element.append(ring);
    const nearest = (event) => {
      const box = element.getBoundingClientRect();
      const x = (event.clientX - box.left) * width / box.width;
      const y = (event.clientY - box.top) * height / box.height;
      let best = -1;
      let least = 15 ** 2;
      points.forEach((point, i) => {
        const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
        if (distance <= least) [best, least] = [i, distance];
      });
      return best;
    };
    element.addEventListener("pointermove", (event) => show(nearest(event)));
    element.addEventListener("click", () => { if (chosen >= 0) reveal(points[chosen].row); });
    element.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) { show((chosen + step + points.length) % points.length); event.preventDefault(); }
      if (event.key === "Enter" && chosen >= 0) reveal(points[chosen].row);
    });
    frame.replaceChildren(element);
  };

  const drawn = rows.length < measured.length
    ? `${grouped(rows.length)} of ${grouped(measured.length)} tokens are drawn: all below p = ${severe}, all that were sampled or drawn as controls, and one in ${every} of the others. `
    : "";
  const legend = verdicts.filter((name) => rows.some((row) => verdicts[verdict[row]] === name)).map((name) =>
    make("span", { className: `key point-${name.replaceAll(" ", "-")}` }, `${MARKS[name]} `, make("span", { className: "muted", textContent: name })));
  const printed = make("span", { className: "printed", textContent: axes[0].toLowerCase() });
  select.addEventListener("change", () => { printed.textContent = select.value.toLowerCase(); draw(); });
  const title = make("h3", {}, "Probability by ", select, printed);
  const hint = make("p", { className: "hint" }, `${drawn}A point names its token when the pointer is on it; a click opens the token.`);
  place.append(title, make("p", { className: "keys" }, ...legend), frame, info, hint);
  draw();
  new ResizeObserver(() => { if (Math.abs(place.clientWidth - frame.firstChild.viewBox.baseVal.width) > 8) draw(); }).observe(place);
};
