// Draw a live page with the bundle that ipywidgets brings for the classic notebook, instead of all of JupyterLab.
//
// The page brings
//   #jupyter-config-data   Voila's settings, as JSON; among them the kernel's id
//   #offered               as JSON: module -> address of its script
//   #rendered_cells        the outputs, as JSON in script elements
//   #voila                 a template: what Voila's own front end loads
//   #states                perhaps: the kernel's message with the state of all widgets, and the session of its channel
(() => {
  'use strict';

  // ---- The channel --------------------------------------------------------------------------------------------
  // Jupyter's protocol v1.kernel.websocket.jupyter.org: the number of offsets, the offsets (64 bits, little-endian),
  // then the parts: channel, header, parent's header, metadata, content, buffers.

  const config = JSON.parse(document.getElementById('jupyter-config-data').textContent);
  const kernelPath = '/api/kernels/' + config.kernelId;
  const stored = document.getElementById('states');
  const randomId = () =>
    [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, '0')).join('');
  const session = stored?.dataset.session ?? randomId();
  const early = []; // messages that came before their receiver was ready
  let receive = data => early.push(data);
  let socket;
  let left = false; // the page is closing, or Voila's front end has taken over

  const connect = () => {
    const address = location.origin.replace('http', 'ws') + kernelPath + '/channels?session_id=' + session;
    socket = new WebSocket(address, 'v1.kernel.websocket.jupyter.org');
    socket.binaryType = 'arraybuffer';
    socket.onmessage = message => receive(message.data);
    socket.onclose = () => {
      if (!left) setTimeout(reconnect, 1000);
    };
  };
  // A closed channel is opened again as long as the kernel lives; Voila keeps what the kernel sends meanwhile.
  const reconnect = async () => {
    if ((await fetch(kernelPath).catch(() => ({}))).ok) connect();
  };
  connect();
  addEventListener('pagehide', () => {
    if (!left) navigator.sendBeacon('/voila/api/shutdown/' + config.kernelId);
    left = true;
  });

  const decoder = new TextDecoder();
  const decode = data => {
    const view = new DataView(data);
    const count = Number(view.getBigUint64(0, true));
    const offsets = [...Array(count).keys()].map(i => Number(view.getBigUint64(8 + 8 * i, true)));
    const parts = offsets.slice(0, -1).map((start, i) => data.slice(start, offsets[i + 1]));
    const [channel, header, parent_header, metadata, content, ...buffers] = parts;
    const json = part => JSON.parse(decoder.decode(part));
    return {
      channel: decoder.decode(channel),
      header: json(header),
      parent_header: json(parent_header),
      metadata: json(metadata),
      content: json(content),
      buffers: buffers.map(buffer => new DataView(buffer)),
    };
  };
  const encode = (header, metadata, content, buffers) => {
    const texts = ['shell', ...[header, {}, metadata, content].map(part => JSON.stringify(part))];
    const parts = texts.map(part => new TextEncoder().encode(part));
    parts.push(...buffers.map(b => new Uint8Array(b.buffer ?? b, b.byteOffset ?? 0, b.byteLength)));
    const start = 8 * (parts.length + 2);
    const message = new Uint8Array(parts.reduce((size, part) => size + part.length, start));
    const view = new DataView(message.buffer);
    view.setBigUint64(0, BigInt(parts.length + 1), true);
    let offset = start;
    parts.forEach((part, i) => {
      view.setBigUint64(8 * (i + 1), BigInt(offset), true);
      message.set(part, offset);
      offset += part.length;
    });
    view.setBigUint64(start - 8, BigInt(offset), true);
    return message;
  };

  // ---- The kernel, as the bundle knows it ---------------------------------------------------------------------
  // The bundle was written for the classic notebook. What it asks of that notebook is little: a kernel with comms, a
  // place where it registers itself, and a loader of AMD modules.

  const CONTROL = 'jupyter.widget.control';
  const callbacksOf = new Map(); // id of a message -> who waits for its replies
  const comms = new Map(); // id -> comm
  const targets = new Map(); // name -> what a comm that the kernel opens is given to

  const send = (kind, content, callbacks, metadata, buffers) => {
    const header = {
      msg_id: randomId(),
      msg_type: kind,
      username: '',
      session,
      date: new Date().toISOString(),
      version: '5.3',
    };
    if (callbacks) callbacksOf.set(header.msg_id, callbacks);
    const message = encode(header, metadata ?? {}, content, buffers ?? []);
    if (socket.readyState === 1) socket.send(message);
    else socket.addEventListener('open', event => event.target.send(message));
    return header.msg_id;
  };

  class Comm {
    constructor(target_name, comm_id) {
      this.target_name = target_name;
      this.comm_id = comm_id ?? randomId();
      comms.set(this.comm_id, this);
    }
    on_msg(callback) {
      this.receive = callback;
    }
    on_close(callback) {
      this.closed = callback;
    }
    post(kind, data, callbacks, metadata, buffers, more) {
      return send(kind, { comm_id: this.comm_id, data: data ?? {}, ...more }, callbacks, metadata, buffers);
    }
    open(data, callbacks, metadata, buffers) {
      return this.post('comm_open', data, callbacks, metadata, buffers, { target_name: this.target_name });
    }
    send(data, callbacks, metadata, buffers) {
      return this.post('comm_msg', data, callbacks, metadata, buffers);
    }
    close(data, callbacks, metadata, buffers) {
      comms.delete(this.comm_id);
      return this.post('comm_close', data, callbacks, metadata, buffers);
    }
  }

  const first = stored && decode(Uint8Array.from(atob(stored.textContent), c => c.charCodeAt()).buffer);
  const controlComm = new Comm(CONTROL, first?.content.comm_id);
  let resolveStates, resolveCreated;
  const states = new Promise(resolve => {
    resolveStates = resolve;
  });
  const created = new Promise(resolve => {
    resolveCreated = resolve;
  });
  if (!first) {
    // before the scripts are read
    controlComm.open({}, undefined, { version: '1.0.0' });
    controlComm.send({ method: 'request_states' });
  }
  controlComm.on_msg(message => {
    resolveStates(message);
    return created; // what else the kernel sends waits until its models are there
  });
  const control = {
    on_msg: callback => states.then(callback),
    on_close: callback => controlComm.on_close(callback),
    send() {},
    close: () => controlComm.close(),
  };

  const kernel = {
    is_connected: () => true,
    comm_info: (target_name, reply) => {
      resolveCreated();
      send('comm_info_request', { target_name }, { shell: { reply } });
    },
    comm_manager: {
      register_target: (name, opened) => targets.set(name, opened),
      register_comm: comm => comms.set(comm.comm_id, comm),
      new_comm: (target, data, callbacks, metadata, id, buffers) => {
        if (target === CONTROL) return control;
        const comm = new Comm(target, id);
        comm.open(data, callbacks, metadata, buffers);
        return comm;
      },
    },
  };
  kernel.comm_manager.kernel = kernel;

  const handlers = {
    comm_open: m => targets.get(m.content.target_name)?.(new Comm(m.content.target_name, m.content.comm_id), m),
    comm_msg: m => {
      const reason = unsupported(m.content.data.states);
      return reason ? fallBack(reason) : comms.get(m.content.comm_id)?.receive?.(m);
    },
    comm_close: m => {
      const comm = comms.get(m.content.comm_id);
      comms.delete(m.content.comm_id);
      return comm?.closed?.(m);
    },
    status: (m, callbacks) => {
      callbacks?.iopub?.status?.(m);
      if (m.content.execution_state === 'idle' && !callbacks?.shell) callbacksOf.delete(m.parent_header.msg_id);
    },
  };
  let turn = Promise.resolve(); // one after the other: a model is there before its next message
  const handle = message => {
    const callbacks = callbacksOf.get(message.parent_header.msg_id);
    turn = turn.then(() => handlers[message.header.msg_type]?.(message, callbacks)).catch(console.error);
    if (message.channel === 'shell' && callbacks?.shell) {
      callbacks.shell.reply?.(message);
      callbacksOf.delete(message.parent_header.msg_id);
    }
  };

  // ---- Modules ------------------------------------------------------------------------------------------------
  // A script names the module that it defines in its `data-name`. One that is not offered, or needs the notebook's own
  // output areas, is a matter for Voila's front end: before anything is drawn it takes the page over in place, later
  // the page is opened anew.

  const CORE = ['@jupyter-widgets/base', '@jupyter-widgets/controls', '@jupyter-widgets/output'];
  const offered = JSON.parse(document.getElementById('offered').textContent);
  const cells = document.getElementById('rendered_cells');
  let drawn = false;
  let fallenBack = false;

  const fallBack = reason => {
    if (fallenBack) return;
    fallenBack = true;
    console.info('Voila draws this page:', reason);
    if (drawn) {
      const query = [...new URLSearchParams(location.search), ['front', 'voila'], ['live', '1']];
      location.replace(location.pathname + '?' + new URLSearchParams(query));
      return;
    }
    left = true;
    receive = () => {};
    setTimeout(() => socket.close(), 10000); // until the other front end has a channel of its own
    for (const shown of cells.querySelectorAll('.shown')) shown.remove();
    for (const name of ['require', 'requirejs', 'Jupyter']) delete window[name];
    window.define = () => {}; // of a script that is still on its way
    document.documentElement.classList.add('voila');
    const listen = window.addEventListener.bind(window); // Voila starts at `load`, which may have been already
    if (document.readyState === 'complete') {
      window.addEventListener = (kind, callback, ...more) =>
        kind === 'load' ? setTimeout(callback) : listen(kind, callback, ...more);
    }
    for (const element of document.getElementById('voila').content.children) {
      const copy = document.createElement(element.tagName);
      for (const attribute of element.attributes) copy.setAttribute(attribute.name, attribute.value);
      copy.async = false;
      document.head.append(copy);
    }
  };

  const unsupported = widgets => {
    for (const { model_name, model_module, state } of Object.values(widgets ?? {})) {
      const known = CORE.includes(model_module) || offered[model_module];
      if (!known || ['OutputModel', 'HTMLMathModel'].includes(model_name) || state.icon) {
        return model_module + ' ' + model_name;
      }
    }
  };

  class OutputArea {
    constructor() {
      fallBack('an Output widget');
    }
    register_mime_type() {}
  }
  const modules = {
    'base/js/namespace': {},
    'base/js/events': { on() {} },
    'services/kernels/comm': { Comm },
    module: { id: '', uri: '/' },
    'notebook/js/outputarea': { OutputArea },
  };
  const notebook = {
    kernel,
    metadata: {},
    container: { on() {} },
    events: { on() {} },
    keyboard_manager: { actions: { register() {} } },
  };
  window.Jupyter = Object.assign(modules['base/js/namespace'], {
    version: '6.5.7',
    notebook,
    notification_area: { widget() {} },
    menubar: { actions: { register() {} } },
  });

  const loading = {};
  const load = name =>
    modules[name] ??
    (loading[name] ??= new Promise((resolve, reject) => {
      if (!offered[name]) {
        fallBack(name);
        return reject(new Error('no module ' + name));
      }
      const script = document.createElement('script');
      script.src = offered[name];
      script.dataset.name = name;
      script.onload = () => resolve(modules[name]);
      script.onerror = reject;
      document.head.append(script);
    }));
  window.define = (...args) => {
    const name = document.currentScript?.dataset.name;
    if (!name) return; // of somebody else, such as a browser extension
    const factory = args.pop();
    const needs = args.pop() ?? [];
    const made = factory(...needs.map(need => modules[need]));
    for (const module of CORE.includes(name) ? CORE : [name]) modules[module] = made;
  };
  window.define.amd = {};
  window.require = window.requirejs = (names, done, failed) =>
    Promise.all(names.map(load)).then(found => done?.(...found), failed);
  window.requirejs.config = () => {};

  // ---- Drawing ------------------------------------------------------------------------------------------------
  // What an output looks like without a kernel is shown first, and stays until its live view stands in full.

  const VIEW = 'application/vnd.jupyter.widget-view+json';
  const UNSUPPORTED = /^(text\/(markdown|latex)|application\/(?!vnd\.jupyter\.widget-view))/;
  const image = (type, data) => `<img alt="" src="data:${type};base64,${data}">`;
  const RENDERERS = {
    'text/html': data => data,
    'image/svg+xml': data => data,
    'image/png': data => image('image/png', data),
    'image/jpeg': data => image('image/jpeg', data),
    'text/plain': data => {
      const pre = document.createElement('pre');
      pre.textContent = data;
      return pre.outerHTML;
    },
  };
  const places = []; // id of a widget's model, and what stands in its place until it is drawn

  const drawStatic = () => {
    for (const script of cells.querySelectorAll('script[type="application/vnd.voila.cell-output+json"]')) {
      const { data } = JSON.parse(script.textContent);
      const view = data[VIEW];
      const kind = Object.keys(RENDERERS).find(type => type in data && !(view && type === 'text/plain'));
      const html = [data[kind] ?? ''].flat().join('');
      if (Object.keys(data).some(type => UNSUPPORTED.test(type)) || (!view && /<script/i.test(html))) {
        return fallBack('an output of ' + Object.keys(data));
      }
      const shown = document.createElement('div');
      shown.className = 'shown';
      // a widget's in a shadow root: nothing on the page is there twice
      if (kind) (view ? shown.attachShadow({ mode: 'closed' }) : shown).innerHTML = RENDERERS[kind](html);
      script.after(shown);
      if (view) places.push([view.model_id, shown]);
    }
    cells.style.display = '';
  };

  const settled = async view => {
    for (const child of await Promise.all(view.children_views?.views ?? [])) await settled(child);
  };
  const drawLive = async widgets => {
    const manager = kernel.widget_manager;
    const views = [];
    for (const [id, shown] of places) {
      const view = await manager.create_view(await manager.get_model(id), {});
      const live = document.createElement('div');
      live.className = 'shown live';
      live.style.cssText = 'position: absolute; visibility: hidden; left: 0; right: 0';
      shown.parentElement.style.position = 'relative';
      shown.after(live);
      widgets.JupyterLuminoWidget.attach(view.luminoWidget, live);
      views.push(view);
      settled(view).then(() => {
        live.style.cssText = '';
        shown.remove();
      });
    }
    drawn = true;
    document.getElementById('loading')?.remove();
    addEventListener('resize', () => {
      const resized = widgets.JupyterLuminoWidget.ResizeMessage.UnknownSize;
      for (const view of views) view.luminoWidget.processMessage(resized);
    });
  };

  const used = Object.values(first?.content.data.states ?? {}).flatMap(w => [w.model_module, w.state._view_module]);
  const libraries = [...new Set(used)].filter(name => offered[name] && !CORE.includes(name));
  for (const name of libraries) {
    const link = document.createElement('link');
    document.head.append(Object.assign(link, { rel: 'preload', as: 'script', href: offered[name] }));
  }

  const start = async () => {
    const widgets = await load(CORE[0]);
    libraries.forEach(load);
    const menu = document.createElement('ul'); // the bundle puts its entry into the notebook's help menu
    menu.hidden = true;
    menu.innerHTML = '<li><a id="help_menu"></a></li>';
    document.body.append(menu);
    notebook.get_cells = () => {
      // asked for when all models are there
      resolveCreated();
      drawLive(widgets).catch(fallBack);
      return [];
    };
    await widgets.load_ipython_extension();
    menu.remove();
  };

  addEventListener('unhandledrejection', event => {
    if (!drawn) fallBack(event.reason);
  });
  if (new URLSearchParams(location.search).get('front') === 'voila') fallBack('asked for');
  else drawStatic();
  if (!fallenBack) {
    receive = data => handle(decode(data));
    if (first) handle(first);
    early.splice(0).forEach(receive);
    addEventListener('DOMContentLoaded', () => start().catch(fallBack));
  }
})();
