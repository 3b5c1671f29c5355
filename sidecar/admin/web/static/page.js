// Comfort only: every page works without it.
"use strict";

function copyFrom(button) {
  const source = document.getElementById(button.dataset.copy);
  const said = button.querySelector("[data-said]") || button;
  const before = said.textContent;
  const tell = (text) => {
    said.textContent = text;
    setTimeout(() => { said.textContent = before; }, 2000);
  };
  const select = () => {
    getSelection().selectAllChildren(source);
    tell(document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
  };
  if (navigator.clipboard) {
    navigator.clipboard.writeText(source.textContent).then(() => tell("Copied"), select);
  } else {
    select();
  }
}

function showWhere(control) {
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
  showWhere(control);
}
for (const control of document.querySelectorAll("[data-sends]")) {
  control.addEventListener("change", () => control.form.requestSubmit());
}
for (const form of document.querySelectorAll("form[method=post]")) {
  // A second click on a slow answer must not send the form twice.
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
const told = document.querySelector("[data-focus]");
if (told) {
  told.focus();
}
