// Runs side by side: keys, and photos that cannot be shown.

import { bindKeys } from "./base.js";

const links = [...document.querySelectorAll("#pairs a.id")];

function move(step) {
  const place = links.findIndex((link) => link.closest("tr").contains(document.activeElement));
  const next = links[Math.min(links.length - 1, Math.max(0, place + step))];
  next?.focus();
  next?.closest("tr").scrollIntoView({ block: "nearest" });
}

for (const image of document.querySelectorAll("#pairs img")) {
  const fail = () => image.classList.add("failed");
  image.addEventListener("error", fail, { once: true });
  if (image.complete && !image.naturalWidth) fail();
}

bindKeys(["j", "ArrowDown"], "next row", () => move(1));
bindKeys(["k", "ArrowUp"], "previous row", () => move(-1));
bindKeys(["Enter"], "both traces side by side", () => false);
bindKeys(["ArrowRight"], "next page", () => document.getElementById("after")?.click());
bindKeys(["ArrowLeft"], "page before", () => document.getElementById("before")?.click());
