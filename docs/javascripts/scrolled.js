// What scrolls sideways (code, tables, figures) can be scrolled by keyboard, and what has a role has a name.
function reachByKeyboard() {
  document.querySelectorAll('pre > code, .md-typeset__scrollwrap, p:has(> img[src*="pictures/"])').forEach((box) => {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  });
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll("pre > nav").forEach((bar, at) => {
    bar.setAttribute("aria-label", `Code block ${at + 1}`);
  });
}

// the theme wraps tables and adds the bars after the page has loaded
new MutationObserver(reachByKeyboard).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", reachByKeyboard);
reachByKeyboard();
