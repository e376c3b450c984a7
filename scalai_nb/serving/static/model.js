// The form of a model's page: send its fields as one row, show the answer.
const form = document.getElementById("row");
const output = document.getElementById("answer");

// What a field holds, as JSON has it: a number, a text, or null where it is empty.
const fieldValue = (field) => {
  if (field.value === "") return null;
  if (field.dataset.kind !== "number") return field.value;
  const number = Number(field.value);
  return Number.isNaN(number) ? field.value : number;
};

const show = (text, failed) => {
  output.textContent = text;
  output.classList.toggle("failed", failed);
  output.hidden = false;
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const row = Object.fromEntries([...form.elements].filter((f) => f.name).map((f) => [f.name, fieldValue(f)]));
  try {
    const response = await fetch(form.dataset.url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ rows: [row] }),
    });
    const answer = await response.json();
    const refused = answer.error;
    show(refused ? `${refused.message}\n${refused.hint}` : JSON.stringify(answer, null, 2), !response.ok);
  } catch (error) {
    show(`The service did not answer: ${error.message}`, true);
  }
});

for (const block of document.querySelectorAll("pre.call"))
  block.textContent = block.textContent.replaceAll("http://HOST:PORT", location.origin);
