// What a finished audit says of the whole run.

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
const interval = ({ low, high }) => `${percent(low)} to ${percent(high)}`;

/** Fills `root` with a report of /api/audit/report. `words`: of the reasons. `back` leads to the last mask again. */
export function showReport(root, report, words, back) {
  const { precision } = report;
  root.replaceChildren(
    element("h2", "All of the sample is judged. Thank you."),
    element("p", percent(precision.share), "figure"),
    element("p", `of the run's ${precision.population.toLocaleString()} masks are right; 95 % interval ${interval(precision)}`),
    element("p", detail(report), "muted"),
    bins("By stability", report.by_stability),
    bins("By predicted IoU", report.by_predicted_iou),
    people(report),
  );
  if (Object.keys(report.reasons).length) root.append(reasons(report.reasons, words));
  if (report.agreement.length) root.append(agreement(report.agreement));
  const button = element("button", "Back to the masks", "button");
  button.onclick = back;
  root.append(button);
}

function detail(report) {
  const parts = [`${report.precision.decided.toLocaleString()} of ${report.sampled.toLocaleString()} masks decided`];
  if (report.undecided) {
    parts.push(
      `with the unsure ones rejected ${percent(report.precision_with_unsure_rejected.share)}, accepted ${percent(report.precision_with_unsure_accepted.share)}`,
    );
  }
  if (report.median_seconds !== null) parts.push(`median ${report.median_seconds.toFixed(1)} seconds a mask`);
  return `${parts.join("; ")}.`;
}

const bins = (caption, entries) =>
  table(
    caption,
    ["masks", "precision", "95 % interval", "judged", "in the run"],
    entries.map((entry) => [entry.bin, percent(entry.share), interval(entry), entry.decided, entry.population]),
  );

const people = (report) =>
  table(
    "People",
    ["who", "accepted", "rejected", "unsure"],
    report.people.map((person) => [person.who, person.accepted, person.rejected, person.unsure]),
  );

const reasons = (counts, words) =>
  table(
    "Reasons",
    ["reason", "answers"],
    Object.entries(counts).map(([reason, count]) => [words[reason], count]),
  );

const agreement = (pairs) =>
  table(
    "Agreement",
    ["who and who", "both judged", "agreed", "Cohen's kappa"],
    pairs.map((pair) => [
      `${pair.first}, ${pair.second}`,
      pair.masks,
      percent(pair.agreed / pair.masks),
      pair.kappa === null ? "not defined" : pair.kappa.toFixed(2),
    ]),
  );

function table(caption, headings, rows) {
  const made = document.createElement("table");
  made.createCaption().textContent = caption;
  const head = made.createTHead().insertRow();
  for (const heading of headings) head.append(element("th", heading));
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const cell of row) line.append(element("td", typeof cell === "number" ? cell.toLocaleString() : cell));
  }
  return made;
}

function element(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}
