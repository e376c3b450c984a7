// What a live page does beside its widgets, whichever front end draws them. It stands in the page's head.
(() => {
  'use strict';
  const PATIENCE = 60000; // milliseconds: the next page may take a while, and may not come

  let leaving = false;
  addEventListener('pagehide', () => {
    leaving = true;
  });
  addEventListener('beforeunload', () => {
    leaving = true;
    setTimeout(() => {
      leaving = false;
    }, PATIENCE);
  });
  addEventListener('pageshow', event => {
    if (event.persisted) location.reload();
  });

  // A view writes its state into `data-link`; the address keeps it, so that the link can be sent to somebody.
  new MutationObserver(() => {
    const link = document.querySelector('[data-link]')?.dataset.link;
    if (link && link !== location.search) history.replaceState(history.state, '', location.pathname + link);
  }).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ['data-link'] });

  // A closed channel either comes back by itself or its kernel is gone; then the page must not look alive.
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...args) {
      super(...args);
      const kernel = /\/api\/kernels\/[\w-]+/.exec(args[0]);
      const check = async () => {
        if (leaving) return setTimeout(check, 5000);
        const alive = await fetch(kernel[0]).then(
          answer => answer.ok,
          () => false,
        );
        if (!alive) document.getElementById('scalai-lost').style.display = 'block';
      };
      if (kernel) this.addEventListener('close', () => setTimeout(check, 1000));
    }
  };
})();
