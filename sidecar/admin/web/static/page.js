// Convenience only: every page works without scripts.
"use strict";

function copyFrom(button) {
  const source = document.getElementById(button.dataset.copy);
  const before = button.textContent;
  const show = (text) => {
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 2000);
  };
  const select = () => {
    getSelection().selectAllChildren(source);
    show(document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
  };
  if (navigator.clipboard) {
    navigator.clipboard.writeText(source.textContent).then(() => show("Copied"), select);
  } else {
    select();
  }
}

function showOnlyFor(control) {
  const target = document.getElementById(control.dataset.shows);
  const update = () => { target.hidden = control.value !== control.dataset.showsFor; };
  control.addEventListener("change", update);
  update();
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", () => copyFrom(button));
}
for (const control of document.querySelectorAll("[data-shows]")) {
  showOnlyFor(control);
}
for (const control of document.querySelectorAll("[data-sends]")) {
  control.addEventListener("change", () => control.form.requestSubmit());
}
for (const all of document.querySelectorAll("[data-picks]")) {
  const boxes = [...all.closest("table").querySelectorAll("tbody input[type=checkbox]")];
  all.hidden = false;
  all.addEventListener("change", () => { for (const box of boxes) { box.checked = all.checked; } });
}
for (const form of document.querySelectorAll("form[method=post]")) {
  // A second click while the response is slow must not submit the form twice.
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) {
      event.preventDefault();
    }
    form.dataset.sent = "yes";
  });
}
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
  }
});
addEventListener("keydown", (event) => {
  const search = document.querySelector("[data-slash]");
  const isTyping = event.target.closest("input, select, textarea, [contenteditable]");
  if (search && event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
    search.select();
  }
});

function isInUse(part) {
  const selection = getSelection();
  return part.contains(document.activeElement) || (!selection.isCollapsed && selection.containsNode(part, true));
}

// Only what has changed is replaced, so that nothing flashes, and nothing that is being used.
async function refresh() {
  const response = await fetch(location.href, { headers: { "X-Refresh": "1" }, redirect: "error" });
  if (!response.ok) {
    return;
  }
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-part]")) {
    const next = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    if (next && next.innerHTML !== part.innerHTML && !isInUse(part)) {
      part.replaceChildren(...document.adoptNode(next).childNodes);
    }
  }
}

if (document.querySelector("[data-live]")) {
  setInterval(() => {
    if (!document.hidden) {
      refresh().catch(() => {});
    }
  }, 5000);
}
const focused = document.querySelector("[data-focus]");
if (focused) {
  focused.focus();
}
