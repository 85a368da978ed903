"use strict";
// Switches, CSV downloads and the colour scheme of any page. The page's numbers are in pageData.
const pageData = JSON.parse(document.getElementById("data").textContent);

// A figure shows the parts whose data-when matches its choices, and the series that are switched on.
for (const figure of document.querySelectorAll("[data-figure]")) {
  const follow = () => {
    const chosen = new Set();
    for (const input of figure.querySelectorAll("[data-choice]"))
      if (input.type !== "radio" || input.checked)
        chosen.add(`${input.dataset.choice}=${input.value}`);
    for (const part of figure.querySelectorAll("[data-when]"))
      part.classList.toggle("off", !part.dataset.when.split(" ").every((word) => chosen.has(word)));
  };
  figure.addEventListener("change", follow);
  follow();
  for (const key of figure.querySelectorAll("[data-toggle]"))
    key.addEventListener("click", () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", on);
      for (const part of figure.querySelectorAll(`[data-series="${key.dataset.toggle}"]`))
        part.classList.toggle("hidden", !on);
    });
}

const csvField = (value) => {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

function downloadCsv(name, columns, rows) {
  const text = [columns, ...rows].map((row) => row.map(csvField).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

for (const button of document.querySelectorAll("[data-csv]"))
  button.addEventListener("click", () => {
    const table = pageData.tables[button.dataset.csv];
    downloadCsv(button.dataset.csv, table.columns, table.rows);
  });

const themeButton = document.getElementById("theme");
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
