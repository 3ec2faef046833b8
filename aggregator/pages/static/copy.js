// Buttons that copy the lines beside them; without scripts there are none, and the lines can be
// selected all the same.

async function copied(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    // No clipboard on a page that came over plain http: select, so that one key copies.
    getSelection().selectAllChildren(source);
    return false;
  }
}

for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  const source = document.getElementById(button.dataset.copies);
  const heading = button.closest(".panel")?.querySelector("h2, h3")?.textContent ?? "lines";
  button.setAttribute("aria-label", `Copy: ${heading}`);
  button.addEventListener("click", async () => {
    button.textContent = (await copied(source)) ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
