// Keep a snapshot's line about its age true, and fetch the live page's scripts while this page is read.
//
// #asof has the values: `data-made`, when the snapshot was made; `data-at`, the same in words; `data-ask`, a path.
(() => {
  'use strict';
  const asof = document.getElementById('asof');
  const made = asof.dataset.made;
  let failures = 0;
  let shown = asof.innerHTML;

  document.querySelector('a.live').addEventListener('click', event => {
    event.target.textContent = 'Opening…';
  });
  addEventListener('pageshow', event => {
    if (event.persisted) location.reload();
  });

  const show = (html, standing) => {
    asof.className = standing;
    if (html !== shown) asof.innerHTML = shown = html;
  };
  const ask = async () => {
    const now = await fetch(asof.dataset.ask).then(
      answer => (answer.ok ? answer.json() : null),
      () => null,
    );
    if (now && String(now.made) !== made) {
      show('<a href="">There is a newer page: show it</a>', 'old');
    } else if (now) {
      failures = 0;
      show(asof.dataset.at + now.says, now.standing);
    } else if (++failures > 1) {
      const notice = ' <b>The dashboards do not answer</b>, so nobody knows whether this is current.';
      show(asof.dataset.at + notice, 'unknown');
    }
    return now;
  };
  setInterval(ask, 3000);
  setTimeout(async () => {
    for (const href of (await ask())?.live ?? []) {
      document.head.append(Object.assign(document.createElement('link'), { rel: 'prefetch', href }));
    }
  }, 1000);
})();
