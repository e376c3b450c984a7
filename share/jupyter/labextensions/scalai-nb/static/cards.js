// Cards in JupyterLab's launcher: a click makes a notebook from a template, in the folder that the file browser shows.
// The container of module federation that JupyterLab loads is written by hand: no build is needed.
(() => {
  const NAME = 'scalai-nb';
  const COMMAND = 'scalai:new-notebook';
  const OWN = 'templates'; // the workspace's folder of templates
  // file -> its caption, and the path of its icon, 24 × 24
  const TEMPLATES = {
    explore: [
      'What rows look like, and what changed between two parts of them',
      'M10 3a7 7 0 1 0 4.2 12.6l5.1 5.1 1.4-1.4-5.1-5.1A7 7 0 0 0 10 3zm0 2a5 5 0 1 1 0 10 5 5 0 0 1 0-10zm-3 3h2v5H7zm3-1h2v6h-2z',
    ],
    ingest: [
      'A source into a table: refused rows go to quarantine with their reason, and nothing comes in twice',
      'M11 2h2v6h3l-4 4-4-4h3zM3 13h2v2h14v-2h2v8H3zm2 4v2h14v-2z',
    ],
    train: [
      'A prep, a network that takes what it makes, and smaller candidates of it, each measured',
      'M4 3h2v16h15v2H4zm3 11c3-1 3-8 12-9v2c-7 1-7 8-12 9z',
    ],
    watch: [
      'The windows of the model in service: what moved, how good it was, and what was decided',
      'M12 5c5 0 9 4 10 7-1 3-5 7-10 7s-9-4-10-7c1-3 5-7 10-7zm0 2c-4 0-7 3-7.8 5 .8 2 3.8 5 7.8 5s7-3 7.8-5c-.8-2-3.8-5-7.8-5zm0 2a3 3 0 1 1 0 6 3 3 0 0 1 0-6z',
    ],
    job: [
      'A notebook with typed parameters and results, which runs from a shell, on a schedule or in a workflow',
      'M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zm0 2a7 7 0 1 1 0 14 7 7 0 0 1 0-14zm-2 3v8l6-4z',
    ],
    dashboard: [
      'A page for others: moved into apps/, scalai dash serves it',
      'M3 4h18v16H3zm2 2v12h14V6zm2 8h2v3H7zm4-3h2v6h-2zm4-3h2v9h-2z',
    ],
  };
  const PAGE = 'M6 2h9l5 5v15H6zm2 2v16h10V9h-5V4zm2 8h6v2h-6zm0 4h6v2h-6z';

  // Of several modules with a name, the one that JupyterLab has loaded is the one whose tokens it knows.
  let shared;
  async function load(name) {
    const versions = Object.values(shared[name]);
    return (await (versions.find(v => v.loaded) ?? versions[0]).get())();
  }

  async function plugin() {
    const [
      { ILauncher },
      { ICommandPalette, showErrorMessage },
      { IDefaultFileBrowser },
      { LabIcon },
      { PageConfig, URLExt },
    ] = await Promise.all(
      [
        '@jupyterlab/launcher',
        '@jupyterlab/apputils',
        '@jupyterlab/filebrowser',
        '@jupyterlab/ui-components',
        '@jupyterlab/coreutils',
      ].map(load),
    );
    const icon = (name, path) => {
      const shape = `<path fill="#1f83c9" fill-rule="evenodd" d="${path}"/>`;
      const svgstr = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">${shape}</svg>`;
      return new LabIcon({ name: `scalai:${name}`, svgstr });
    };
    const icons = Object.fromEntries(Object.entries(TEMPLATES).map(([name, [, path]]) => [name, icon(name, path)]));
    const page = icon('own', PAGE);

    function activate({ commands, serviceManager: { contents, kernelspecs } }, launcher, palette, browser) {
      const own = new Set(); // names of the workspace's templates, which win over ours
      const label = name => name[0].toUpperCase() + name.slice(1).replaceAll('_', ' ');

      async function template(name) {
        const file = `${name}.ipynb`;
        if (own.has(name)) return (await contents.get(`${OWN}/${file}`, { type: 'notebook', content: true })).content;
        const extensions = PageConfig.getOption('fullLabextensionsUrl');
        const answer = await fetch(URLExt.join(extensions, NAME, 'templates', file));
        if (!answer.ok) throw new Error(`The template ${name} answered ${answer.status}.`);
        return answer.json();
      }

      // A notebook without outputs and with a kernel that is there.
      async function runnable(name) {
        const book = await template(name);
        await kernelspecs.ready;
        const { default: usual, kernelspecs: known } = kernelspecs.specs;
        const asked = book.metadata.kernelspec?.name;
        const kernel = known[asked] ? asked : usual;
        const { display_name, language } = known[kernel];
        book.metadata = { ...book.metadata, kernelspec: { name: kernel, display_name, language } };
        for (const cell of book.cells) {
          if (cell.cell_type === 'code') Object.assign(cell, { outputs: [], execution_count: null });
        }
        return book;
      }

      // The server renames only to a name that is free, so a file that is there is never replaced.
      async function rename(from, folder, name) {
        for (let i = 1; ; i++) {
          try {
            const number = i > 1 ? `-${i}` : '';
            return await contents.rename(from, `${folder && folder + '/'}${name}${number}.ipynb`);
          } catch (error) {
            if (error.response?.status !== 409) throw error;
          }
        }
      }

      async function make(name, folder) {
        const content = await runnable(name);
        const made = await contents.newUntitled({ path: folder, type: 'notebook' });
        await contents.save(made.path, { type: 'notebook', format: 'json', content });
        const { path } = await rename(made.path, folder, name);
        return commands.execute('docmanager:open', {
          path,
          factory: 'Notebook',
          kernel: { name: content.metadata.kernelspec.name },
        });
      }

      commands.addCommand(COMMAND, {
        label: ({ template, palette }) =>
          palette ? `New Notebook from Template: ${label(template)}` : label(template),
        caption: ({ template }) =>
          own.has(template) ? `A new notebook from ${OWN}/${template}.ipynb` : TEMPLATES[template][0],
        icon: ({ template, palette }) => (palette ? undefined : own.has(template) ? page : icons[template]),
        execute: ({ template, cwd }) =>
          make(template, cwd ?? browser?.model.path ?? '').catch(error =>
            showErrorMessage(`No notebook from ${label(template)}`, error),
          ),
      });

      let shown = [];
      function show() {
        shown.forEach(item => item.dispose());
        shown = [...new Set([...Object.keys(TEMPLATES), ...own])]
          .flatMap((template, rank) => [
            launcher?.add({ command: COMMAND, args: { template }, category: 'Templates', rank }),
            palette?.addItem({
              command: COMMAND,
              args: { template, palette: true },
              category: 'Notebook Operations',
            }),
          ])
          .filter(Boolean);
      }
      async function refresh() {
        const list = async path => (await contents.get(path, { content: true })).content;
        // looked for in its parent: asking for a folder that is missing would be an error in the console
        const exists = (await list('')).some(file => file.name === OWN && file.type === 'directory');
        own.clear();
        for (const file of exists ? await list(OWN) : []) {
          if (file.name.endsWith('.ipynb')) own.add(file.name.slice(0, -6));
        }
        show();
      }
      const isOwn = file => file?.path === OWN || file?.path?.startsWith(`${OWN}/`);
      contents.fileChanged.connect((_, { oldValue, newValue }) => {
        if (isOwn(oldValue) || isOwn(newValue)) refresh();
      });
      show();
      refresh();
    }
    return {
      id: 'scalai-nb:templates',
      autoStart: true,
      optional: [ILauncher, ICommandPalette, IDefaultFileBrowser],
      activate,
    };
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = {
    init: scope => {
      shared = scope;
    },
    get: async () => {
      const found = await plugin();
      return () => ({ __esModule: true, default: found });
    },
  };
})();
