// What is behind one row of the token table, built when the row is opened.
const copied = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // not allowed, such as in a frame: copy a selection
    const area = make("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
};
const copier = (label, text) => {
  const button = make("button", { type: "button", textContent: label });
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Not copied";
    button.focus();
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
};

const evidence = ({ columns, cells, folded, details }) => {
  const place = new Map(columns.map((column, c) => [column.label, c]));
  const common = new Map(folded);
  const texts = new Map(); // of the tokens by id
  const entropies = columns[place.get("Entropy")]?.decimals ?? 3;
  // The text of a cell, of a hidden column too; null if there is none.
  const text = (label, row) => {
    if (!place.has(label)) return common.get(label) ?? null;
    const column = columns[place.get(label)];
    const value = cells[place.get(label)][row];
    if (value === null) return null;
    if (column.kind === "choice") return column.choices[value];
    if (column.kind === "fixed") return value.toFixed(column.decimals);
    return value;
  };
  for (const { results } of details.probes) {
    results.forEach((result, row) => {
      const answer = result?.length === 3 ? text("Answer", row) : null; // of the deciding probe
      if (answer !== null) texts.set(result[2], answer);
    });
  }
  const steps = (row) => details.stepPairs[details.steps[row] ?? 0];
  cells[place.get("Id")].forEach((id, row) => texts.set(id, cells[0][row]));
  const shownNumber = (value) => typeof value === "number" ? digits(value) : value ?? "–";
  const quoted = (value) => make("bdi", { className: "token" }, ...marked(value));

  const prompt = (step, probe, row) => {
    const found = details.prompts.find((one) => one.step === step && one.probe === probe);
    if (!found) return make("p", { className: "hint", textContent: "The prompt is not recorded." });
    const parts = found.texts.flatMap((part, i) =>
      i ? [make("mark", {}, make("bdi", {}, ...marked(cells[0][row]))), part] : [part]);
    const note = found.sent ? "Prompt as sent" :
      "The probe's question and the beginning of its answer; this run did not record the template around them";
    return make("div", {}, make("p", { className: "hint", textContent: `${note}:` }), make("pre", {}, ...parts));
  };

  const probe = (name, result, row) => {
    const own = typeof result === "number"; // the token is the most probable one
    const [marks, gap, argmax, p, rank, entropy] = own ? [result, 0, cells[place.get("Id")][row]] : result;
    const passed = marks % 2 === 1;
    const intact = (marks >> 1) % 2 === 1;
    const dtype = details.dtypes[marks >> 2];
    const decides = own || result.length === 3; // its numbers are in the table
    const number = (value, label) => shownNumber(decides ? text(label, row) : value);
    const answer = passed ? null : decides ? text("Answer", row) : texts.get(argmax);
    const facts = [
      `p ${number(p, "p")}`,
      `rank ${grouped(decides ? text("Rank", row) ?? 0 : rank)}`,
      `entropy ${decides ? number(null, "Entropy") : entropy.toFixed(entropies)} nats`,
      `gap ${shownNumber(gap)}`,
      `decided in ${dtype}`,
      intact ? "encoded as text, the prompt keeps the id" : "encoded as text, the prompt loses the id",
    ];
    const line = make("p", {}, facts.join(" · "));
    const instead = make("p", {}, "Most probable token: ", ...(answer == null ? [] : [quoted(answer), ", "]), `id ${argmax}`);
    const head = make("h4", {}, `Probe ${name}: `,
      make("span", { className: passed ? "good" : "bad", textContent: passed ? "passed" : "failed" }));
    return make("section", {}, head, prompt(steps(row)[0], name, row), line, ...(passed ? [] : [instead]));
  };

  const samples = (row) => {
    const outcomes = details.outcomes[row];
    if (!outcomes) return [];
    const failed = outcomes.split("x").length - 1;
    const parts = [make("h4", { textContent: `Sampled answers: ${failed} of ${outcomes.length} attempts failed` })];
    const kept = details.attempts[row];
    if (!kept) {
      const each = [...outcomes].map((one, i) => `${i + 1} ${one === "x" ? "failed" : "said it"}`);
      return [...parts, make("p", { textContent: `${each.join(", ")}. The answers are not on this page.` })];
    }
    for (const [i, name] of details.attemptProbes.entries()) {
      const said = kept.filter((one) => one[0] === i);
      if (!said.length) continue;
      const items = said.map(([, number, yes, answer, symptom]) => make("li", { value: number + 1 },
        make("span", { className: yes ? "good" : "bad", textContent: yes ? "said it" : (details.symptoms[symptom] ?? "").replaceAll("_", " ") }),
        " ", answer === "" ? make("span", { className: "muted", textContent: "nothing" }) : make("bdi", { className: "said", textContent: answer })));
      const asked = make("details", {}, make("summary", { textContent: `Probe ${name}` }), prompt(steps(row)[1], name, row));
      parts.push(asked, make("ol", {}, ...items));
    }
    return parts;
  };

  return (row) => {
    const id = cells[place.get("Id")][row];
    const raw = details.raw[row] ?? cells[0][row].replaceAll("␣", " ");
    const link = make("a", { href: `#token-${id}`, textContent: "Link to this token" });
    const actions = make("p", { className: "actions" }, copier("Copy text", raw), copier("Copy id", String(id)), link);
    const about = ["Piece", "Category", "Norm", "Intact", "Steps", "Control of"]
      .map((label) => [label, text(label, row)]).filter(([, value]) => value !== null)
      .map(([label, value]) => label === "Piece"
        ? make("span", {}, "piece ", quoted(value))
        : make("span", { textContent: `${label.toLowerCase()} ${shownNumber(value)}` }));
    const asked = details.probes.flatMap(({ name, results }) => results[row] !== null ? [probe(name, results[row], row)] : []);
    const compared = (details.answers[row] ?? []).map(([name, said, expected, passed]) => make("section", {},
      make("h4", {}, `Probe ${name}: `,
        make("span", { className: passed ? "good" : "bad", textContent: passed ? "passed" : "failed" })),
      prompt(steps(row)[0], name, row),
      make("p", {}, "Answer: ", quoted(said), ", expected: ", quoted(expected))));
    return make("div", { className: "evidence" }, actions, make("p", { className: "facts" }, ...about), ...asked, ...compared, ...samples(row));
  };
};
