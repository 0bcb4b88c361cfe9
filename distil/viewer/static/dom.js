// What every script needs of a page: elements, numbers, the theme.

export const whole = new Intl.NumberFormat("en");

/** An element with properties, those of `dataset` one by one, and children; those that are null are left out. */
export function element(name, properties = {}, ...children) {
  const { dataset, ...others } = properties;
  const made = Object.assign(document.createElement(name), others);
  if (dataset) Object.assign(made.dataset, dataset);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** From light to dark or back; returns which it is now. */
export function toggleTheme() {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
  return dataset.theme;
}
