"use strict";
const controls = document.querySelector(".controls"), sheets = document.querySelector(".sheets");
if (controls && sheets.querySelector(".teacher") && sheets.querySelector(".student")) {
  const slider = controls.querySelector("input"), buttons = controls.querySelectorAll("button");
  controls.hidden = false;
  slider.addEventListener("input", () => sheets.style.setProperty("--cut", slider.value + "%"));
  for (const button of buttons) button.addEventListener("click", () => {
    sheets.dataset.mode = button.dataset.mode;
    slider.style.visibility = button.dataset.mode === "wipe" ? "visible" : "hidden";
    for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  });
}
// Recipe and configuration belong on paper too.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
