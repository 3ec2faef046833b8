// A button whose answer takes seconds says so, and for how long already; its form is sent once.
"use strict";

document.addEventListener("submit", (event) => {
  const button = event.submitter;
  if (!button?.dataset.waits) return;
  if (event.target.dataset.sent) {
    event.preventDefault();
    return;
  }
  event.target.dataset.sent = "yes";
  const began = Date.now();
  const tell = () => {
    button.textContent = `${button.dataset.waits} ${Math.round((Date.now() - began) / 1000)} s`;
  };
  tell();
  setInterval(tell, 1000);
});

// Whoever comes back by the browser's history finds the page as it was before.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
