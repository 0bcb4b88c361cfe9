// What scrolls by itself can be reached with Tab, so that the arrow keys scroll it; what does not is passed over.

const SCROLLING = ".scrolls, .words, .code, .printed pre, .raw-text, .lazy-body";

function look(element) {
  const scrolls = element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1;
  const isOurs = element.dataset.scrolls !== undefined;
  if (scrolls && !element.hasAttribute("tabindex")) {
    element.tabIndex = 0;
    element.dataset.scrolls = "";
  } else if (!scrolls && isOurs) {
    element.removeAttribute("tabindex");
    delete element.dataset.scrolls;
  }
}

/** Keeps what scrolls within `root` reachable, whatever is opened, loaded or made narrower. */
export function letKeysScroll(root) {
  const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => look(target)));
  const watched = new WeakSet();
  const watch = () => {
    for (const element of root.querySelectorAll(SCROLLING)) {
      if (watched.has(element)) continue;
      watched.add(element);
      resized.observe(element);
    }
  };
  watch();
  new MutationObserver(watch).observe(root, { childList: true, subtree: true });
}
