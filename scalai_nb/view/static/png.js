// Save the figure that stands right before a button as a PNG file, with its legend. `data-file` names the file.
// It is the button's `onclick`, which runs in a snapshot and in an executed notebook too, where a script does not.
// In a handler `document` hides some names of `window`: URL is one.
(button => {
  const KEPT = [
    'fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-opacity', 'stroke-dasharray', 'opacity', 'display',
    'visibility', 'font-family', 'font-size', 'font-weight', 'text-anchor',
  ];
  const all = selector => [...document.querySelectorAll(selector)];
  const before = (x, y) => x.compareDocumentPosition(y) & 4; // DOCUMENT_POSITION_FOLLOWING

  const figures = all('.scalai .paper, .scalai .bqplot').filter(candidate => before(candidate, button));
  const figure = figures.pop();
  const previous = figures.pop();
  if (!figure) return;
  const legends = all('.scalai .key').filter(key => before(key, figure) && !(previous && before(key, previous)));
  const legend = legends.pop();

  const box = figure.getBoundingClientRect();
  const corner = legend ? legend.getBoundingClientRect() : { left: 0, top: 0, height: 0 };
  const shift = corner.height + 8;
  const width = Math.ceil(box.width);
  const height = Math.ceil(box.height + shift);
  let ground = figure;
  const transparent = /rgba\(.*, 0\)|transparent/;
  while (ground.parentElement && transparent.test(getComputedStyle(ground).backgroundColor)) {
    ground = ground.parentElement;
  }

  const put = (name, attributes, parent) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    parent.append(element);
    return element;
  };
  const root = put('svg', { width, height }, new DocumentFragment());
  put('rect', { width, height, fill: 'white' }, root);
  put('rect', { width, height, fill: getComputedStyle(ground).backgroundColor }, root);

  for (const entry of legend ? legend.children : []) {
    const mark = entry.querySelector('i');
    const at = mark.getBoundingClientRect();
    const [x, y] = [at.left - corner.left, at.top - corner.top];
    put('rect', { x, y, width: at.width, height: at.height, fill: getComputedStyle(mark).backgroundColor }, root);
    const style = 'font: 13px system-ui, sans-serif';
    const text = { x: x + at.width + 6, y: y + at.height, fill: getComputedStyle(entry).color, style };
    put('text', text, root).textContent = entry.textContent;
  }

  for (const svg of figure.querySelectorAll('svg')) {
    if (svg.parentElement.closest('svg')) continue;
    const copy = svg.cloneNode(true);
    const at = svg.getBoundingClientRect();
    const copies = [copy, ...copy.querySelectorAll('*')];
    [svg, ...svg.querySelectorAll('*')].forEach((element, i) => {
      const look = getComputedStyle(element);
      for (const key of KEPT) copies[i].style.setProperty(key, look.getPropertyValue(key));
    });
    const place = { x: at.left - box.left, y: at.top - box.top + shift, width: at.width, height: at.height };
    for (const [key, value] of Object.entries({ ...place, overflow: 'visible' })) copy.setAttribute(key, value);
    root.append(copy);
  }

  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement('canvas');
    canvas.width = 2 * width;
    canvas.height = 2 * height;
    const context = canvas.getContext('2d');
    context.scale(2, 2);
    context.drawImage(image, 0, 0);
    canvas.toBlob(blob => {
      const link = document.createElement('a');
      link.href = window.URL.createObjectURL(blob);
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => window.URL.revokeObjectURL(link.href), 9e3);
    });
  };
  image.src = 'data:image/svg+xml,' + encodeURIComponent(new XMLSerializer().serializeToString(root));
})(this);
