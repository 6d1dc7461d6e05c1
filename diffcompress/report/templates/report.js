"use strict";
const controls = document.querySelector(".controls"), sheets = document.querySelector(".sheets");
if (controls && sheets.querySelector(".teacher") && sheets.querySelector(".student")) {
  const slider = controls.querySelector("input"), buttons = controls.querySelectorAll("button");
  controls.hidden = false;
  const cut = () => sheets.style.setProperty("--cut", slider.value + "%");
  slider.addEventListener("input", cut);
  // The pointer over the pictures does what the slider does; a finger scrolls the page instead.
  sheets.addEventListener("pointermove", (event) => {
    const box = sheets.querySelector(".student img").getBoundingClientRect();
    if (sheets.dataset.mode !== "wipe" || event.pointerType === "touch") return;
    slider.value = 100 * (event.clientX - box.left) / box.width;
    cut();
  });
  for (const button of buttons) button.addEventListener("click", () => {
    sheets.dataset.mode = button.dataset.mode;
    slider.style.visibility = button.dataset.mode === "wipe" ? "visible" : "hidden";
    for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  });
}
// Recipe and configuration belong on paper too.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
