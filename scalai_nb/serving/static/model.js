// The form of a model's page: send its fields as one row, show the answer.
const form = document.getElementById("row");
const output = document.getElementById("answer");

// What a field holds, as JSON has it: a number, a text, an array, or null where it is empty.
const fieldValue = (field) => {
  if (field.value === "") return null;
  if (field.dataset.kind === "array") return JSON.parse(field.value);
  if (field.dataset.kind !== "number") return field.value;
  const number = Number(field.value);
  return Number.isNaN(number) ? field.value : number;
};

const show = (text, failed) => {
  output.textContent = text;
  output.classList.toggle("failed", failed);
  output.hidden = false;
};

// The chosen picture as it is, or the fields as one row.
const request = () => {
  const picture = form.elements.picture;
  if (picture?.files) return { headers: { "Content-Type": picture.files[0].type }, body: picture.files[0] };
  const row = Object.fromEntries([...form.elements].filter((f) => f.name).map((f) => [f.name, fieldValue(f)]));
  return { headers: { "Content-Type": "application/json" }, body: JSON.stringify({ rows: [row] }) };
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const response = await fetch(form.dataset.url, { method: "POST", ...request() });
    const answer = await response.json();
    const refused = answer.error;
    show(refused ? `${refused.message}\n${refused.hint}` : JSON.stringify(answer, null, 2), !response.ok);
  } catch (error) {
    const wrong = error instanceof SyntaxError ? "That is no array" : "The service did not answer";
    show(`${wrong}: ${error.message}`, true);
  }
});

for (const block of document.querySelectorAll("pre.call"))
  block.textContent = block.textContent.replaceAll("http://HOST:PORT", location.origin);
