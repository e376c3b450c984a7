// Mark the dashboard that was clicked: a live page may take seconds to open.
(() => {
  'use strict';
  addEventListener('click', event => {
    event.target.closest('a.app')?.classList.add('opening');
  });
  addEventListener('pageshow', () => {
    for (const card of document.querySelectorAll('.opening')) card.classList.remove('opening');
  });
})();
