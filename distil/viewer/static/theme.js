// Before anything is drawn: the theme that was chosen last, else that of the system.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("distil-theme");
  } catch {
    // storage is off: the system's theme
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
