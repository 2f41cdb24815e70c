// What the page does beyond HTML: times in the reader's zone with their age, a word when the
// stream is cut, and buttons that copy a command. Without it everything is readable all the same.
"use strict";
(() => {
  const CUT_AFTER_MS = 4000; // the server sends something every 2 s
  const RELOAD_AFTER_MS = 3000; // two releases side by side must not reload a page all the time
  const live = document.getElementById("live");
  const banner = document.getElementById("cut");
  let heard = Date.now();

  document.documentElement.classList.add("js");

  const age = (ms) => {
    const s = Math.round(Math.abs(ms) / 1000);
    const units = s < 60 ? [[1, "s"]] : s < 3600 ? [[60, "min"]] : s < 172800 ? [[3600, "h"]]
      : [[86400, "d"]];
    const [size, name] = units[0];
    const words = `${Math.floor(s / size)} ${name}`;
    return ms < 0 ? `in ${words}` : `${words} ago`;
  };

  const inZone = (at, now) => (at.toDateString() === new Date(now).toDateString()
    ? at.toLocaleTimeString() : at.toLocaleString());

  const tellTimes = () => {
    const now = Date.now();
    for (const one of document.querySelectorAll("time[datetime]")) {
      const at = new Date(one.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      const words = `${inZone(at, now)} (${age(now - at.getTime())})`;
      if (one.textContent !== words) one.textContent = words;
      if (!one.title) one.title = `${one.dateTime.replace("T", " ").replace("+00:00", "")} UTC`;
    }
    for (const one of document.querySelectorAll("text[data-at]")) { // the ends of a chart
      const words = inZone(new Date(one.dataset.at), now);
      if (one.textContent !== words) one.textContent = words;
    }
  };

  const checkStream = () => {
    if (!live || document.hidden) return;
    const isCut = Date.now() - heard > CUT_AFTER_MS;
    if (document.body.classList.toggle("cut", isCut)) {
      const at = new Date(heard).toLocaleTimeString();
      const words = `Live updates stopped at ${at}: what you see is of then. Trying again.`;
      if (banner.textContent !== words) banner.textContent = words;
    }
    banner.hidden = !isCut;
  };

  const hear = () => {
    heard = Date.now();
    checkStream();
  };

  document.addEventListener("htmx:sse:before:message", hear);
  // This page has other parts than its stream is about: a new release, or a rollout that is gone.
  const begun = Date.now();
  live?.addEventListener("reload", () => {
    setTimeout(() => location.reload(), Math.max(0, begun + RELOAD_AFTER_MS - Date.now()));
  });
  document.addEventListener("htmx:after:swap", tellTimes);
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".copy button");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    const select = () => getSelection().selectAllChildren(code);
    const done = () => { button.textContent = "Copied"; };
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, select);
    else select();
  });
  tellTimes();
  setInterval(() => { tellTimes(); checkStream(); }, 1000);
})();
